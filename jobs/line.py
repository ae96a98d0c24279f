"""What is known of one node of a job, a stage or the test of a net: a value; and what a record makes of it, pure.

Times are seconds of one clock, that of the driver; a share is between 0 and 1.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any


class Phase(Enum):
    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    LEFT_OUT = "left out"
    STOPPED = "stopped"


@dataclass(frozen=True)
class Line:
    """One node. `needs`: the nodes that it waits for, the one that it starts from first. A stage has epochs and steps;
    a test has images: in all its views, so that each counts as often as it is looked at."""

    name: str
    title: str = ""
    needs: tuple[str, ...] = ()
    phase: Phase = Phase.WAITING
    reason: str = ""
    epoch: int = 0  # under way, from 1; of an earlier run, with no steps, the last one that is done
    epochs: int = 0  # at most
    step: int = 0
    steps: int = 0
    validating: bool = False
    images: int = 0
    of_images: int = 0
    loss: float | None = None
    accuracy: float | None = None
    validation_accuracy: float | None = None  # of the best epoch so far
    best_epoch: int = 0
    images_per_second: float | None = None
    learning_rate: float | None = None
    workers: int = 0
    attempt: int = 0  # groups of workers so far
    gpus_busy: dict[str, float] = field(default_factory=dict)  # their utilisation by node, 0 to 1
    note: str = ""  # what is odd about the workers now
    warnings: int = 0
    warning: str = ""  # the last one
    seconds: float = 0.0  # that it ran before `since`
    since: float | None = None  # it runs
    pace: float | None = None  # seconds that all of it takes, as far as can be told
    mark: tuple[float, float] | None = None  # time and share from which the pace is measured

    @property
    def share(self) -> float:
        """How much of it is done, at least: a stage may end before its last epoch."""
        if self.phase is Phase.DONE:
            return 1.0
        if self.of_images:
            return min(1.0, self.images / self.of_images)
        if not self.epochs or not self.epoch:
            return 0.0
        return min(1.0, (self.epoch - 1 + (self.step / self.steps if self.steps else 1.0)) / self.epochs)

    @property
    def left(self) -> float | None:
        """Seconds from now to its end, at most; None before there is a pace to tell them from."""
        if self.phase is not Phase.RUNNING or self.pace is None:
            return None
        return self.pace * (1 - self.share)

    def spent(self, now: float) -> float:
        """Seconds that it has run."""
        return self.seconds + (max(0.0, now - self.since) if self.since is not None else 0.0)


def moved(line: Line, phase: Phase, reason: str, now: float) -> Line:
    """The line in another phase."""
    seconds = line.spent(now)
    if phase is Phase.RUNNING:
        again = line.phase is Phase.RUNNING
        since = line.since if again else now
        return replace(
            line, phase=phase, reason=reason, since=since, seconds=line.seconds, mark=line.mark if again else None
        )
    still: dict[str, Any] = {
        "since": None,
        "workers": 0,
        "gpus_busy": {},
        "note": "",
        "validating": False,
        "mark": None,
    }
    return replace(line, phase=phase, reason=reason, seconds=seconds, **still)


def heard(line: Line, record: Mapping[str, Any], now: float) -> Line:
    """The line after a record."""
    match record["kind"]:
        case "tick":
            return _ticked(line, record, now)
        case "point":
            numbers = _numbers(record, "loss", "accuracy", "images_per_second", "learning_rate")
            return replace(_ticked(line, record, now), validating=False, **numbers)
        case "epoch":
            return _ended(line, record)
        case "workers":
            groups = record.get("attempt", line.attempt + 1)
            return replace(
                line, workers=record["count"], attempt=groups, gpus_busy={}, note="", mark=None, validating=False
            )
        case "tested":
            return _tested(line, record["images"], now)
        case "warning":
            return replace(line, warnings=line.warnings + 1, warning=record["text"])
        case "failed":
            return replace(line, note=record["error"])
        case "system":
            return _busy(line, record["node"], record["values"])
        case "quiet":
            return replace(line, note=f"no word from the workers for {record['seconds']} s")
    return line


def _ticked(line: Line, record: Mapping[str, Any], now: float) -> Line:
    step, steps = record["step"], record["steps"]
    validating = step == steps and (line.epoch, line.step) == (record["epoch"], steps)
    place = {"epoch": record["epoch"], "epochs": record["epochs"], "step": step, "steps": steps}
    return _paced(replace(line, validating=validating, note="", **place), now)


def _paced(line: Line, now: float) -> Line:
    """With a pace from what was done since the mark, until an epoch tells better."""
    if line.mark is None or line.share < line.mark[1]:
        return replace(line, mark=(now, line.share))
    seconds, share = now - line.mark[0], line.share - line.mark[1]
    if seconds <= 0 or share <= 0 or (line.pace is not None and not line.of_images and line.epoch > 1):
        return line
    return replace(line, pace=seconds / share)


def _ended(line: Line, record: Mapping[str, Any]) -> Line:
    """After an epoch; its seconds are without what was lost on the way."""
    accuracy, best = record["validation_accuracy"], line.validation_accuracy
    better = math.isfinite(accuracy) and (best is None or accuracy > best)
    return replace(
        line,
        epoch=record["epoch"],
        epochs=record["epochs"],
        step=record["steps"],
        steps=record["steps"],
        validating=False,
        note="",
        pace=record["seconds"] * record["epochs"],
        validation_accuracy=accuracy if better else best,
        best_epoch=record["epoch"] if better else line.best_epoch,
        **_numbers(record, "loss", "accuracy", "images_per_second", "learning_rate"),
    )


def _tested(line: Line, images: int, now: float) -> Line:
    line = replace(line, images=line.images + images, of_images=max(line.of_images, line.images + images), note="")
    paced = _paced(line, now)
    speed = paced.of_images / paced.pace if paced.pace else None
    return replace(paced, images_per_second=speed)


def _busy(line: Line, node: str, values: Mapping[str, float]) -> Line:
    """`values`: of a node's load, named as in MLflow's system metrics."""
    shares = [
        value / 100
        for name, value in values.items()
        if name.startswith("gpu_") and name.endswith("_utilization_percentage")
    ]
    return replace(line, gpus_busy={**line.gpus_busy, node: sum(shares) / len(shares)}) if shares else line


def _numbers(record: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """JSON has no numbers that are not finite."""
    return {name: record[name] if math.isfinite(record[name]) else None for name in names}
