"""Signals that end a run."""

import signal
import threading

import pytest

from cluster.interrupt import Stop, noted


@pytest.mark.parametrize(("number", "why"), [(signal.SIGINT, ""), (signal.SIGTERM, "SIGTERM")])
def test_a_first_signal_asks_a_second_one_for_haste_and_a_third_is_raised(number: signal.Signals, why: str) -> None:
    handled = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    before = [signal.getsignal(number) for number in handled]
    with noted() as stop:
        assert not stop.asked
        stop.heed()
        signal.raise_signal(number)
        assert (stop.asked, stop.at_once, stop.why) == (True, False, why)
        with pytest.raises(KeyboardInterrupt, match=f"^{why}$"):
            stop.heed()
        signal.raise_signal(signal.SIGTERM)
        assert (stop.asked, stop.at_once, stop.why) == (True, True, why)
        with pytest.raises(KeyboardInterrupt, match=f"^{why}$"):
            signal.raise_signal(signal.SIGINT)
    assert [signal.getsignal(number) for number in handled] == before


def test_a_pod_that_ends_asks_without_haste_whoever_else_asks() -> None:
    with noted() as stop:
        for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGUSR1):
            signal.raise_signal(number)
        assert (stop.asked, stop.at_once, stop.why) == (True, False, "its node is being taken away")
        signal.raise_signal(signal.SIGTERM)
        assert stop.at_once


def test_the_first_wish_is_why_it_ends_and_haste_is_never_taken_back() -> None:
    stop = Stop()
    stop.ask("the lease was lost", at_once=True)
    stop.ask("verydeep stop")
    assert (stop.asked, stop.at_once, stop.why) == (True, True, "the lease was lost")
    assert str(stop.error()) == "the lease was lost"


def test_after_another_wish_a_first_signal_does_not_hurry_it_but_a_second_one_does() -> None:
    with noted() as stop:
        stop.ask("verydeep stop")
        signal.raise_signal(signal.SIGTERM)
        assert (stop.at_once, stop.why) == (False, "verydeep stop")
        signal.raise_signal(signal.SIGTERM)
        assert (stop.at_once, stop.why) == (True, "verydeep stop")


def test_other_threads_which_get_no_signals_leave_the_handlers_alone() -> None:
    before, found = signal.getsignal(signal.SIGTERM), []

    def run() -> None:
        with noted() as stop:
            found.append((stop.asked, signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [(False, before)]
