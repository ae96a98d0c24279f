"""Journals of what MLflow is to be told: a line of JSON for each call, there before the call returns.

A journal is what one process wrote: `ATTEMPT.jsonl`, whose first line says for which server and experiment it is, and
beside it `ATTEMPT.done`, the bytes of it that have been delivered. It is deleted when that is all of it; what a process
leaves, the next one delivers. Names rise with time. A line is in the system's hands when `append` returns, so that the
end of a process loses none; a power cut may lose the last second. Of an object store the journal is a temporary file of
this machine, whose undelivered rest is copied into the folder from time to time, and at the end.
"""

import fcntl
import json
import os
import tempfile
import threading
import time
import uuid
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipelines.location import Location

_SUFFIX, _MARK = ".jsonl", ".done"
_COPY_SECONDS, _COPY_SHARE = 30.0, 0.02  # between copies into an object store; of the time, for such copies
_PIECE_BYTES = 4 << 20

Call = dict[str, Any]  # `do` says what; JSON values


@dataclass(frozen=True)
class Line:
    """A call, and the position in its journal behind it, in bytes."""

    call: Call
    end: int


class Reader:
    """What of a journal has not been delivered yet, in order. Lines that are not whole are passed over: the process
    ended, or the disk was full, while they were written."""

    def __init__(self, file: Path) -> None:
        """Raises OSError."""
        self.file = file
        self._mark = file.with_suffix(_MARK)
        with file.open("rb") as stream:
            first = stream.readline()
        head = _parsed(first) or {}
        self.uri, self.experiment = str(head.get("uri", "")), str(head.get("experiment", ""))
        self._first = len(first)
        self.done = self._first
        with suppress(OSError, ValueError):
            self.done = max(self._first, int(self._mark.read_text()))

    @property
    def attempt(self) -> str:
        return self.file.stem

    def next(self, most: int = 2000) -> list[Line]:
        """The first lines that wait."""
        lines: list[Line] = []
        end = self.done
        with self.file.open("rb") as stream:
            stream.seek(end)
            content = stream.read(_PIECE_BYTES)
            if b"\n" not in content:
                content += stream.readline()
        for text in content.splitlines(keepends=True):
            if len(lines) == most or not text.endswith(b"\n"):
                break
            end += len(text)
            if (call := _parsed(text)) is not None:
                lines.append(Line(call, end))
        if not lines:
            self.done = end
        return lines

    def lines(self) -> Iterator[Line]:
        """All that wait."""
        reader = Reader(self.file)
        reader.done = self.done
        while lines := reader.next():
            yield from lines
            reader.done = lines[-1].end

    def delivered(self, line: Line) -> None:
        """It, and all before it."""
        self.done = line.end
        with suppress(OSError):  # a stale number is of no harm: what is delivered again changes nothing
            self._mark.write_text(str(line.end))

    def rewind(self) -> None:
        """For another server: all lines wait again, those too that are delivered, as far as they are still there."""
        self.done = self._first

    def waiting(self) -> int:
        """How many lines."""
        with self.file.open("rb") as stream:
            stream.seek(self.done)
            return sum(piece.count(b"\n") for piece in iter(lambda: stream.read(_PIECE_BYTES), b""))

    def rest(self) -> bytes:
        """A journal of what waits."""
        with self.file.open("rb") as stream:
            head = stream.readline()
            stream.seek(self.done)
            return head + stream.read()

    def remove(self) -> None:
        self.file.unlink(missing_ok=True)
        self._mark.unlink(missing_ok=True)


class Journal:
    """That of this process, which alone holds it. `append` may be called by any thread."""

    def __init__(self, folder: Location, uri: str, experiment: str) -> None:
        """Raises OSError: it cannot be written."""
        self._name = f"{datetime.now(UTC):%Y%m%dT%H%M%S.%f}-{uuid.uuid4().hex[:6]}{_SUFFIX}".replace(".", "-", 1)
        self._temporary = tempfile.TemporaryDirectory(prefix="verydeep-") if folder.disk is None else None
        self._copy = None if folder.disk is not None else folder / self._name
        self._copied, self._copy_at = (0, 0), time.monotonic() + _COPY_SECONDS
        place = folder.disk or Path(self._temporary.name if self._temporary else "")
        place.mkdir(parents=True, exist_ok=True)
        file = place / self._name
        self._stream = os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND, 0o644)
        _lock(self._stream)
        self._appending = threading.Lock()
        self._torn = self._unflushed = self._closed = False
        self._write({"uri": uri, "experiment": experiment})
        self.reader = Reader(file)
        self.size = self.reader.done

    def append(self, call: Call) -> None:
        """Raises OSError: the disk is full, say; nothing of it is there then."""
        with self._appending:
            if self._closed:
                raise OSError("it is closed")
            self.size += self._write(call)

    def _write(self, call: Call) -> int:
        text = b"\n" * self._torn + json.dumps(call).encode() + b"\n"
        self._torn = True
        written = os.write(self._stream, text)
        if written < len(text):
            self.size += written
            raise OSError("the disk is full")
        self._torn, self._unflushed = False, True
        return written

    @property
    def empty(self) -> bool:
        """All is delivered."""
        return self.reader.done >= self.size

    def keep(self, now: bool = False) -> None:
        """Safe from a power cut, or from the loss of this machine. Raises OSError."""
        if self._copy is None:
            if self._unflushed:
                self._unflushed = False
                os.fdatasync(self._stream)
        elif now or time.monotonic() > self._copy_at:
            began, state = time.monotonic(), (self.reader.done, self.size)
            if self.empty:
                self._copy.delete()
            elif state != self._copied:
                self._copy.write(self.reader.rest())
            self._copied, ended = state, time.monotonic()
            self._copy_at = ended + max(_COPY_SECONDS, (ended - began) / _COPY_SHARE)

    def close(self) -> None:
        """Nothing of it stays if all is delivered. Raises OSError."""
        try:
            self.keep(now=True)
        finally:
            if self._temporary is not None or not self.reader.waiting():
                self.reader.remove()
            with self._appending:
                self._closed = True
                os.close(self._stream)
            if self._temporary is not None:
                self._temporary.cleanup()


@contextmanager
def left(folder: Location, but: Collection[str] = ()) -> Iterator[list[Reader]]:
    """The journals of processes that are gone, oldest first; they are nobody else's during the block. Those that are
    all delivered after it are deleted. `but`: names of one's own. Raises OSError."""
    with ExitStack() as stack:
        if folder.disk is not None:
            files = [
                folder.disk / name for name in sorted(folder.files()) if name.endswith(_SUFFIX) and name not in but
            ]
            stack.callback(_sweep, folder.disk)
            yield [_held(stack, file) for file in files if _free(stack, file)]
            return
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="verydeep-")))
        readers = []
        for name, place in sorted(folder.files().items()):
            if name.endswith(_SUFFIX) and name not in but:
                (scratch / name).write_bytes(place.read())
                readers.append(Reader(scratch / name))
                stack.callback(_store, readers[-1], place, readers[-1].done)
        yield readers


def running(folder: Location) -> bool:
    """Whether a process of this machine, or of one that shares the disk and its locks, is at a journal in it. Raises
    OSError."""
    if folder.disk is None:
        return False
    with ExitStack() as stack:
        files = [folder.disk / name for name in folder.files() if name.endswith(_SUFFIX)]
        return any(not _free(stack, file) and file.exists() for file in files)


def _held(stack: ExitStack, file: Path) -> Reader:
    reader = Reader(file)
    stack.callback(lambda: None if reader.waiting() else reader.remove())
    return reader


def _store(reader: Reader, place: Location, before: int) -> None:
    """What still waits, in the object's place."""
    if not reader.waiting():
        place.delete()
    elif reader.done > before:
        place.write(reader.rest())


def _free(stack: ExitStack, file: Path) -> bool:
    """Whether no process holds it; it is held until the stack is unwound."""
    try:
        opened = os.open(file, os.O_RDWR)
    except FileNotFoundError:  # delivered meanwhile
        return False
    stack.callback(os.close, opened)
    return _lock(opened) and os.fstat(opened).st_nlink > 0


def _lock(opened: int) -> bool:
    """The system gives it back when the process ends, however it ends."""
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks: the job's lease has to do
        pass
    return True


def _sweep(folder: Path) -> None:
    """Marks without a journal, and the folder if nothing is in it."""
    for mark in folder.glob(f"*{_MARK}"):
        if not mark.with_suffix(_SUFFIX).exists():
            mark.unlink(missing_ok=True)
    with suppress(OSError):
        folder.rmdir()


def _parsed(text: bytes) -> Call | None:
    try:
        call = json.loads(text)
    except ValueError:
        return None
    return call if isinstance(call, dict) else None
