"""A journal of calls that are still to be delivered to MLflow: JSON lines in a folder of the job.

Each attempt at a job has a file of its own, whose lines are appended whole; how many bytes of it have been delivered
is noted in ATTEMPT.taken. A process that is killed loses no line that was appended. After a loss
of power the last seconds may be missing; a line that is torn then is none. A file whose lines are all delivered is
removed; what an earlier attempt left is delivered before anything new.

Of a job in an object store the newest attempt's file lies on the driver's own disk, and is copied into the store as
long as lines wait.
"""

import json
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

from pipelines.location import Location

SPOOL = "spool"  # the folder's name
_LINES, _TAKEN = ".jsonl", ".taken"
_COPY_SECONDS = 30.0
_READ_BYTES = 1 << 20

Call = Mapping[str, Any]


@dataclass(frozen=True)
class Waiting:
    """Calls that were read, and the position behind them."""

    calls: list[Call]
    end: int


class Journal:
    """One attempt's lines. To be appended to from any thread, and read by one."""

    def __init__(self, folder: Location, name: str, path: Path, end: int) -> None:
        """Of a file that is on this machine as `path`. `end`, from then on `taken`: its bytes that are delivered."""
        self.name = name
        self._folder, self._path, self.taken = folder, path, end
        self._lock = threading.Lock()
        self._stream: Any = None
        self._copied_at, self._copied = time.monotonic(), -1

    @classmethod
    def new(cls, folder: Location) -> "Journal":
        """Raises OSError."""
        name = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{uuid4().hex[:8]}"
        place = folder.disk
        if place is None:
            return cls(folder, name, Path(tempfile.mkdtemp(prefix="verydeep-"), f"{name}{_LINES}"), 0)
        place.mkdir(parents=True, exist_ok=True)
        return cls(folder, name, place / f"{name}{_LINES}", 0)

    def append(self, call: Call) -> None:
        """Raises OSError."""
        line = json.dumps(call, separators=(",", ":")).encode() + b"\n"
        with self._lock:
            if self._stream is None:
                self._stream = self._path.open("ab", buffering=0)
            self._stream.write(line)

    def read(self) -> Waiting:
        """The next calls, as many as lie within a megabyte. Raises OSError."""
        if not self._path.exists():
            return Waiting([], self.taken)
        with self._path.open("rb") as stream:
            stream.seek(self.taken)
            found = stream.read(_READ_BYTES)
            while b"\n" not in found and (more := stream.read(_READ_BYTES)):
                found += more
        whole = found[: found.rfind(b"\n") + 1]
        return Waiting([call for line in whole.splitlines() for call in _call(line)], self.taken + len(whole))

    def take(self, end: int) -> None:
        """All before the position `end` is delivered. Raises OSError."""
        self.taken = end
        if self._folder.disk is not None:
            self._path.with_suffix(_TAKEN).write_text(str(end))

    @property
    def waiting_bytes(self) -> int:
        return self._path.stat().st_size - self.taken if self._path.exists() else 0

    def copy(self, now: bool = False) -> None:
        """To the object store, if it belongs there, and something waits. Raises OSError."""
        if self._folder.disk is not None or not (now or time.monotonic() - self._copied_at > _COPY_SECONDS):
            return
        self._copied_at = time.monotonic()
        place = self._folder / f"{self.name}{_LINES}"
        if self.waiting_bytes == 0:
            if self._copied >= 0:
                place.delete()
            self._copied = -1
        elif (size := self._path.stat().st_size) != self._copied:
            with self._path.open("rb") as stream:
                stream.seek(self.taken)
                place.write(stream.read())
            self._copied = size

    def close(self) -> None:
        """What is delivered is removed. Raises OSError."""
        with self._lock:
            if self._stream is not None:
                self._stream.close()
                self._stream = None
        self.copy(now=True)
        if self.waiting_bytes == 0:
            self._path.with_suffix(_TAKEN).unlink(missing_ok=True)
            self._path.unlink(missing_ok=True)
            if self._folder.disk is None:
                (self._folder / f"{self.name}{_LINES}").delete()


def _call(line: bytes) -> Iterator[Call]:
    """None of a line that is damaged."""
    try:
        content = json.loads(line)
    except ValueError:
        return
    if isinstance(content, dict):
        yield content


def left(folder: Location) -> list[Journal]:
    """What earlier attempts have not delivered, the oldest first. Raises OSError."""
    names = sorted(name.removesuffix(_LINES) for name in folder.files() if name.endswith(_LINES))
    return [_left(folder, name) for name in names]


def _left(folder: Location, name: str) -> Journal:
    place = folder.disk
    if place is None:
        path = Path(tempfile.mkdtemp(prefix="verydeep-"), f"{name}{_LINES}")
        path.write_bytes(bytes((folder / f"{name}{_LINES}").read()))
        return Journal(folder, name, path, 0)
    path = place / f"{name}{_LINES}"
    try:
        taken = int(path.with_suffix(_TAKEN).read_text())
    except (OSError, ValueError):
        taken = 0
    return Journal(folder, name, path, taken if taken <= path.stat().st_size else 0)
