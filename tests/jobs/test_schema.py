import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster.settings import Init, StageSettings, StepSchedule
from jobs import graph, schema
from jobs.cli import main
from jobs.plan import Action, State, plan
from jobs.recipes import RECIPES
from pipelines.errors import SettingsError

ROOT = Path(__file__).parent.parent.parent
GOOD = """name: t
data: digits
storage: {storage}
train: {{input_size: 32, width: 0.1, epochs: 1}}
stages:
  a: {{net: A, scale: 32}}
  e: {{net: E, scale: [32, 48], init: {{from: a}}}}
evaluations:
  t: {{models: [e]}}
"""


def write(tmp_path: Path, text: str = GOOD) -> Path:
    path = tmp_path / "job.yaml"
    path.write_text(text.format(storage=tmp_path / "storage"))
    return path


# What is replaced in the good job, by what, and the line that a user sees.
ERRORS = [
    ("epochs: 1", "epoks: 1", "job.yaml:4: train.epoks: unknown key; did you mean epochs?"),
    ("epochs: 1", "epochs: many", "job.yaml:4: train.epochs: input should be a valid integer"),
    ("width: 0.1", "width: yes", "job.yaml:4: train.width: input should be a valid number"),
    ("net: A", "net: F", "job.yaml:6: stages.a.net: input should be 'A', 'A-LRN', 'B', 'C', 'D' or 'E'"),
    ("net: A, ", "", "job.yaml:6: stages.a.net: is missing"),
    ("from: a", "from: aa", "job.yaml:7: stages.e.init.from: no stage is called 'aa'; did you mean a?"),
    ("scale: 32}}", "scale: 32, init: {{from: e}}}}", "job.yaml:6: stages.a: stages wait for each other: a <- e <- a"),
    ("scale: 32}}", "scale: 31}}", "job.yaml:6: stages.a.scale: S = 31 is smaller than the crop, input_size = 32"),
    ("scale: 32}}", "scale: big}}", "job.yaml:6: stages.a.scale: expected a number of pixels, or [smallest, largest]"),
    ("[32, 48]", "[48, 32]", "job.yaml:7: stages.e.scale: the smallest S (48) is above the largest (32)"),
    ("scale: 32}}", "scale: 32, width: 0.2}}", "job.yaml:7: stages.e.init.from: width is 0.2 in stage a and 0.1"),
    ("models: [e]", "models: [f]", "job.yaml:9: evaluations.t.models.0: no stage is called 'f'"),
    ("models: [e]", "models: [e], scales: [16]", "evaluations.t.scales.0: Q = 16 is smaller than the input_size"),
    ("name: t", "nam: t", "job.yaml:1: nam: unknown key; did you mean name?"),
    ("name: t\n", "name: t\nname: u\n", "job.yaml:2: name: stands twice, first in line 1"),
    ("width: 0.1", "width: 0.1, virtual_shards: 6", "job.yaml:4: train.virtual_shards: 6 is not a power of two"),
    (
        "width: 0.1",
        "width: 0.1, batch_norm: yes, micro_batch: 4",
        "micro_batch: with reproducible: exact or batch_norm",
    ),
    (
        "epochs: 1}}\n",
        "epochs: 1, reproducible: exact}}\ncluster: {{workers: 3}}\n",
        "job.yaml:4: train.reproducible: exact training takes a power of two of workers",
    ),
    ("input_size: 32", "input_size: 33", "input_size: 33 is not a multiple of 32"),
    ("[32, 48]", "[32, 48", "not YAML"),
    ("name: t", "name: 2024-13-01", "not YAML"),
    ("name: t", "name: &a [*a]", "job.yaml"),
    ("width: 0.1", "width: .inf", "job.yaml:4: train.width: input should be a finite number"),
    ("  t: {{", '  "S=256 (dense)": {{', "job.yaml:9: evaluations.S=256 (dense)"),
    ("storage: {storage}", "storage: runs", "storage: runs: expected a whole path (from / or ~)"),
    ("storage: {storage}", "storage: /etc/passwd/no", "storage: /etc/passwd/no/runs/t cannot be written"),
    ("data: digits", "data: digits\ncheckpoints: {{keep: 0}}", "job.yaml:3: checkpoints.keep: input should be greater"),
    ("data: digits", "data: digits\ncheckpoints: {{every: 5}}", "job.yaml:3: checkpoints.every: unknown key"),
    ("from: a", "from: xx://b/c.safetensors", "stages.e.init.from: xx://b/c.safetensors: no such place"),
    ("data: digits", "data: /no/such/place", "job.yaml:2: data"),
    (
        "epochs: 1",
        "recipe: torchvison",
        "job.yaml:4: train.recipe: no recipe is called 'torchvison'; did you mean torch",
    ),
    (
        "scale: 32}}",
        "scale: 32, recipe: 7}}",
        "job.yaml:6: stages.a.recipe: no recipe is called 7; there are paper, to",
    ),
    ("scale: 32}}", "scale: 32, recipie: x}}", "job.yaml:6: stages.a.recipie: unknown key; did you mean recipe?"),
    ("epochs: 1", "schedule: cosin", "input should be 'plateau', 'step' or 'cosine'; did you mean cosine?"),
    (
        "epochs: 1",
        "plateau: {{patiance: 2}}",
        "job.yaml:4: train.plateau.patiance: unknown key; did you mean patience?",
    ),
    ("epochs: 1", "step: {{every: 2}}", "job.yaml:4: train.step: does not apply, since schedule is plateau"),
    ("epochs: 1", "schedule: cosine, cosine: {{floor: 1}}", "train.cosine.floor: 1 is not below learning_rate = 0.01"),
    (
        "epochs: 1",
        "epochs: 9, warmup_epochs: 4, schedule: step, step: {{every: 3}}",
        "job.yaml:4: train.warmup_epochs: the rate would fall (step.every = 3) before it has risen",
    ),
    ("epochs: 1", "epochs: 2, warmup_epochs: 2", "job.yaml:4: train.warmup_epochs: 2 are not fewer than epochs = 2"),
    (
        "scale: 32}}",
        "scale: 32, freeze: [conv1]}}",
        "job.yaml:6: stages.a.freeze: 'conv1' is no layer of net A; did yo",
    ),
    (
        "epochs: 1",
        "learning_rates: {{fc4: 2}}",
        "job.yaml:4: train.learning_rates: 'fc4' is no layer of net A; did you",
    ),
    ("epochs: 1", "learning_rates: {{fc3: 0}}", "train.learning_rates.fc3: input should be greater than 0"),
    (
        "scale: 32}}",
        "scale: 32, freeze: [fc1]}}",
        "job.yaml:6: stages.a.freeze: these layers would keep random weights",
    ),
    ("from: a}}", "from: a}}, freeze: [features, classifier]", "job.yaml:7: stages.e.freeze: these are all layers"),
    (
        "from: a}}",
        "from: a}}, freeze: [block1]",
        "stages.e.freeze: conv1_2 would keep random weights: a net E does not",
    ),
    ("from: a}}", "from: a, except: [fc4]}}", "job.yaml:7: stages.e.init.except: 'fc4' is no layer of net E; did you"),
    ("from: a}}", "from: a, exept: [fc3]}}", "job.yaml:7: stages.e.init.exept: unknown key; did you mean except?"),
    ("from: a}}", "except: [fc3]}}", "job.yaml:7: stages.e.init.except: does not go without init: {from: ...}"),
    (
        "from: a}}",
        "from: a, except: [features, classifier]}}",
        "job.yaml:7: stages.e.init.except: these are all layers, so that none is copied",
    ),
    (
        "from: a}}",
        "from: a, except: [fc3]}}, freeze: [classifier]",
        "stages.e.freeze: fc3 would keep random weights, being left out by init.except",
    ),
    (
        "scale: 32}}",
        "scale: 64, input_size: 64}}",
        "job.yaml:7: stages.e.init.from: input_size is 64 in stage a and 32 in this one: fc1 does not fit",
    ),
    ("from: a}}", "from: a}}, freeze: [fc1], learning_rates: {{fc1: 2}}", "stages.e.learning_rates: fc1 is frozen"),
    ("epochs: 1", "nesterov: true, momentum: 0.0", "job.yaml:4: train.nesterov: does not go without momentum"),
    ("data: digits", "data: {{train: /no/train, val: /no/val}}", "/no/train: no such data set"),
]


@pytest.mark.parametrize(("old", "new", "message"), ERRORS)
def test_a_wrong_job_is_one_clear_line_and_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], old: str, new: str, message: str
) -> None:
    assert old in GOOD
    path = write(tmp_path, GOOD.replace(old, new, 1))
    assert main(["run", str(path)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert all(line.startswith("verydeep: ") for line in error.splitlines())


def test_all_errors_are_told_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, GOOD.replace("net: A", "net: F").replace("models: [e]", "modles: [e]"))
    assert main(["run", str(path)]) == 2
    error = capsys.readouterr().err
    assert "stages.a.net" in error
    assert "modles" in error


def test_stages_inherit_from_train_and_changes_override(tmp_path: Path) -> None:
    job = schema.load(write(tmp_path), ["stages.e.epochs=7", "train.learning_rate=1e-3", "train.init.random=glorot"])
    assert job.stages["a"].epochs == 1
    assert job.stages["e"].epochs == 7
    assert job.stages["e"].learning_rate == 0.001
    assert job.stages["e"].init.source == "a"
    assert job.stages["e"].init.random == "glorot"
    with pytest.raises(SettingsError, match=r"--set train\.epox=1: train\.epox: unknown key"):
        schema.load(write(tmp_path), ["train.epox=1"])
    with pytest.raises(SettingsError, match="expected key"):
        schema.load(write(tmp_path), ["epochs"])


def test_recipes_are_settings_that_fit_and_the_papers_are_the_defaults() -> None:
    least: dict[str, object] = {"net": "D", "scale": 256}
    assert set(RECIPES) == {"paper", "torchvision"}
    found = {name: StageSettings.model_validate({**recipe, **least}) for name, recipe in RECIPES.items()}
    assert found["paper"] == StageSettings.model_validate(least)
    for name, recipe in RECIPES.items():  # every number of a recipe arrives
        assert StageSettings.model_validate({**found[name].model_dump(by_alias=True), **recipe}) == found[name]


def test_a_stage_takes_its_recipe_then_train_then_its_own_settings(tmp_path: Path) -> None:
    text = GOOD.replace("{{input_size", "{{recipe: torchvision, weight_decay: 0.002, input_size")
    e = schema.load(write(tmp_path, text), ["stages.e.momentum=0.8", "stages.e.step.every=4"]).stages["e"]
    assert (e.schedule, e.batch, e.weight_decay, e.momentum) == ("step", 256, 0.002, 0.8)
    assert e.step == StepSchedule(every=4, factor=10.0)
    assert e.init == Init.model_validate({"from": "a", "random": "torchvision", "std": 0.01})
    assert (e.epochs, e.plateau) == (1, None)


def test_a_stages_recipe_takes_the_place_of_the_others_and_a_schedule_leaves_other_knobs_behind(tmp_path: Path) -> None:
    text = GOOD.replace("{{input_size", "{{recipe: torchvision, input_size")
    job = schema.load(write(tmp_path, text), ["stages.e.recipe=paper", "stages.a.schedule=cosine"])
    assert job.stages["e"].weight_decay == 5e-4
    assert job.stages["e"].schedule == "plateau"
    assert (job.stages["a"].schedule, job.stages["a"].step, job.stages["a"].weight_decay) == ("cosine", None, 1e-4)


def test_a_recipes_name_is_no_part_of_a_stages_settings(tmp_path: Path) -> None:
    named = schema.load(write(tmp_path), ["train.recipe=torchvision"])
    written = schema.load(
        write(tmp_path), [f"train.{key}={json.dumps(v)}" for key, v in RECIPES["torchvision"].items()]
    )
    assert named.stages["a"].batch == 256
    assert named.stages["a"].epochs == 1  # train's own
    written_again = written.model_copy(update={"stages": {"a": written.stages["a"].model_copy(update={"epochs": 1})}})
    assert written_again.stages["a"] == named.stages["a"]


def test_layers_copied_from_the_source_may_be_frozen(tmp_path: Path) -> None:
    job = schema.load(write(tmp_path), ["stages.e.freeze=[conv1_1, fc1]", "stages.e.learning_rates={features: 0.1}"])
    assert job.stages["e"].frozen == {"conv1_1", "fc1"}
    assert schema.load(write(tmp_path), ["stages.e.net=A", "stages.e.freeze=[features]"]).stages["e"].freeze == [
        "features"
    ]


def test_what_depends_on_layers_that_are_left_out_may_differ(tmp_path: Path) -> None:
    wider = ["stages.a.scale=64", "stages.a.input_size=64"]
    job = schema.load(write(tmp_path), [*wider, "stages.e.init.except=[fc1]"])
    assert job.stages["e"].left_out == {"fc1"}
    with pytest.raises(SettingsError, match="fc1 does not fit"):
        schema.load(write(tmp_path), [*wider, "stages.e.init.except=[fc2, fc3]"])


def test_the_resolved_job_reads_back_as_itself(tmp_path: Path) -> None:
    job = schema.load(write(tmp_path))
    (tmp_path / "resolved.yaml").write_text(schema.resolved(job))
    assert schema.load(tmp_path / "resolved.yaml") == job


def test_shipped_jobs_are_valid_and_executable() -> None:
    files = sorted((ROOT / "jobs").glob("*.yaml"))
    assert {f.name for f in files} >= {"demo.yaml", "vgg_a.yaml", "vgg_d.yaml", "vgg_e.yaml", "photos.yaml"}
    for file in files:
        schema.load(file)
        assert file.read_text().startswith("#!/usr/bin/env -S python -m jobs\n")
        assert file.stat().st_mode & 0o111


def test_stages_come_after_what_they_start_from() -> None:
    assert graph.in_order({"x": ["y"], "y": [], "z": ["x"], "w": []}) == ["y", "x", "z", "w"]


def test_a_plan_says_what_and_why() -> None:
    states = {"a": State(True, 5), "b": State(False, 2), "c": State(False, 0)}
    actions = [d.action for d in plan(["a", "b", "c"], states, {"a", "b", "c"}, fresh=False, reasons={})]
    assert actions == [Action.REUSE, Action.RESUME, Action.TRAIN]
    assert {d.action for d in plan(["a", "b"], states, {"a", "b"}, fresh=True, reasons={})} == {Action.AGAIN}
    assert plan(["a", "b"], states, {"b"}, fresh=False, reasons={})[0].action is Action.SKIP


def test_a_wrong_job_is_refused_through_its_first_line_too(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD.replace("epochs", "epoks"))
    done = subprocess.run(
        [sys.executable, "-m", "jobs", str(path)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "did you mean epochs?" in done.stderr


FRAGMENTS = [
    "{",
    "}",
    "[",
    "]",
    ":",
    " ",
    "\n",
    "- ",
    "null",
    "-1",
    "1e400",
    ".nan",
    "&a",
    "*a",
    "? ",
    '"',
    "\t",
    "\x07",
]
FRAGMENTS += ["!!python/object:os.system", "<<: *a", "1: 2", "[]", "{}", "9" * 400, "2026-01-01", "[1, 2]: 3"]


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(["demo", "vgg_e", "photos"]), st.data())
def test_any_damage_to_a_job_file_is_a_valid_job_or_lines_that_name_the_file(
    tmp_path: Path, name: str, data: st.DataObject
) -> None:
    text = (ROOT / "jobs" / f"{name}.yaml").read_text()
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(text)))
        text = text[:at] + data.draw(st.sampled_from(FRAGMENTS)) + text[at + data.draw(st.integers(0, 12)) :]
    (tmp_path / "job.yaml").write_text(text)
    try:
        schema.load(tmp_path / "job.yaml")
    except SettingsError as error:
        assert all(line.startswith(str(tmp_path / "job.yaml")) for line in str(error).splitlines())  # noqa: PT017
