"""runs/JOB/status.json: a job's board in its storage while it runs, and how it ended, for who watches from elsewhere.

A counter rises with every write, one of which comes every BEAT_SECONDS at least: by it others see that the driver is
alive, whatever their clocks say.
"""

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import TypeAdapter

from jobs.board import Board, Snapshot
from jobs.holder import ray_job
from jobs.line import Phase
from pipelines.errors import ClusterError, DataError, first_line
from pipelines.location import Location

STATUS = "status.json"
VERSION = 1
BEAT_SECONDS = 10.0
_DISK_SECONDS = 2.0  # between two writes if something has changed; in an object store BEAT_SECONDS
_LAST_SECONDS = 10.0  # that the last write may take


@dataclass(frozen=True)
class Driver:
    """The process that runs a job. `ray_job`: the submission id of the Ray job that it is."""

    host: str
    pid: int
    ray_job: str | None = None

    @classmethod
    def here(cls) -> "Driver":
        return cls(socket.gethostname(), os.getpid(), ray_job())

    def __str__(self) -> str:
        return f"{self.host}, process {self.pid}" + (f", Ray job {self.ray_job}" if self.ray_job else "")


@dataclass(frozen=True)
class Ended:
    """How a run of a job ended, and why."""

    how: Literal["done", "failed", "stopped"]
    why: str = ""


@dataclass(frozen=True)
class Status:
    """What is in the file. Times by the driver's clock, in seconds since 1970."""

    driver: Driver
    begun: float
    counter: int
    written: float
    ended: Ended | None
    board: Snapshot

    def plain(self) -> dict[str, Any]:
        """As values that JSON can hold."""
        content: dict[str, Any] = _STATUS.dump_python(self, mode="json")
        return {"version": VERSION, **content, "board": self.board.plain()}

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> "Status":
        """Of `plain`, from this version or an earlier one. Raises ValueError: it is something else."""
        if not isinstance(plain, Mapping) or plain.get("version") not in range(1, VERSION + 1):
            raise ValueError("no status of this version")
        content = {key: value for key, value in plain.items() if key not in ("version", "board")}
        return _STATUS.validate_python({**content, "board": Snapshot.of(plain.get("board", {}))})


_STATUS = TypeAdapter(Status)


def read(root: Location) -> Status | None:
    """Of the job in the folder `root`; None if there is none. Raises ClusterError: the storage cannot be read;
    DataError: the file is damaged, or of a later version."""
    place = root / STATUS
    try:
        text = bytes(place.read()).decode(errors="replace")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise ClusterError(f"storage: {place} cannot be read: {error.strerror or first_line(error)}") from error
    try:
        return Status.of(json.loads(text))
    except ValueError as error:
        raise DataError(f"{place}: damaged, or of a later version of the program") from error


@contextmanager
def published(
    board: Board, root: Location, warn: Callable[[str], None], silent: Callable[[], bool] = lambda: False
) -> Iterator[None]:
    """While the block lasts, what is known is in the storage, and in the end how the block ended. A storage that fails
    is warned of once. Nothing is written while `silent` says so."""
    publisher = _Publisher(board, root, warn, silent)
    publisher.start()
    ended = Ended("failed")
    try:
        yield
        failed = [line.name for line in board.snapshot().lines if line.phase is Phase.FAILED]
        ended = Ended("failed", f"{', '.join(failed)} failed") if failed else Ended("done")
    except KeyboardInterrupt:
        ended = Ended("stopped", "interrupted")
        raise
    except BaseException as error:
        ended = Ended("failed", first_line(error))
        raise
    finally:
        publisher.end(ended)


class _Publisher:
    """A thread that writes."""

    def __init__(self, board: Board, root: Location, warn: Callable[[str], None], silent: Callable[[], bool]) -> None:
        self._silent = silent
        self._board, self._place, self._warn = board, root / STATUS, warn
        self._driver, self._begun = Driver.here(), time.time()
        self._counter, self._seen, self._written = 0, -1, 0.0
        self._ended: Ended | None = None
        self._over = threading.Event()
        self._failed = False
        self._thread = threading.Thread(target=self._keep, name="status", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def end(self, ended: Ended) -> None:
        """Writes for the last time."""
        self._ended = ended
        self._over.set()
        self._thread.join(_LAST_SECONDS)

    def _keep(self) -> None:
        pause = BEAT_SECONDS if self._place.disk is None else _DISK_SECONDS
        self._write()
        while not self._over.wait(pause):
            if self._board.changes != self._seen or time.monotonic() - self._written >= BEAT_SECONDS:
                self._write()
        self._write()

    def _write(self) -> None:
        if self._silent():
            return
        self._seen, self._written = self._board.changes, time.monotonic()
        self._counter += 1
        now = time.time()
        status = Status(self._driver, self._begun, self._counter, now, self._ended, self._board.snapshot(now))
        try:
            self._place.write((json.dumps(status.plain(), indent=1) + "\n").encode(), once=True)
        except OSError as error:  # the next one may succeed
            if not self._failed:
                self._warn(f"warning: {self._place} cannot be written: {error.strerror or first_line(error)}")
            self._failed = True
