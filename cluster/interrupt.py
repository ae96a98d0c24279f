"""The wish that a run ends, and the signals that express it: Ctrl-C, SIGTERM as of `kill` and `ray job stop`, and
SIGUSR1, by which a pod that is being ended asks (`leave`)."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Stop:
    """The wish that a run ends, which signals, `verydeep stop` and a lost lease express; all threads of a driver share
    it. `asked`: with a checkpoint. `at_once`: without waiting for one. `why`: for people."""

    def __init__(self) -> None:
        self.asked = self.at_once = False
        self.why = ""

    def ask(self, why: str = "", at_once: bool = False) -> None:
        """What was asked first is why it ends; `at_once` may be asked for later."""
        if not self.asked:
            self.why = why
        self.at_once = self.at_once or at_once
        self.asked = True

    def error(self) -> KeyboardInterrupt:
        """What work that it ends raises."""
        return KeyboardInterrupt(self.why) if self.why else KeyboardInterrupt()

    def heed(self) -> None:
        """Raises what work that it ends raises, if it is asked for."""
        if self.asked:
            raise self.error()


@contextmanager
def noted(stop: Stop | None = None) -> Iterator[Stop]:
    """The first signal asks for a stop, a second one for one at once; a third raises KeyboardInterrupt, in case that
    nothing heeds the wish. SIGUSR1 asks for a stop however often it comes: who sends it may not be the only one that
    asks. To be entered in the main thread, after Ray has started, which has handlers of its own."""
    stop, came = stop or Stop(), []

    def note(number: int, frame: FrameType | None) -> None:
        del frame
        if number == signal.SIGUSR1:
            stop.ask("its node is being taken away")
            return
        came.append(number)
        if len(came) > 2:
            raise stop.error()
        stop.ask("" if number == signal.SIGINT else signal.Signals(number).name, at_once=len(came) > 1)

    with _handled(note):
        yield stop


@contextmanager
def _handled(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # which is the one that gets signals
        yield
        return
    before = {number: signal.signal(number, handler) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, action in before.items():
            signal.signal(number, action)
