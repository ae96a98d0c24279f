"""Small runs of a stage on Ray, and a listener that does something in the middle of one and keeps what it hears."""

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cluster import checkpoint, launch
from cluster.attempt import Stage
from cluster.checkpoint import Checkpoint
from cluster.interrupt import Stop
from cluster.mailbox import Listen
from cluster.place import Shape
from cluster.settings import ClusterSettings
from pipelines.location import Location
from tests.cluster.test_train import settings

Rows = dict[tuple[int, int], list[int]]  # by epoch and step


def stage(data: tuple[str, str], folder: Path, epochs: int, **changes: object) -> Stage:
    return Stage("a", settings(epochs=epochs, batch=15, dropout=0.5, **changes), *data, str(folder), ledger=True)


def carried_out(stage: Stage, on: Shape, settings: ClusterSettings, listen: Listen) -> None:
    """To its end, on Ray."""
    with launch.environment(settings):
        launch.train_stage(stage, on, settings, listen, Stop())


def saved(folder: Path) -> Checkpoint:
    """The newest checkpoint."""
    found = checkpoint.newest(Location.of(folder))
    assert found is not None
    return found


class Listener:
    """`acts` are done one after the other, each as soon as its condition holds for a record."""

    def __init__(self, *acts: tuple[Callable[[dict[str, Any]], bool], Callable[[], object]]) -> None:
        self._acts = list(acts)
        self.records: list[dict[str, Any]] = []
        self.done: list[int] = []  # how many records had come when each was done

    def __call__(self, record: dict[str, Any]) -> None:
        self.records.append(record)
        if self._acts and self._acts[0][0](record):
            self.done.append(len(self.records))
            self._acts.pop(0)[1]()

    def texts(self) -> list[str]:
        return [record["text"] for record in self.records if record["kind"] == "warning"]

    def counts(self) -> list[int]:
        """The workers of each group that began."""
        return [record["count"] for record in self.records if record["kind"] == "workers"]

    def seconds_lost(self, act: int) -> float:
        """From an act to the first step that is further than any before it, or done anew; by the workers' clock."""
        before, after = self.records[: self.done[act]], self.records[self.done[act] :]
        begun = next(i for i, record in enumerate(after) if record["kind"] == "workers")
        at = next(record["time"] for record in after[begun:] if record["kind"] in ("tick", "point"))
        return float(at - before[-1]["time"])

    def ledger(self) -> tuple[Rows, list[tuple[int, int]]]:
        """The rows that count, and the steps that were done again: what a later group did stands for it."""
        group, rows, again = 0, {}, []
        done: dict[tuple[int, int], tuple[int, dict[int, list[int]]]] = {}
        for record in self.records:
            if record["kind"] == "workers":
                group += 1
            elif record["kind"] == "rows":
                step = (record["epoch"], record["step"])
                if step not in done or done[step][0] != group:
                    again += [step] if step in done else []
                    done[step] = (group, defaultdict(list))
                done[step][1][record["rank"]] = record["rows"]
        rows = {step: [row for part in parts.values() for row in part] for step, (_, parts) in sorted(done.items())}
        return rows, again


def in_epoch(epoch: int, after: int = 2) -> Callable[[dict[str, Any]], bool]:
    """Holds in the middle of it."""
    return lambda r: r["kind"] in ("tick", "point") and r["epoch"] >= epoch and r["step"] > after
