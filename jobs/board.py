"""What is known of all nodes of a job, in a driver's threads or read from its storage: fed with records (see
`cluster.records`), drawn by `screen`, written by `status`."""

import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

from jobs.line import Line, Phase, heard, moved

if TYPE_CHECKING:  # a slow import
    from cluster.checkpoint import Epoch

VERSION = 1


@dataclass(frozen=True)
class Snapshot:
    """All of a board at the moment `now`. `where`: what the job runs on; `since`: when this run of it began."""

    job: str
    where: str
    since: float
    now: float
    lines: tuple[Line, ...]

    def plain(self) -> dict[str, Any]:
        """As values that JSON can hold."""
        content: dict[str, Any] = _SNAPSHOT.dump_python(self, mode="json")
        return {"version": VERSION, **content}

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> "Snapshot":
        """Of `plain`; what a later version knows beside it is left out. Raises ValueError: it is something else."""
        if not isinstance(plain, Mapping) or plain.get("version") not in range(1, VERSION + 1):
            raise ValueError("no board of this version")
        return _SNAPSHOT.validate_python({key: value for key, value in plain.items() if key != "version"})


_SNAPSHOT = TypeAdapter(Snapshot)


class Board:
    """The lines of a job in their order, for all threads."""

    def __init__(self, job: str = "", lines: Iterable[Line] = (), where: str = "", since: float | None = None) -> None:
        self._lock = threading.Lock()
        self._lines = {line.name: line for line in lines}
        self._job, self._where = job, where
        self._since = time.time() if since is None else since
        self._changes = 0

    @property
    def changes(self) -> int:
        """How often it has changed."""
        return self._changes

    def line(self, name: str) -> Line | None:
        return self._lines.get(name)

    def snapshot(self, now: float | None = None) -> Snapshot:
        with self._lock:
            lines = tuple(self._lines.values())
        return Snapshot(self._job, self._where, self._since, time.time() if now is None else now, lines)

    def plain(self, now: float | None = None) -> dict[str, Any]:
        """See `Snapshot.plain`."""
        return self.snapshot(now).plain()

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> "Board":
        """See `Snapshot.of`."""
        found = Snapshot.of(plain)
        return cls(found.job, found.lines, found.where, found.since)

    def runs_on(self, where: str) -> None:
        with self._lock:
            self._where = where
            self._changes += 1

    def hear(self, name: str, record: Mapping[str, Any], now: float | None = None) -> None:
        """Takes a record of the node `name`; of one that it does not know, a line is added."""
        at = time.time() if now is None else now
        with self._lock:
            line = self._lines.get(name) or Line(name, phase=Phase.RUNNING, since=at)
            self._lines[name] = heard(line, record, at)
            self._changes += 1

    def set(self, name: str, phase: Phase, reason: str = "", now: float | None = None) -> None:
        at = time.time() if now is None else now
        with self._lock:
            self._lines[name] = moved(self._lines.get(name) or Line(name), phase, reason, at)
            self._changes += 1

    def recall(self, name: str, done: "Sequence[Epoch]", epochs: int) -> None:
        """What earlier runs did of a stage of at most so many epochs, before it runs."""
        accuracies = [epoch.validation_accuracy for epoch in done]
        best = max(accuracies, default=None)
        with self._lock:
            self._lines[name] = replace(
                self._lines.get(name) or Line(name),
                epoch=len(done),
                epochs=epochs,
                validation_accuracy=best,
                best_epoch=0 if best is None else accuracies.index(best) + 1,
                seconds=sum(epoch.seconds for epoch in done),
            )
            self._changes += 1

    def begin(self, name: str, images: int, now: float | None = None) -> None:
        """The node `name` is going to look at so many images, beside those that it has looked at."""
        at = time.time() if now is None else now
        with self._lock:
            line = self._lines.get(name) or Line(name)
            running = line if line.phase is Phase.RUNNING else moved(line, Phase.RUNNING, "", at)
            self._lines[name] = replace(running, of_images=running.images + images, pace=None, mark=None)
            self._changes += 1

    def remove(self, name: str) -> None:
        with self._lock:
            self._lines.pop(name, None)
            self._changes += 1
