"""Parts of a job at work in threads of the driver; the main thread, which gets the signals, waits for them."""

import queue
import threading
import time
from collections.abc import Callable


class Crew:
    def __init__(self) -> None:
        self._ended: queue.SimpleQueue[tuple[str, BaseException | None]] = queue.SimpleQueue()
        self._busy: dict[str, threading.Thread] = {}

    @property
    def busy(self) -> bool:
        return bool(self._busy)

    def start(self, name: str, work: Callable[[], None]) -> None:
        thread = threading.Thread(target=self._do, args=(name, work), name=name, daemon=True)
        self._busy[name] = thread
        thread.start()

    def ended(self, seconds: float) -> list[tuple[str, BaseException | None]]:
        """Those that have ended since the last call, each with its error, if it failed; waits so long at most for
        the first one."""
        found = []
        try:
            found.append(self._ended.get(timeout=seconds))
            while True:
                found.append(self._ended.get_nowait())
        except queue.Empty:
            pass
        for name, _ in found:
            self._busy.pop(name).join()
        return found

    def wait(self, seconds: float) -> None:
        """Until all have ended, so long at most."""
        deadline = time.monotonic() + seconds
        for thread in self._busy.values():
            thread.join(max(0.0, deadline - time.monotonic()))

    def _do(self, name: str, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:  # of whatever kind: the main thread judges
            self._ended.put((name, error))
        else:
            self._ended.put((name, None))
