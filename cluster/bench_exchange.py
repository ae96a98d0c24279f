"""`verydeep bench exchange`: gradients by sums of DDP and by factors, on workers of this machine.

Both ways are taken by `cluster.step` itself, in turns, in rounds whose order alternates, in float32, and beside them a
turn in which each worker is by itself: what a step takes longer than that is its exchange. It has the products of the
other workers' images in it, which factors leave to each worker.
"""

import os
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

from cluster import torchrun, turns, wire
from cluster.settings import StageSettings
from cluster.turns import ALONE, Task, Turn
from pipelines.errors import BenchError, SettingsError

WAYS: dict[str, dict[str, Any]] = {"ddp": {"exchange": "ddp"}, "factors": {"exchange": "factors"}}
CLASSES = 1000
TOLERANCE = 1e-6  # between gradients by both ways, of the norm

_NOTE = (
    "exchange: what a step takes longer than that of each worker by itself.  difference: of fully-connected layers' "
    "gradients,\nnorm over norm, at most.  sent: by each worker in a step, counted by the kernel, and what "
    "`verydeep plan` reckons with.\nMedians; ratios within rounds, with the smallest and largest."
)


@dataclass(frozen=True)
class Figures:
    """Of one way. Seconds of a step, medians; `sent_bytes` by each worker, None where they do not go over TCP."""

    seconds: float
    exchange_seconds: float
    sent_bytes: float | None
    reckoned_bytes: float


@dataclass(frozen=True)
class Found:
    """On so many workers. `faster`: the first way's seconds over the second's, within rounds: median, smallest and
    largest. `difference`: between the gradients of both."""

    workers: int
    device: str
    turns: dict[str, list[Turn]]
    alone_seconds: float
    figures: dict[str, Figures]
    faster: tuple[float, float, float]
    difference: float


def run(settings: StageSettings, workers: int, rounds: int) -> Found:
    """Raises SettingsError, BenchError: also if the gradients differ."""
    for option, value, least in (("--workers", workers, 2), ("--rounds", rounds, 1), ("--batch", settings.batch, 2)):
        if value < least:
            raise SettingsError(f"{option} {value}: at least {least}")
    cuda = torch.cuda.device_count() >= workers
    threads = max(1, len(os.sched_getaffinity(0)) // workers)
    task = Task(settings=settings, classes=CLASSES, ways=WAYS, rounds=rounds, cuda=cuda, threads=threads)
    with tempfile.TemporaryDirectory(prefix="verydeep-bench-") as folder:
        answer = torchrun.run(turns.__name__, task, workers, Path(folder))
    found = _found(answer, settings, workers, "cuda" if cuda else "cpu")
    if not found.difference <= TOLERANCE:
        raise BenchError(
            f"on {workers} workers gradients by both ways differ by {found.difference:.1e} of their norm, more than "
            f"{TOLERANCE:g}"
        )
    return found


def _found(answer: dict[str, Any], s: StageSettings, workers: int, device: str) -> Found:
    by_way = {name: [Turn(**turn) for turn in each] for name, each in answer["turns"].items()}
    seconds = {name: [turn.seconds for turn in each] for name, each in by_way.items()}
    figures = {}
    for name, changes in WAYS.items():
        longer = [mine - alone for mine, alone in zip(seconds[name], seconds[ALONE], strict=True)]
        reckoned = wire.sent(s.model_copy(update=changes), CLASSES, workers, bf16=False)
        sent = median(turn.sent_bytes for turn in by_way[name]) if device == "cpu" else None
        figures[name] = Figures(median(seconds[name]), median(longer), sent, sum(layer.bytes for layer in reckoned))
    first, second = WAYS
    ratios = [a / b for a, b in zip(seconds[first], seconds[second], strict=True)]
    faster = (median(ratios), min(ratios), max(ratios))
    (difference,) = answer["differences"].values()
    return Found(workers, device, by_way, median(seconds[ALONE]), figures, faster, difference)


def table(s: StageSettings, found: list[Found]) -> str:
    lines = [f"net {s.net}, width {s.width:g}, {s.input_size} pixels, batch {s.batch}, float32"]
    for each in found:
        middle, low, high = each.faster
        lines += [
            "",
            f"{f'{each.workers} workers, {each.device}':<18}{'a step':>12}{'exchange':>12}{'sent':>12}{'reckoned':>12}",
            f"{ALONE:<18}{each.alone_seconds * 1000:>9.1f} ms",
            *(_line(name, f) for name, f in each.figures.items()),
            f"{'ratio':<18}{middle:.2f} ({low:.2f} to {high:.2f}) of steps; of bytes {_less(each)}",
            f"{'difference':<18}{each.difference:.1e}",
        ]
    return "\n".join([*lines, "", _NOTE])


def record(s: StageSettings, found: list[Found]) -> dict[str, Any]:
    """All that was measured, for JSON."""
    return {"settings": s.model_dump(by_alias=True, mode="json"), "found": [asdict(each) for each in found]}


def _line(name: str, f: Figures) -> str:
    sent = f"{'-':>9}   " if f.sent_bytes is None else f"{f.sent_bytes / 1e6:>9.3f} MB"
    times = f"{f.seconds * 1000:>9.1f} ms{f.exchange_seconds * 1000:>9.1f} ms"
    return f"{name:<18}{times}{sent}{f.reckoned_bytes / 1e6:>9.3f} MB"


def _less(found: Found) -> str:
    first, second = found.figures.values()
    reckoned = f"{first.reckoned_bytes / second.reckoned_bytes:.2f} reckoned"
    if first.sent_bytes is None or second.sent_bytes is None:
        return reckoned
    return f"{first.sent_bytes / second.sent_bytes:.2f}, {reckoned}"
