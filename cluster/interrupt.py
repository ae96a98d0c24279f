"""Signals that end a run: Ctrl-C, and SIGTERM as of `kill`, `ray job stop` and Kubernetes."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


class Terminated(KeyboardInterrupt):
    """The polite end by SIGTERM."""


class Stop:
    """The wish that a run ends, which signals, `verydeep stop` and a lost lease express; all threads of a driver share
    it. `asked`: with a checkpoint. `at_once`: without waiting for one. `why`: for people."""

    def __init__(self) -> None:
        self.asked = self.at_once = False
        self.why = ""
        self._number: int | None = None

    def ask(self, why: str = "", number: int | None = None, at_once: bool = False) -> None:
        """`number`: of a signal. What was asked first is what it ends as; `at_once` may be asked for later."""
        if not self.asked:
            self.why, self._number = why, number
        self.at_once = self.at_once or at_once
        self.asked = True

    def error(self) -> KeyboardInterrupt:
        """What work that it ends raises."""
        return interrupted(self._number) if self._number is not None else KeyboardInterrupt()


@contextmanager
def raised() -> Iterator[None]:
    """Either signal raises KeyboardInterrupt. To be entered after Ray has started, which has handlers of its own."""
    with _handled(_raise):
        yield


@contextmanager
def noted() -> Iterator[Callable[[], int | None]]:
    """The first signal's number is noted, for the block to ask for; a second one raises KeyboardInterrupt."""
    seen: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if seen:
            _raise(number, frame)
        seen.append(number)

    with _handled(note):
        yield lambda: seen[0] if seen else None


def interrupted(number: int) -> KeyboardInterrupt:
    return Terminated() if number == signal.SIGTERM else KeyboardInterrupt()


def _raise(number: int, frame: FrameType | None) -> None:
    del frame
    raise interrupted(number)


@contextmanager
def _handled(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # which is the one that gets signals
        yield
        return
    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, action in before.items():
            signal.signal(number, action)
