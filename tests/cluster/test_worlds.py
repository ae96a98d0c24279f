"""A stage on several workers in real process groups: stopped, gone on with, and counted row by row."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from cluster import checkpoint, wire
from cluster.agree import Undisturbed, Wish
from cluster.attempt import Stage
from cluster.checkpoint import Checkpoint
from cluster.settings import CheckpointSettings
from cluster.train import Outcome, train
from cluster.world import World
from pipelines.location import Location
from tests.cluster.groups import together
from tests.cluster.test_train import settings

EPOCHS = 2
STEPS = 14  # an epoch's: 300 images in batches of 22
SETTINGS = {
    "epochs": EPOCHS,
    "batch": 22,
    "dropout": 0.5,
    "average_decay": 0.9,
    "micro_batch": 3,
    "warmup_epochs": 0.5,
    "label_smoothing": 0.1,
    "clip_norm": 1.0,
}


class StopAt(Undisturbed):
    """Asked for a stop, on one worker, when it was asked for its wish so many times."""

    def __init__(self, calls: int | None, rank: int) -> None:
        self._left = calls if rank == 1 else None

    def wish(self) -> Wish:
        if self._left is None:
            return Wish.NONE
        self._left -= 1
        return Wish.STOP if self._left < 0 else Wish.NONE


def train_both(world: World, stage: Stage, stops: list[int]) -> list[tuple[int, int, int]]:
    """Once without a stop, and once with stops; epoch, step and number of the rows that a worker had in the second."""
    rows: list[tuple[int, int, int]] = []

    def log(record: dict[str, Any]) -> None:
        if record["kind"] == "rows":
            rows.extend((record["epoch"], record["step"], row) for row in record["rows"])

    whole = replace(stage, folder=f"{stage.folder}/whole")
    assert train(whole, world, lambda record: None) is Outcome.FINISHED
    pieces = replace(stage, folder=f"{stage.folder}/pieces", checkpoints=CheckpointSettings(every_minutes=0.01))
    for calls in stops:
        assert train(pieces, world, log, StopAt(calls, world.rank)) is Outcome.STOPPED
        dist.barrier()  # worker 0 has written
    assert train(pieces, world, log) is Outcome.FINISHED
    return rows


def newest(folder: Path) -> Checkpoint:
    saved = checkpoint.newest(Location.of(folder))
    assert saved is not None
    return saved


def test_a_stage_stopped_again_and_again_ends_as_one_left_alone(digits: tuple[str, str], tmp_path: Path) -> None:
    """In the middle of an epoch and in its validation; every row is trained on once."""
    size = 3  # of two, the order of a sum does not matter
    stage = Stage("a", settings(**SETTINGS), *digits, str(tmp_path), ledger=True)
    assert set(wire.ways(stage.settings, 10, size, bf16=False).values()) == {"ddp", "factors"}
    stops = [3, STEPS - 3]
    rows = [entry for worker in together(size, train_both, stage, stops) for entry in worker]
    whole, pieces = newest(tmp_path / "whole"), newest(tmp_path / "pieces")
    assert whole.average is not None
    for group in ("weights", "momentum", "average"):
        a, b = getattr(whole, group), getattr(pieces, group)
        assert a.keys() == b.keys()
        assert all(torch.equal(a[name], b[name]) for name in a), group
    assert whole.progress.accuracies == pieces.progress.accuracies
    for epoch in range(1, EPOCHS + 1):
        assert sorted(row for number, _, row in rows if number == epoch) == list(range(300))
