"""Contenders of known CPU time for the tests of the measuring; they import little, as their processes import them."""

import multiprocessing
import os
import threading
import time
from typing import Any


def burn(seconds: float) -> None:
    """Uses this much CPU time of the calling thread."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


class Burner:
    """Burns CPU time: in its process, in a child of it, and after the round has returned."""

    def __init__(self, here: float, child: float, after: float) -> None:
        self._here, self._after = here, after
        self._child = multiprocessing.get_context("fork").Pool(1) if child else None
        self._child_seconds = child

    def round(self) -> int:
        burn(self._here)
        if self._child is not None:
            self._child.apply(burn, (self._child_seconds,))
        threading.Thread(target=burn, args=(self._after,)).start()
        return 10

    def facts(self) -> dict[str, Any]:
        return {"rounds": self.round()}

    def close(self) -> None:
        if self._child is not None:
            self._child.terminate()


def failing() -> Burner:
    raise OSError("the disk is on fire\nand more")


def exiting(status: int) -> Burner:
    os._exit(status)
