"""Sweeps by listing, and inheritance that can be seen."""

import itertools
import random
from pathlib import Path

import pytest
import yaml

from jobs import schema
from jobs.cli import main
from pipelines.errors import SettingsError

JOB = """name: t
data: digits
train: {scale: 256}
stages:
  a: {net: A}
  deep: {net: [B, C], learning_rate: [0.01, 5e-3], init: {from: a}}
  jitter: {init: {from: deep}, scale: [[256, 512], 384]}
  last: {init: {from: jitter-B-0.01-384}, after: [deep], epochs: 2}
evaluations:
  t: {models: [a, deep, last]}
"""
DEEP = ["deep-B-0.01", "deep-B-0.005", "deep-C-0.01", "deep-C-0.005"]


def parse(*changes: str, text: str = JOB) -> schema.Job:
    return schema.parse(text, "job.yaml", changes)


def lines(*changes: str, text: str = JOB) -> list[str]:
    with pytest.raises(SettingsError) as told:
        parse(*changes, text=text)
    return str(told.value).splitlines()


def test_two_lists_make_all_pairs_and_what_starts_from_them_is_made_for_each() -> None:
    job = parse()
    jitter = [f"jitter-{suffix.removeprefix('deep-')}-{s}" for suffix in DEEP for s in ("256-512", "384")]
    assert list(job.stages) == ["a", *DEEP, *jitter, "last"]
    assert [(job.stages[name].net, job.stages[name].learning_rate) for name in DEEP] == [
        ("B", 0.01), ("B", 0.005), ("C", 0.01), ("C", 0.005)
    ]  # fmt: skip
    for name in jitter:
        stage = job.stages[name]
        assert stage.init.source in DEEP
        assert stage.init.source.removeprefix("deep-") in name
        assert stage.net == job.stages[stage.init.source].net  # it says none
    assert job.stages["jitter-C-0.005-256-512"].scale == (256, 512)
    assert job.stages["last"].net == "B"
    assert job.stages["last"].after == DEEP
    assert job.evaluations["t"].models == ["a", *DEEP, "last"]


def test_a_sweep_is_what_a_user_would_write_out_by_hand() -> None:
    choices = {
        "net": ["B", "D", "E"], "batch": [8, 16], "dropout": [0, 0.25], "deliver": ["best", "last"],
        "recipe": ["paper", "torchvision"], "seed": [1, 0], "flip": [True, False], "validation_scale": [None, 256],
    }  # fmt: skip
    draw = random.Random(0)
    for _ in range(20):
        chosen = {key: choices[key] for key in draw.sample(list(choices), draw.randint(1, 3))}
        rest = {key: value for key, value in {"scale": 256, "net": "A"}.items() if key not in chosen}
        swept = {"name": "t", "data": "digits", "stages": {"s": {**chosen, **rest}}}
        written = {
            "s" + "".join(f"-{yaml.safe_dump(value).splitlines()[0]}" for value in values): {
                **dict(zip(chosen, values, strict=True)), **rest
            }
            for values in itertools.product(*chosen.values())
        }  # fmt: skip
        by_hand = {**swept, "stages": written}
        assert parse(text=yaml.safe_dump(swept, sort_keys=False)) == parse(
            text=yaml.safe_dump(by_hand, sort_keys=False)
        )


def test_settings_inside_mappings_are_swept_too() -> None:
    job = parse("stages.a.plateau={patience: [3, 4]}", "stages.last.init={from: [deep-B-0.01, /x/y.pth]}",
                "stages.deep.init.from=a-3", "evaluations={}", "stages.last.net=B")  # fmt: skip
    assert [name for name in job.stages if not name.startswith(("deep", "jitter"))] == [
        "a-3", "a-4", "last-deep-B-0.01", "last-y"
    ]  # fmt: skip
    assert job.stages["last-y"].init.source == "/x/y.pth"


def test_a_sweep_can_be_set_and_one_of_its_stages_too() -> None:
    job = parse("stages.deep.net=[E]", "stages.deep-E-0.005.epochs=9", "stages.last.init.from=deep-E-0.01")
    assert [job.stages[name].epochs for name in ("deep-E-0.01", "deep-E-0.005")] == [74, 9]
    assert lines("stages.deep-F.epochs=9") == [
        "--set stages.deep-F.epochs=9: stages.deep-F.epochs: no stage is called 'deep-F'; "
        "there are a, deep-B-0.01, deep-B-0.005, deep-C-0.01, deep-C-0.005, jitter-B-0.01-256-512, jitter-B-0.01-384, "
        "jitter-B-0.005-256-512, jitter-B-0.005-384, jitter-C-0.01-256-512, ..."
    ]


ERRORS = [
    ("[B, C]", "[B, F]", ["job.yaml:6:19: stages.deep.net.1: expected A, A-LRN, B, C, D or E, not 'F'"]),
    ("[B, C]", "[B, [C]]", ["job.yaml:6:19: stages.deep.net.1: expected A, A-LRN, B, C, D or E, not a list"]),
    ("[0.01, 5e-3]", "[]", ["job.yaml:6:38: stages.deep.learning_rate: an empty list makes no stage"]),
    ("[B, C]", "[B, C, B]", ["job.yaml:6:22: stages.deep.net.2: two stages would have B in the same name"]),
    ("  a: {net: A}", "  a: {net: A}\n  deep-B-0.01: {net: B}",
     ["job.yaml:7:3: stages.deep: two stages would be called deep-B-0.01"]),
    ("[0.01, 5e-3]", "[0.01, -1]", ["job.yaml:6:45: stages.deep.learning_rate.1: expected a number above 0, not -1"]),
    ("net: A", "net: A, freeze: [[fc1], [fc2]]",
     ["job.yaml:5:24: stages.a.freeze.0: expected text, not a list",
      "job.yaml:5:31: stages.a.freeze.1: expected text, not a list"]),
    ("net: A", "net: A, scale: [256, 384, 512]",
     ["job.yaml:5:22: stages.a.scale: expected a number of pixels, or [smallest, largest], not a list"]),
    ("net: A", f"net: A, dropout: [0, 0.1], batch: {list(range(1, 601))}",
     ["job.yaml:5:3: stages.a: makes 1200 stages; at most 1000"]),
    ("{net: A}", "{net: [A, B], init: {from: deep}}",
     ["job.yaml:5:3: stages.a: stages wait for each other: a <- deep <- a"]),
    ("{from: jitter-B-0.01-384}", "{from: jitter-B-0.1-384}",
     ["job.yaml:8:23: stages.last.init.from: no stage is called 'jitter-B-0.1-384'; did you mean jitter-B-0.01-384?"]),
    ("from: a}", "from: b}",
     ["job.yaml:6:65: stages.deep.init.from: no stage is called 'b'; "
      "there are a, deep-B-0.01, deep-B-0.005, deep-C-0.01, deep-C-0.005, jitter-B-0.01-256-512, jitter-B-0.01-384, "
      "jitter-B-0.005-256-512, jitter-B-0.005-384, jitter-C-0.01-256-512, ..."]),
    ("{scale: 256}", "{scale: 256, net: [A, B]}",
     ["job.yaml:3:26: train.net: expected A, A-LRN, B, C, D or E, not a list; "
      "values to be tried one by one are listed in a stage"]),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "expected"), ERRORS)
def test_a_wrong_sweep_is_told_of_at_its_item(old: str, new: str, expected: list[str]) -> None:
    assert old in JOB
    assert lines(text=JOB.replace(old, new, 1)) == expected


def test_a_long_chain_is_no_matter() -> None:
    stages = "\n".join(f"  s{i}: {{init: {{from: s{i + 1}}}}}" for i in range(1200))
    job = parse(text=f"name: t\ndata: digits\ntrain: {{scale: 256}}\nstages:\n{stages}\n  s1200: {{net: E}}\n")
    assert {stage.net for stage in job.stages.values()} == {"E"}


def test_the_resolved_plan_says_where_every_setting_comes_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("job.yaml").write_text(JOB.replace("{scale: 256}", "{scale: 256, recipe: torchvision}"))
    changes = ["--set", "train.batch=64", "--set", "stages.last.step.every=5"]
    assert main(["plan", "job.yaml", "--resolved", *changes]) == 0
    text = capsys.readouterr().out
    job = schema.load("job.yaml", changes[1::2])
    assert schema.parse(text, "printed") == job, "it can be pasted"
    found = {}
    path: list[str] = []
    for line in text.splitlines():
        setting, _, origin = line.partition("  # ")
        key = setting.strip().partition(":")[0]
        path = [*path[: (len(setting) - len(setting.lstrip())) // 2], key]
        found[".".join(path)] = origin
    last = "stages.last."
    assert found["name"] == "job.yaml:1"
    assert found["storage"] == "default"
    assert found["stages.deep-C-0.01.net"] == "job.yaml:6 (sweep of deep)"
    assert found["stages.jitter-C-0.01-384.init.from"] == "job.yaml:7 (sweep of jitter)"
    assert found[last + "net"] == "job.yaml:6 (as stage jitter-B-0.01-384)"
    assert found[last + "scale"] == "job.yaml:3 (train)"
    assert found[last + "batch"] == "--set train.batch=64 (train)"
    assert found[last + "step.every"] == "--set stages.last.step.every=5"
    assert found[last + "step.factor"] == "recipe torchvision, job.yaml:3"
    assert found[last + "epochs"] == "job.yaml:8"
    assert found[last + "momentum"] == "recipe torchvision, job.yaml:3"
    assert found[last + "nesterov"] == "default"
