"""What is found wrong with data sets and starting points before anything starts."""

from pathlib import Path

import pytest
import torch

from cluster import checkpoint
from cluster.settings import StageSettings
from cluster.train import Stage, train
from cluster.world import World
from jobs import fingerprint, schema
from jobs.check import check
from jobs.cli import main
from pipelines import sources
from pipelines.location import Location
from pipelines.prepare import prepare
from tests.cluster import layout
from tests.cluster.test_train import settings

JOB = """name: t
data: {{train: {train}, val: {val}}}
storage: {storage}
train: {{input_size: 32, width: 0.05, epochs: 1}}
stages:
  a: {{net: A, scale: 32{init}}}
"""


def write(tmp_path: Path, train: str, val: str, init: str = "") -> str:
    path = tmp_path / "job.yaml"
    path.write_text(JOB.format(train=train, val=val, storage=tmp_path / "storage", init=init))
    return str(path)


def told(job: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["run", job]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    return error


def test_sets_that_do_not_belong_together(
    pictures: Path, digits: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare(sources.folder(pictures), tmp_path / "pictures", statistics=False)
    mixed = told(write(tmp_path, digits[0], str(tmp_path / "pictures")), capsys)
    assert not (tmp_path / "storage").exists()
    assert "has 3 classes (ant, bee, cat), the training set 10 classes (0, 1, 2, ...)" in mixed
    assert "prepared as a validation set" in told(write(tmp_path, digits[1], digits[1]), capsys)


def test_a_net_of_other_classes_or_shape_is_no_start(
    pictures: Path, digits: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(Stage("a", settings(epochs=1), *digits, str(tmp_path)), World.single(), lambda r: None)
    start = Path(checkpoint.path_of(Location.of(tmp_path), 1).path)
    for name in ("x", "y"):
        prepare(sources.folder(pictures), tmp_path / name)
    init = f", init: {{from: {start}}}"
    error = told(write(tmp_path, str(tmp_path / "x"), str(tmp_path / "y"), init), capsys)
    assert "was trained on 10 classes (0, 1, 2, ...), the data set has 3 classes (ant, bee, cat); init: {from" in error
    wide = told(write(tmp_path, *digits, init + ", width: 0.1"), capsys)
    assert "has width 0.05, the stage 0.1" in wide
    b = Path(write(tmp_path, *digits, init + ", freeze: [block1]"))
    b.write_text(b.read_text().replace("net: A", "net: B"))
    assert "stages.a.freeze: conv1_2 would keep random weights: a net B does not get them from" in told(str(b), capsys)
    start.write_bytes(start.read_bytes()[:5000])
    assert "not a whole checkpoint" in told(write(tmp_path, *digits, init), capsys)
    assert "no such file" in told(write(tmp_path, *digits, ", init: {from: ./none.safetensors}"), capsys)


def test_relative_places_are_made_absolute(
    digits: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker has another working folder."""
    monkeypatch.chdir(Path(digits[0]).parent)
    checked = check(schema.load(write(tmp_path, "train", "./val")))
    assert (checked.data.train, checked.data.val) == digits


def test_a_stages_key_changes_with_what_determines_it_and_with_nothing_else(
    digits: tuple[str, str], tmp_path: Path
) -> None:
    def key(*changes: str) -> str:
        return check(schema.load(write(tmp_path, *digits), changes)).folders["a"].key

    assert (
        key()
        == key("cluster.workers=2")
        == key("name=u")
        == key(f"storage={tmp_path / 'other'}")
        == key("checkpoints.keep=5")
    )
    different = {key(), key("train.epochs=2"), key("stages.a.seed=1"), key("train.plateau.drops=1")}
    assert len(different) == 4
    assert key("train.recipe=paper") == key()
    assert key("train.recipe=torchvision", "train.step.every=7") == key(
        "train.recipe=torchvision", "stages.a.recipe=torchvision", "stages.a.step.every=7"
    )
    assert key("train.recipe=torchvision") not in different
    assert key("train.exchange=ddp") == key("train.exchange=factors") == key()
    assert key("train.exchange_precision=bf16") not in different | {key()}
    exact = [key("train.reproducible=exact", f"train.exchange={way}") for way in ("auto", "ddp", "factors")]
    assert len({*different, *exact}) == 7, "bits depend on it"
    other = key(f"data.val={digits[0]}")
    assert other not in different


def test_a_stage_may_start_from_torchvisions_files(
    digits: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Their classes have no names: as many are taken, and others with a new last layer."""
    for classes in (10, 1000):
        torch.save(layout.random("A", classes, 0.05, side=1).state_dict(), tmp_path / f"{classes}.pth")

    def job(classes: int, more: str = "") -> str:
        return write(tmp_path, *digits, f", init: {{from: {tmp_path / str(classes)}.pth{more}}}")

    def key(classes: int, more: str = "") -> str:
        return check(schema.load(job(classes, more))).folders["a"].key

    keys = {key(10), key(10, ", except: [fc3]"), key(1000, ", except: [fc3]"), key(1000, ", except: [fc2, fc3]")}
    assert len(keys) == 4
    hint = "; init: {from: ..., except: [fc3]} draws fc3 anew\n"
    assert told(job(1000), capsys).endswith(f"1000.pth has 1000 classes, the data set 10 classes (0, 1, 2, ...){hint}")
    frozen = Path(job(1000, ", except: [fc3]"))
    frozen.write_text(frozen.read_text().replace("scale: 32", "scale: 32, freeze: [classifier]"))
    assert "stages.a.freeze: fc3 would keep random weights, being left out" in told(str(frozen), capsys)
    torch.save(layout.random("A", 10, 0.05, side=2).state_dict(), tmp_path / "10.pth")
    assert "has input_size 64, the stage 32; init: {from: ..., except: [fc1]} draws fc1 an" in told(job(10), capsys)
    assert key(10, ", except: [fc1]") not in keys
    (tmp_path / "10.pth").write_text("no net")
    assert "10.pth: neither a checkpoint nor another file of a net" in told(job(10), capsys)


@pytest.mark.parametrize(
    ("how", "key"),
    [
        ({}, "e46dc25952075813a998113b9368f0fb964695f450b3d54860840446d0435297"),
        (
            {"reproducible": "exact", "exchange": "ddp"},
            "317f7a400ce7bb53ceff87d0348497af01f602dae31b0ac4152cf1fb36b2b080",
        ),
    ],
)
def test_stages_from_before_there_were_ways_of_exchange_are_known_again(how: dict[str, str], key: str) -> None:
    settings = StageSettings.model_validate({"net": "D", "scale": 256, **how}).model_dump(by_alias=True, mode="json")
    assert fingerprint.key(fingerprint.content(settings, "t", "v", None)) == key
