"""Boards and records for the tests of watching: those of a real training, and random ones."""

import random
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch

from cluster.attempt import Stage
from cluster.train import train
from cluster.world import World
from jobs.board import Board, Snapshot
from jobs.line import Line, Phase
from tests.cluster.test_train import settings

Record = dict[str, Any]
NOW = 1_000_000.0


@cache
def recorded(training: str, validation: str, folder: Path) -> tuple[Record, ...]:
    """What a small training of three epochs tells; with the driver's record of its workers first."""
    torch.set_num_threads(1)
    records: list[Record] = [{"kind": "workers", "count": 1, "attempt": 1}]
    stage = Stage("a", settings(epochs=3, batch=15), training, validation, str(folder))
    train(stage, World.single(), records.append)
    return tuple(records)


def epoch(number: int, epochs: int, accuracy: float, seconds: float = 100.0, steps: int = 50) -> Record:
    place = {"epoch": number, "epochs": epochs, "step": steps, "steps": steps, "learning_rate": 0.01}
    numbers = {"loss": 2 - accuracy, "accuracy": accuracy, "validation_accuracy": accuracy, "images_per_second": 640.0}
    return {"kind": "epoch", **place, **numbers, "seconds": seconds}


def point(number: int, epochs: int, step: int, steps: int = 50, line: bool = False) -> Record:
    numbers = {"loss": 1.2345, "accuracy": 0.512, "images_per_second": 2310.4, "learning_rate": 0.01}
    return {"kind": "point", "line": line, "epoch": number, "epochs": epochs, "step": step, "steps": steps, **numbers}


def small() -> Snapshot:
    """One of each phase."""
    lines = [
        Line("a", "net A, S 256"),
        Line("b", "net B, S 256", ("a",)),
        Line("e", "net E, S 256", ("a",)),
        Line("e-jitter", "net E, S 256 to 512", ("e",)),
        Line("test of a", "dense, Q 256", ("a",)),
        Line("test of b", "dense, Q 256", ("b",)),
    ]
    board = Board("vgg", lines, "4 workers with 1 GPU each", NOW - 7200)
    for name in ("a", "b", "e"):
        board.set(name, Phase.RUNNING, now=NOW - 3600)
        board.hear(name, {"kind": "workers", "count": 4, "attempt": 1}, NOW - 3600)
        board.hear(name, epoch(1, 10, 0.25), NOW - 3500)
        board.hear(name, epoch(2, 10, 0.125), NOW - 3400)
    board.set("a", Phase.DONE, "2 epochs", NOW - 3400)
    board.set("b", Phase.FAILED, "the loss is nan in epoch 3 before step 7; it was 1.9 before", NOW - 3300)
    board.set("test of b", Phase.LEFT_OUT, "b failed")
    board.hear("e", point(3, 10, 25), NOW - 10)
    board.begin("test of a", 1000, NOW - 60)
    board.hear("test of a", {"kind": "tested", "images": 100}, NOW - 50)
    board.hear("test of a", {"kind": "tested", "images": 300}, NOW - 20)
    return board.snapshot(NOW)


def random_board(rng: random.Random, most: int = 40) -> Snapshot:
    """A chain of random shape, of which a random part is done."""
    names = [rng.choice("abcdefgh") + "x" * rng.randrange(12) + f"-{i}" for i in range(rng.randint(1, most))]
    lines = [
        Line(name, "net E, S 256 to 512"[: rng.randrange(20)], tuple(rng.sample(names[:i], min(i, rng.randrange(3)))))
        for i, name in enumerate(names)
    ]
    board = Board("job" * rng.randrange(10), lines, "workers " * rng.randrange(10), NOW - rng.randrange(10**6))
    for name in names:
        phase = rng.choice(list(Phase))
        board.set(name, Phase.RUNNING if rng.random() < 0.5 else phase, "", NOW - rng.randrange(1, 10**5))
        for record in _random_records(rng):
            board.hear(name, record, NOW - rng.random())
        board.set(name, phase, "of 漢字 a\n\x1b[2Jreason " * rng.randrange(9), NOW)
    return board.snapshot(NOW + rng.randrange(100))


def _random_records(rng: random.Random) -> Iterator[Record]:
    for number in range(1, rng.randrange(4)):
        yield epoch(number, 74, rng.random(), 10 ** rng.uniform(0, 6))
    for _ in range(rng.randrange(3)):
        yield point(rng.randint(1, 74), 74, rng.randint(1, 5000), 5000)
    for _ in range(rng.randrange(3)):
        yield {"kind": "warning", "text": "worker 3 died; training goes on from its newest checkpoint " * 2}
    if rng.random() < 0.2:
        yield {"kind": "quiet", "seconds": 60}
