"""Optimiser, metrics, checkpoints and the loop, in one process."""

from pathlib import Path
from typing import Any

import pytest
import torch

from cluster import checkpoint
from cluster.attempt import Stage
from cluster.checkpoint import Progress
from cluster.metrics import Meter, label_ranks
from cluster.records import Log
from cluster.settings import StageSettings
from cluster.train import train
from cluster.world import World
from pipelines.errors import TrainingError
from pipelines.location import Location
from pipelines.shards import DataSet
from tests.pipelines.test_loader import damage


def settings(**changes: object) -> StageSettings:
    small = {
        "net": "A", "scale": [32, 40], "input_size": 32, "width": 0.05, "batch": 50, "epochs": 2,
        "learning_rate": 0.01, "init": {"random": "kaiming"}, "pixel_std": 64, "flip": False,
    }  # fmt: skip
    return StageSettings.model_validate(small | changes)


def trained(stage: Stage, world: World, log: Log) -> Progress:
    train(stage, world, log)
    saved = checkpoint.newest(Location.of(stage.folder))
    assert saved is not None
    return saved.progress


def test_ranks_count_ties_and_nan_against_the_net() -> None:
    scores = torch.tensor([[1.0, 3.0, 2.0], [1.0, 1.0, 1.0], [float("nan"), 0.0, 0.0]])
    assert label_ranks(scores, torch.tensor([1, 0, 0])).tolist() == [0, 2, 2]


@pytest.mark.parametrize("size", [1, 3, 17, 200])
def test_a_meter_adds_up_batches_of_any_size_and_number(size: int) -> None:
    torch.manual_seed(0)
    scores, labels = torch.randn(101, 20), torch.randint(20, (101,))
    losses = torch.nn.functional.cross_entropy(scores, labels, reduction="none")
    meter = Meter(World.single())
    meter.add(scores[:0], labels[:0], losses[:0])  # of a worker without a share
    for part in torch.split(torch.arange(101), size):
        meter.add(scores[part], labels[part], losses[part], unreadable=1)
    totals = meter.read()
    assert totals.unreadable == -(-101 // size)
    top5 = sum(int(label) in row.topk(5).indices.tolist() for row, label in zip(scores, labels, strict=True))
    assert (totals.images, totals.top1, totals.top5) == (101, int((scores.argmax(1) == labels).sum()), top5)
    assert totals.loss == pytest.approx(float(losses.mean()), rel=1e-6)
    assert meter.read().images == 0


def test_training_stopped_after_an_epoch_goes_on_to_the_same_net(digits: tuple[str, str], tmp_path: Path) -> None:
    torch.set_num_threads(1)
    for name in ("whole", "halves"):
        (tmp_path / name).mkdir()
    records: list[dict[str, object]] = []
    whole = Stage("a", settings(), *digits, str(tmp_path / "whole"))
    progress = trained(whole, World.single(), records.append)
    train(Stage("a", settings(epochs=1), *digits, str(tmp_path / "halves")), World.single(), lambda r: None)
    resumed = trained(Stage("a", settings(), *digits, str(tmp_path / "halves")), World.single(), lambda r: None)
    assert resumed.accuracies == progress.accuracies
    a, b = (checkpoint.newest(Location.of(tmp_path / name)) for name in ("whole", "halves"))
    assert a is not None
    assert b is not None
    assert all(torch.equal(a.weights[key], b.weights[key]) for key in a.weights)
    assert [r["kind"] for r in records].count("epoch") == 2
    assert {p.name for p in (tmp_path / "whole").iterdir()} == {"epoch-0001.safetensors", "epoch-0002.safetensors"}


def test_a_loss_that_is_not_finite_ends_training_with_its_place(digits: tuple[str, str], tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"^the loss is (nan|inf) in epoch 1"):
        train(Stage("a", settings(learning_rate=1e30), *digits, str(tmp_path)), World.single(), lambda r: None)


@pytest.fixture
def damaged(digits: tuple[str, str], tmp_path: Path) -> tuple[str, str]:
    """The digits, of which three to train on and one to validate with are no images any more."""
    training = damage(DataSet.open(digits[0]), tmp_path / "data-train", dict.fromkeys((5, 60, 200), b"no image"))
    validation = damage(DataSet.open(digits[1]), tmp_path / "data-val", {3: b"no image"})
    (tmp_path / "stage").mkdir()
    return str(training.location), str(validation.location)


def test_images_that_cannot_be_decoded_are_counted_and_named_and_do_no_harm(
    damaged: tuple[str, str], tmp_path: Path
) -> None:
    records: list[dict[str, Any]] = []
    stage = Stage("a", settings(max_unreadable=0.0104), *damaged, str(tmp_path / "stage"))
    progress = trained(stage, World.single(), records.append)
    assert [epoch.unreadable for epoch in progress.epochs] == [3, 3]
    named = [record["name"] for record in records if record["kind"] == "unreadable"]
    assert len(named) == 2 * (3 + 1)
    assert len(set(named)) == 4


@pytest.mark.parametrize(("share", "told"), [(0.009, "3 of 300 images"), (0.0101, "1 of 97 images")])
def test_too_many_of_them_end_the_run_with_a_line(
    damaged: tuple[str, str], tmp_path: Path, share: float, told: str
) -> None:
    stage = Stage("a", settings(max_unreadable=share), *damaged, str(tmp_path / "stage"))
    with pytest.raises(TrainingError, match=rf"{told} cannot be decoded, more than max_unreadable \({share:g}\)"):
        train(stage, World.single(), lambda record: None)
