import json
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.settings import Init, StageSettings, StepSchedule
from jobs import graph, schema
from jobs.cli import main
from jobs.plan import Action, State, plan
from jobs.recipes import RECIPES
from pipelines.errors import SettingsError
from tests.jobs.wrong_jobs import ERRORS, GOOD

ROOT = Path(__file__).parent.parent.parent


def write(tmp_path: Path, text: str = GOOD) -> Path:
    path = tmp_path / "job.yaml"
    path.write_text(text.format(storage=tmp_path / "storage"))
    return path


@pytest.mark.parametrize(("old", "new", "lines"), ERRORS)
def test_a_wrong_job_is_told_of_in_clear_lines_and_status_2(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    old: str,
    new: str,
    lines: list[str],
) -> None:
    assert old in GOOD
    monkeypatch.chdir(tmp_path)
    write(tmp_path, GOOD.replace(old, new, 1))
    assert main(["plan", "job.yaml"]) == 2
    storage = str(tmp_path / "storage")
    assert capsys.readouterr().err == "".join(f"verydeep: {line}\n".replace("{storage}", storage) for line in lines)


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
    assert {f.name for f in files} >= {
        "demo.yaml",
        "paper.yaml",
        "vgg_a.yaml",
        "vgg_d.yaml",
        "vgg_e.yaml",
        "photos.yaml",
    }
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
