"""Ends a process that hangs, so that the run can go on without it."""

import faulthandler
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from types import FrameType

_LOOK_SECONDS = 1.0
_GAPS = 5  # times the longest step so far, if that is more than the limit


class Watchdog:
    """`beat` is called at every step. After `seconds` without one, `tell` gets the place and the process ends.

    A step that takes long because it always does, on few slow cores, moves the limit. Threads that keep the
    interpreter's lock keep this thread from looking, too: then faulthandler, which needs no lock, ends the process.
    """

    def __init__(self, seconds: float, tell: Callable[[str], None], end: Callable[[int], object] = os._exit) -> None:
        self._limit, self._tell, self._end = seconds, tell, end
        self._watched = threading.get_ident()
        self._last, self._longest, self._beaten = time.monotonic(), 0.0, False
        self._closed = threading.Event()
        self._arm()
        self._thread = threading.Thread(target=self._look, name="watchdog", daemon=True)
        self._thread.start()

    def beat(self) -> None:
        now = time.monotonic()
        if self._beaten:  # not what it took to begin
            self._longest = max(self._longest, now - self._last)
        self._last, self._beaten = now, True

    def close(self) -> None:
        self._closed.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._closed.wait(min(_LOOK_SECONDS, self._limit / 4)):
            limit = self._arm()
            silent = time.monotonic() - self._last
            if silent > limit:
                self._tell(f"no step for {silent:.0f} s; it hangs in {_place(sys._current_frames()[self._watched])}")
                self._end(1)
        faulthandler.cancel_dump_traceback_later()

    def _arm(self) -> float:
        """Winds faulthandler's clock up again, before it strikes. Returns the limit."""
        limit = max(self._limit, _GAPS * self._longest)
        faulthandler.dump_traceback_later(limit + _LOOK_SECONDS, exit=True, file=2)
        return limit


def _place(frame: FrameType) -> str:
    """Where a thread is: `function (file:line)`, of this project's code the innermost."""
    stack = traceback.extract_stack(frame)
    ours = [entry for entry in stack if "site-packages" not in entry.filename and "/lib/python" not in entry.filename]
    entry = (ours or stack)[-1]
    return f"{entry.name} ({os.path.basename(entry.filename)}:{entry.lineno})"
