"""What the command line and the environment change of a job file."""

# ruff: noqa: E501

from pathlib import Path

import pytest

from jobs import schema
from pipelines.errors import SettingsError
from tests.jobs.wrong_jobs import GOOD

ALIASES = """name: t
data: digits
stages:
  a: &a {net: A, scale: 256, plateau: &p {patience: 2}}
  b: {<<: *a, scale: 384}
  c: *a
  d: {net: D, scale: 256, plateau: *p}
  e: {<<: [{epochs: 3, seed: 1}, {epochs: 4, batch: 7}], net: E, scale: 256}
"""
CHANGES = [
    (["epochs"], ["--set epochs: expected key.path=value, such as train.epochs=10"]),
    (["=3"], ["--set =3: expected key.path=value, such as train.epochs=10"]),
    (["train..epochs=3"], ["--set train..epochs=3: expected key.path=value, such as train.epochs=10"]),
    (["train.epochs=["], ["--set train.epochs=[: not YAML: expected the node content, but found '<stream end>'"]),
    (["\udcff=1"], ["--set \\udcff=1: no key and no setting may have the character '\\udcff'"]),
    (["train.epox=1"], ["--set train.epox=1: train.epox: unknown key; did you mean epochs?"]),
    (
        ["train.epochs=many"],
        ["--set train.epochs=many: train.epochs: expected a whole number of 1 or more, not 'many'"],
    ),
    (["epochs=1"], ["--set epochs=1: epochs: unknown key; it belongs in train or a stage"]),
    (["stages.f.epochs=3"], ["--set stages.f.epochs=3: stages.f.epochs: no stage is called 'f'; there are a, e"]),
    (
        ["evaluations.tt.fuse=true"],
        ["--set evaluations.tt.fuse=true: evaluations.tt.fuse: no test is called 'tt'; did you mean t?"],
    ),
    (["stages.f={net: A}"], ["--set stages.f={net: A}: stages.f.scale: is missing; expected a number of pixels, or [smallest, largest]"]),
    (["name.x=1"], ["--set name.x=1: name.x: name is 't' and no mapping"]),
    (["train.epochs.x=1"], ["--set train.epochs.x=1: train.epochs.x: train.epochs is one value and no mapping"]),
    (
        ["evaluations.t.models.1=a"],
        ["--set evaluations.t.models.1=a: evaluations.t.models.1: evaluations.t.models is a list with items 0 to 0, not '1'"],
    ),
    (
        ["evaluations.t.models.0=f"],
        ["--set evaluations.t.models.0=f: evaluations.t.models.0: no stage is called 'f'; there are a, e"],
    ),
    (
        ["train.epochs=0", "name=/", "stages.a.net=F"],  # all of them, in their order
        [
            "--set train.epochs=0: train.epochs: expected a whole number of 1 or more, not 0",
            "--set name=/: name: expected at most 100 letters, digits, points, hyphens and underscores, the first a letter or digit, not '/'",
            "--set stages.a.net=F: stages.a.net: expected A, A-LRN, B, C, D or E, not 'F'",
        ],
    ),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "lines"), CHANGES)
def test_a_wrong_change_is_told_of_in_clear_lines(changes: list[str], lines: list[str]) -> None:
    with pytest.raises(SettingsError) as told:
        schema.parse(GOOD.format(storage="/s"), "job.yaml", changes)
    assert str(told.value).splitlines() == lines


def test_changes_reach_items_whole_mappings_and_what_is_not_written_yet() -> None:
    changes = ["evaluations.t.models.0=a", "evaluations.u={models: [a, e], fuse: yes}", "stages.f={net: A, scale: 48}"]
    changes += ["stages.f.plateau.patience=9", "checkpoints.keep=3", "stages.e.init.except=[fc1]"]
    job = schema.parse(GOOD.format(storage="/s"), "job.yaml", changes)
    assert job.evaluations["t"].models == ["a"]
    assert job.evaluations["u"].fuse
    assert (job.stages["f"].scale, job.stages["f"].epochs) == ((48, 48), 1)
    plateau = job.stages["f"].plateau
    assert plateau is not None
    assert plateau.patience == 9
    assert job.checkpoints.keep == 3
    assert (job.stages["e"].init.source, job.stages["e"].init.left_out) == ("a", ["fc1"])


def test_a_change_of_what_an_alias_stands_for_changes_nothing_else() -> None:
    job = schema.parse(ALIASES, "job.yaml", ["stages.d.plateau.patience=7", "stages.c.scale=512"])
    patience = {name: stage.plateau.patience for name, stage in job.stages.items() if stage.plateau is not None}
    assert patience == {"a": 2, "b": 2, "c": 2, "d": 7, "e": 5}
    assert {name: stage.scale[0] for name, stage in job.stages.items()} == {
        "a": 256, "b": 384, "c": 512, "d": 256, "e": 256
    }  # fmt: skip
    e = job.stages["e"]
    assert (e.epochs, e.batch, e.seed) == (3, 7, 1)  # earlier mappings of a merge are the stronger


def test_what_is_wrong_in_an_alias_is_told_of_where_it_is_written() -> None:
    with pytest.raises(SettingsError) as told:
        schema.parse(ALIASES.replace("patience: 2", "patience: x"), "job.yaml")
    where = "job.yaml:4:53: stages.{}.plateau.patience: expected a whole number of 1 or more, not 'x'"
    assert str(told.value).splitlines() == [where.format(name) for name in "abcd"]


def test_aliases_of_aliases_are_refused_before_they_fill_the_memory() -> None:
    layers = ["x0: &x0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    layers += [f"x{i + 1}: &x{i + 1} [{', '.join([f'*x{i}'] * 10)}]" for i in range(9)]
    with pytest.raises(SettingsError, match="more than 20000 values, with all that aliases stand for"):
        schema.parse("\n".join(layers), "job.yaml")


def test_variables_of_the_environment_stand_in_values(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"BUCKET": "mine", "WORKERS": "3", "RATE": "5e-3", "FLIP": "false", "NUMBER": "12"}.items():
        monkeypatch.setenv(name, value)
    text = GOOD.format(storage='"s3://${env:BUCKET}/${env:BUCKET}?a=$${env:B}"').replace(
        "name: t", "name: ${env:NUMBER}"
    )
    changes = ["cluster.workers=${env:WORKERS}", "train.learning_rate=${env:RATE}", "train.flip=${env:FLIP}"]
    job = schema.parse(
        text, "job.yaml", [*changes, "stages.e.seed=['${env:NUMBER}', 7]", "evaluations.t.models=[e-12]"]
    )
    assert job.storage == "s3://mine/mine?a=${env:B}"
    assert job.name == "12"  # a setting that takes text has text
    assert job.cluster.workers == (3, 3)
    a = job.stages["a"]
    assert (a.learning_rate, a.flip) == (0.005, False)
    assert {name: stage.seed for name, stage in job.stages.items()} == {"a": 0, "e-12": 12, "e-7": 7}
    assert schema.parse(schema.resolved(job), "resolved.yaml") == job


ENVIRONMENT = [
    ("storage: /s/${env:NONE}", "job.yaml:3:10: storage: the environment has no variable NONE"),
    ("storage: /s/${USER}", "job.yaml:3:10: storage: ${USER} stands for nothing; ${env:NAME} stands for a variable of the environment, $${ for ${ itself"),
    ("storage: /s/${env:A-B}", "job.yaml:3:10: storage: ${env:A-B} stands for nothing; ${env:NAME} stands for a variable of the environment, $${ for ${ itself"),
    ("storage: ${env:ODD}", "job.yaml:3:10: storage: the variable ODD has the character '\\n'"),
    ("checkpoints: {keep: \"${env:WORD}\"}", "job.yaml:3:21: checkpoints.keep: expected a whole number of 1 or more, not 'word'"),
]  # fmt: skip


@pytest.mark.parametrize(("new", "line"), ENVIRONMENT)
def test_what_stands_for_no_variable_is_told_of(new: str, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ODD", "a\nb")
    monkeypatch.setenv("WORD", "word")
    with pytest.raises(SettingsError) as told:
        schema.parse(GOOD.replace("storage: {storage}", new).replace("{{", "{").replace("}}", "}"), "job.yaml")
    assert str(told.value) == line


def test_a_name_is_not_taken_for_a_variable_in_a_key(tmp_path: Path) -> None:
    text = GOOD.format(storage=tmp_path).replace("  a: {", "  ${env:HOME}: {")
    with pytest.raises(
        SettingsError, match=r"job\.yaml:6:3: stages\.\$\{env:HOME\}: \$\{ has its place in values, not in keys"
    ):
        schema.parse(text, "job.yaml")
