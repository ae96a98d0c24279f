"""Signals that end a run: Ctrl-C, and SIGTERM as of `kill`, `ray job stop` and Kubernetes."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


class Terminated(KeyboardInterrupt):
    """The polite end by SIGTERM."""


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
