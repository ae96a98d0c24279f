"""Optimiser, metrics, checkpoints and the loop, in one process."""

from pathlib import Path
from typing import Any

import pytest
import torch

from cluster import checkpoint, evaluate, launch, optimise
from cluster.evaluate import Evaluation
from cluster.launch import Node
from cluster.metrics import Meter, label_ranks
from cluster.settings import ClusterSettings, Plateau, StageSettings
from cluster.train import Stage, train
from cluster.world import World
from pipelines.errors import CheckpointError, ClusterError, TrainingError
from pipelines.shards import DataSet
from tests.pipelines.test_loader import damage


def settings(**changes: object) -> StageSettings:
    small = {
        "net": "A", "scale": [32, 40], "input_size": 32, "width": 0.05, "batch": 50, "epochs": 2,
        "learning_rate": 0.01, "init": {"random": "kaiming"}, "pixel_std": 64, "flip": False,
    }  # fmt: skip
    return StageSettings.model_validate(small | changes)


def test_the_plateau_rule_drops_and_ends() -> None:
    rule = Plateau(patience=2, min_gain=0.01, drops=2)
    rises = [0.1, 0.2, 0.3]
    assert optimise.schedule([], rule) == optimise.Schedule(0, False)
    assert optimise.schedule([*rises, 0.305], rule) == optimise.Schedule(0, False)
    assert optimise.schedule([*rises, 0.305, 0.309], rule) == optimise.Schedule(1, False)
    assert optimise.schedule([*rises, 0.305, 0.309, 0.31], rule) == optimise.Schedule(1, False)
    assert optimise.schedule([*rises, *[0.3] * 4], rule) == optimise.Schedule(2, False)
    assert optimise.schedule([*rises, *[0.3] * 6], rule) == optimise.Schedule(2, True)
    assert optimise.schedule([0.1] * 7, Plateau(patience=2, min_gain=0, drops=2)) == optimise.Schedule(2, True)
    assert optimise.Schedule(2, False).rate(0.01, 10) == pytest.approx(1e-4)


def test_ranks_count_ties_and_nan_against_the_net() -> None:
    scores = torch.tensor([[1.0, 3.0, 2.0], [1.0, 1.0, 1.0], [float("nan"), 0.0, 0.0]])
    assert label_ranks(scores, torch.tensor([1, 0, 0])).tolist() == [0, 2, 2]


def test_a_meter_adds_up_batches_of_any_size() -> None:
    torch.manual_seed(0)
    scores, labels = torch.randn(101, 20), torch.randint(20, (101,))
    losses = torch.nn.functional.cross_entropy(scores, labels, reduction="none")
    meter = Meter(World.single())
    for part in torch.split(torch.arange(101), 17):
        meter.add(scores[part], labels[part], losses[part])
    totals = meter.read()
    top5 = sum(int(label) in row.topk(5).indices.tolist() for row, label in zip(scores, labels, strict=True))
    assert (totals.images, totals.top1, totals.top5) == (101, int((scores.argmax(1) == labels).sum()), top5)
    assert totals.loss == pytest.approx(float(losses.mean()), rel=1e-6)
    assert meter.read().images == 0


def test_training_stopped_after_an_epoch_goes_on_to_the_same_net(digits: tuple[str, str], tmp_path: Path) -> None:
    torch.set_num_threads(1)
    for name in ("whole", "halves"):
        (tmp_path / name).mkdir()
    records: list[dict[str, object]] = []
    whole = Stage("a", settings(), *digits, tmp_path / "whole")
    progress = train(whole, World.single(), records.append)
    train(Stage("a", settings(epochs=1), *digits, tmp_path / "halves"), World.single(), lambda r: None)
    resumed = train(Stage("a", settings(), *digits, tmp_path / "halves"), World.single(), lambda r: None)
    assert resumed.accuracies == progress.accuracies
    a, b = (checkpoint.newest(tmp_path / name) for name in ("whole", "halves"))
    assert a is not None
    assert b is not None
    assert all(torch.equal(a.weights[key], b.weights[key]) for key in a.weights)
    assert [r["kind"] for r in records].count("epoch") == 2
    assert {p.name for p in (tmp_path / "whole").iterdir()} == {f"epoch-{n:04d}.pt" for n in {2, progress.best}}


def test_a_torn_checkpoint_is_passed_over_and_foreign_files_are_refused(
    digits: tuple[str, str], tmp_path: Path
) -> None:
    train(Stage("a", settings(epochs=1), *digits, tmp_path), World.single(), lambda r: None)
    good = checkpoint.path_of(tmp_path, 1)
    checkpoint.path_of(tmp_path, 2).write_bytes(good.read_bytes()[:-1000])
    with pytest.warns(UserWarning, match="epoch-0002"):
        found = checkpoint.newest(tmp_path)
    assert found is not None
    assert len(found.progress.epochs) == 1
    for content in (b"", b"name: demo\n", good.read_bytes()[:500]):
        checkpoint.path_of(tmp_path, 3).write_bytes(content)
        with pytest.raises(CheckpointError, match=r"epoch-0003\.pt: not a whole checkpoint$"):
            checkpoint.load(checkpoint.path_of(tmp_path, 3))
    torch.save({"version": 1}, checkpoint.path_of(tmp_path, 3))
    with pytest.raises(CheckpointError, match="not a checkpoint of this program: 'card'"):
        checkpoint.load(checkpoint.path_of(tmp_path, 3))
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        checkpoint.load(tmp_path / "none.pt")


def test_a_loss_that_is_not_finite_ends_training_with_its_place(digits: tuple[str, str], tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"stage a: the loss is (nan|inf) in epoch 1"):
        train(Stage("a", settings(learning_rate=1e30), *digits, tmp_path), World.single(), lambda r: None)


def test_a_dense_test_counts_every_image_once_over_any_number_of_workers(
    digits: tuple[str, str], tmp_path: Path
) -> None:
    progress = train(Stage("a", settings(), *digits, tmp_path), World.single(), lambda r: None)
    test = Evaluation(checkpoint.path_of(tmp_path, progress.best), digits[1], (32, 40), mirror=True)
    alone = evaluate.evaluate_share(test, World.single())
    parts = [evaluate.evaluate_share(test, World(rank, 3, torch.device("cpu"), 1)) for rank in range(3)]
    assert alone.images == sum(p.images for p in parts) == 97
    assert alone.top1 == sum(p.top1 for p in parts)
    assert alone.loss_sum == pytest.approx(sum(p.loss_sum for p in parts), rel=1e-5)


def test_scores_are_averaged_before_the_soft_max_and_mirror_images_after_it() -> None:
    class Corner(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images[:, :2]

    images = torch.randn(1, 3, 2, 2) * 5
    images[:, 0, :, 1] += 3
    expected = torch.softmax(images[:, :2].mean((2, 3)), 1)
    torch.testing.assert_close(evaluate.dense_probabilities(Corner(), images, mirror=True), expected)


def test_workers_get_what_the_cluster_has_or_a_clear_refusal() -> None:
    def fit(nodes: list[Node], **cluster: object) -> launch.Shape:
        most = Node(sum(n.cpus for n in nodes), sum(n.gpus for n in nodes))
        return launch.fit(ClusterSettings.model_validate(cluster), nodes, most)

    assert fit([Node(2, 0)], workers=2) == launch.Shape(2, 1, 0)
    assert fit([Node(0, 0), Node(16, 4), Node(16, 4)], workers=8) == launch.Shape(8, 4, 1)
    assert fit([Node(8, 0), Node(4, 0)], workers=3) == launch.Shape(3, 4, 0)
    with pytest.raises(ClusterError, match=r"9 workers with 1 CPU each .* it has 8 CPUs and 0 GPUs on 1 node$"):
        fit([Node(8, 0)], workers=9)
    with pytest.raises(ClusterError, match="1 CPU and 1 GPU each"):
        fit([Node(8, 1)], workers=2, gpus_per_worker=1, cpus_per_worker=1)


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
    stage = Stage("a", settings(max_unreadable=0.0104), *damaged, tmp_path / "stage")
    progress = train(stage, World.single(), records.append)
    assert [epoch.unreadable for epoch in progress.epochs] == [3, 3]
    named = [record["name"] for record in records if record["kind"] == "unreadable"]
    assert len(named) == 2 * (3 + 1)
    assert len(set(named)) == 4
    tested = evaluate.evaluate_share(
        Evaluation(checkpoint.path_of(tmp_path / "stage", progress.best), damaged[1], (32, 40), mirror=False),
        World.single(),
    )
    assert (tested.images, tested.unreadable) == (97, 1)


@pytest.mark.parametrize(("share", "told"), [(0.009, "3 of 300 images"), (0.0101, "1 of 97 images")])
def test_too_many_of_them_end_the_run_with_a_line(
    damaged: tuple[str, str], tmp_path: Path, share: float, told: str
) -> None:
    stage = Stage("a", settings(max_unreadable=share), *damaged, tmp_path / "stage")
    with pytest.raises(TrainingError, match=rf"{told} cannot be decoded, more than max_unreadable \({share:g}\)"):
        train(stage, World.single(), lambda record: None)
