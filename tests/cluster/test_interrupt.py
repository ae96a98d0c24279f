"""Signals that end a run."""

import signal
import threading

import pytest

from cluster.interrupt import Terminated, interrupted, noted, raised


def test_a_first_signal_is_noted_and_a_second_one_raised() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with noted() as signalled:
        assert signalled() is None
        signal.raise_signal(signal.SIGTERM)
        assert signalled() == signal.SIGTERM
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


@pytest.mark.parametrize(("number", "polite"), [(signal.SIGINT, False), (signal.SIGTERM, True)])
def test_both_signals_interrupt_and_can_be_told_apart(number: signal.Signals, polite: bool) -> None:
    with raised(), pytest.raises(KeyboardInterrupt) as caught:
        signal.raise_signal(number)
    assert isinstance(caught.value, Terminated) == isinstance(interrupted(number), Terminated) == polite


def test_other_threads_which_get_no_signals_leave_the_handlers_alone() -> None:
    before, found = signal.getsignal(signal.SIGTERM), []

    def run() -> None:
        with noted() as signalled:
            found.append((signalled(), signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [(None, before)]
