"""One small file for which several processes compete: it is put in the place of what one has seen there, or not at all.

On a disk this is exact: processes take turns, by a lock on a file beside it (`flock`, over NFS, too), which the system
releases however a process ends. Where the file system has no locks, and in object stores, to which Arrow makes no
conditional writes, the file is read once more, written, and after a while read back: of several that write at the same
moment the last one has it, and the others find that. Only one who stood still between reading and writing, for longer
than that while, may take it from one who thinks that he has it; who looks from time to time finds that, too.

All calls make one attempt and raise OSError.
"""

import fcntl
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipelines.location import Location

_TURN_SECONDS = 5.0  # a process that was stopped in its turn does not hold up the others for ever
_POLL_SECONDS = 0.02


@dataclass(frozen=True)
class Slot:
    place: Location

    def read(self) -> str | None:
        """None if there is no such file."""
        try:
            with self.place.filesystem.open_input_stream(self.place.path) as stream:
                return bytes(stream.read()).decode(errors="replace")
        except (FileNotFoundError, NotADirectoryError):
            return None

    def swap(self, before: str | None, after: str | None, settle_seconds: float = 0.0) -> bool:
        """Puts `after` in the place of `before` (None: no file), and says whether it is there. `settle_seconds`: the
        while, where turns cannot be taken."""
        with self._turn() as exact:
            if self.read() != before:
                return False
            self._put(after)
        if exact or not settle_seconds:
            return True
        time.sleep(settle_seconds)
        return self.read() == after

    @contextmanager
    def _turn(self) -> Iterator[bool]:
        """Alone, if the block is given True."""
        if self.place.disk is None:
            yield False
            return
        lock = self.place.disk.with_name(f".{self.place.name}.lock")
        lock.parent.mkdir(parents=True, exist_ok=True)
        with lock.open("ab") as file:
            yield _locked(file.fileno())  # released as it is closed

    def _put(self, content: str | None) -> None:
        if content is None:
            self.place.filesystem.delete_file(self.place.path)
        elif self.place.disk is not None:
            _replace(self.place.disk, content.encode())
        else:
            with self.place.filesystem.open_output_stream(self.place.path) as stream:
                stream.write(content.encode())


def _locked(file: int) -> bool:
    """False: this file system has no locks, or another process holds it and does nothing."""
    end = time.monotonic() + _TURN_SECONDS
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > end:
                return False
            time.sleep(_POLL_SECONDS)
        except OSError:
            return False


def _replace(path: Path, content: bytes) -> None:
    """Without waiting for the disk: what a power cut takes was of no use any more."""
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        aside.write_bytes(content)
        os.replace(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
