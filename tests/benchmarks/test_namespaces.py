"""What is left of network namespaces, where there is root and iproute2."""

import signal
import subprocess
from collections.abc import Iterator

import pytest

from benchmarks import namespaces
from pipelines.errors import BenchError

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def there(name: str) -> bool:
    done = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True)
    return name in {line.split()[0] for line in done.stdout.splitlines()}


@pytest.fixture
def can_be_linked() -> None:
    if (reason := namespaces.refusal()) is not None:
        pytest.skip(reason)


@pytest.fixture
def handlers() -> Iterator[None]:
    """Of signals, which have to be the same ones afterwards."""
    before = [signal.getsignal(number) for number in ENDING]
    yield
    assert [signal.getsignal(number) for number in ENDING] == before


@pytest.mark.usefixtures("can_be_linked", "handlers")
@pytest.mark.parametrize("number", ENDING, ids=lambda number: number.name)
def test_nothing_is_left_by_a_signal_whatever_comes_after_it(number: signal.Signals) -> None:
    run, seen = [], []

    def body() -> None:
        with namespaces.links(1) as made:
            run.append(made)
            assert there(made.bridge)
            try:
                signal.raise_signal(number)
            finally:
                for other in ENDING:  # in the middle of what is put in order
                    signal.raise_signal(other)
                    seen.append(other)

    with pytest.raises(KeyboardInterrupt if number == signal.SIGINT else SystemExit) as ended:
        body()
    if number != signal.SIGINT:
        assert isinstance(ended.value, SystemExit)
        assert ended.value.code == 128 + number
    assert seen == list(ENDING)
    assert not there(run[0].bridge)
    assert not there(run[0].namespace(0))


@pytest.mark.usefixtures("can_be_linked", "handlers")
def test_signals_while_it_removes_after_a_good_end_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    run = subprocess.run

    def disturbed(command: list[str], **options: object) -> object:
        if "delete" in command:
            for number in ENDING:
                signal.raise_signal(number)
        return run(command, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(subprocess, "run", disturbed)
    with namespaces.links(1) as made:
        pass
    assert not there(made.bridge)
    assert not there(made.namespace(0))


@pytest.mark.usefixtures("handlers")
def test_a_signal_that_was_ignored_before_stays_so() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with namespaces._ending_once():
            signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("can_be_linked")
def test_what_another_run_has_made_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even under the same name, which a token makes as good as impossible."""
    with namespaces.links(1) as made:
        token = made.run.rpartition("-")[2]
        monkeypatch.setattr(namespaces.secrets, "token_hex", lambda _: token)
        with pytest.raises(BenchError, match=r"ip netns add verydeep-.*File exists"), namespaces.links(1):
            pass
        assert there(made.bridge)
        assert there(made.namespace(0))
    assert not there(made.bridge)
    with namespaces.links(1) as first:
        monkeypatch.undo()
        with namespaces.links(1) as second:
            assert first.run != second.run
