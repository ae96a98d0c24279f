"""How a job stands, read from its storage: of the run that is going on, or of the last one."""

import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import Any

from jobs import status
from jobs.board import Snapshot
from jobs.line import Phase
from jobs.status import STATUS, Status
from pipelines.errors import ClusterError, DataError
from pipelines.location import Location

LOOK_SECONDS = 1.0
_MARGIN = timedelta(minutes=1)  # workers outlast their driver a little
_LOOK_STORE_SECONDS = 5.0  # in an object store, where a look costs money


class Standing(Enum):
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    STOPPED = "stopped"
    SILENT = "silent"  # it did not say how it ended: killed, say
    UNKNOWN = "unknown"  # the run wrote no status


@dataclass(frozen=True)
class Found:
    """`status`: None if the board is made of what else is stored, since the newest run wrote none."""

    standing: Standing
    board: Snapshot
    status: Status | None = None

    @property
    def exit_status(self) -> int:
        done = all(line.phase is Phase.DONE for line in self.board.lines)
        good = self.standing in (Standing.RUNNING, Standing.DONE) or (self.standing is Standing.UNKNOWN and done)
        return 0 if good else 1

    @property
    def text(self) -> str:
        """A line for people."""
        if self.status is None:
            return "no run of this job tells how it stands; this is what it has stored"
        driver, heard = self.status.driver, moment(self.status.written)
        if self.standing is Standing.RUNNING:
            return f"running on {driver}, since {moment(self.status.begun)}"
        if self.standing is Standing.SILENT:
            return f"not running: {driver} was last heard of on {heard}; `verydeep run` goes on where it stopped"
        why = self.status.ended.why if self.status.ended else ""
        return f"{self.standing.value} on {heard}" + (f": {why}" if why else "")

    def plain(self) -> dict[str, Any]:
        """As values that JSON can hold."""
        content = self.status.plain() if self.status else {"board": self.board.plain()}
        return {"standing": self.standing.value, **content}


def moment(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S} UTC"


def look(root: Location, patience_seconds: float) -> Found:
    """How the job in the folder `root` stands now. Whether it runs is known when its status changes, and that it does
    not when nothing changes for so long. Raises DataError or ClusterError."""
    first = status.read(root)
    if first is None:
        from jobs import stored_board  # slow import

        return Found(Standing.UNKNOWN, stored_board.read(root)[0])
    if first.ended is not None:
        return _newest(root, Found(Standing(first.ended.how), first.board, first))
    after = _next(root, first, patience_seconds)
    if after is None:
        return _newest(root, Found(Standing.SILENT, first.board, first))
    standing = Standing.RUNNING if after.ended is None else Standing(after.ended.how)
    return Found(standing, after.board, after)


def pause(root: Location) -> float:
    """Seconds between two looks."""
    return LOOK_SECONDS if root.disk is not None else _LOOK_STORE_SECONDS


def _next(root: Location, first: Status, patience_seconds: float) -> Status | None:
    """The one that comes after it; None if none does."""
    began, told = time.monotonic(), False
    while time.monotonic() - began < patience_seconds:
        time.sleep(pause(root) / 2)
        found = status.read(root)
        if found is not None and (found.begun, found.counter) != (first.begun, first.counter):
            return found
        if not told and time.monotonic() - began > 3 * LOOK_SECONDS:
            told = True
            print(f"looking for up to {patience_seconds:.0f} s whether it runs", file=sys.stderr, flush=True)
    return None


def _newest(root: Location, found: Found) -> Found:
    """What was found, or what is stored if that is newer: of a run that writes no status, such as one of an earlier
    version of the program. Both times are those of the storage."""
    from jobs import stored_board  # slow import

    try:
        board, changed = stored_board.read(root)
        written = (root / STATUS).changed()
    except (ClusterError, DataError, OSError):  # the status alone tells enough
        return found
    newer = changed is not None and written is not None and changed > written + _MARGIN
    return Found(Standing.UNKNOWN, board) if newer else found
