"""The stopwatch against a clock that the test moves."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cluster import stopwatch
from cluster.stopwatch import PARTS, Stopwatch

CPU = torch.device("cpu")


class Clock:
    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        patch.setattr(stopwatch.time, "perf_counter", lambda: self.now)

    def fail_after(self, seconds: float) -> None:
        self.now += seconds
        raise OSError("the disk is on fire")


@given(
    st.lists(st.lists(st.tuples(st.sampled_from((*PARTS, "outside")), st.integers(0, 100)), max_size=20), max_size=4)
)
def test_each_reading_adds_up_the_blocks_since_the_one_before_and_the_time_between_them(
    readings: list[list[tuple[str, int]]],
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        clock = Clock(patch)
        watch = Stopwatch(CPU)
        for blocks in readings:
            for part, seconds in blocks:
                if part == "outside":
                    clock.now += seconds
                else:
                    with watch(part):
                        clock.now += seconds
            reading = watch.read()
            assert reading.parts == {part: sum(s for p, s in blocks if p == part) for part in PARTS}
            assert reading.seconds == sum(seconds for _, seconds in blocks)


def test_a_block_that_fails_is_counted_and_lets_its_error_through() -> None:
    with pytest.MonkeyPatch.context() as patch:
        clock = Clock(patch)
        watch = Stopwatch(CPU)
        with pytest.raises(OSError, match="the disk is on fire"), watch("input"):
            clock.fail_after(2)
        assert watch.read().parts["input"] == 2


def test_a_block_that_is_read_in_the_middle_counts_on_both_sides() -> None:
    with pytest.MonkeyPatch.context() as patch:
        clock = Clock(patch)
        watch = Stopwatch(CPU)
        with watch("report"):
            clock.now += 2
            first = watch.read()
            clock.now += 3
        second = watch.read()
    assert [(r.parts["report"], r.seconds) for r in (first, second)] == [(2, 2), (3, 3)]


def test_a_part_that_does_not_exist_is_refused() -> None:
    with pytest.raises(KeyError, match="forwards"):
        Stopwatch(CPU)("forwards")


def test_a_reading_holds_the_processor_time_of_the_process() -> None:
    watch = Stopwatch(CPU)
    while watch._cpu_since + 0.02 > stopwatch.time.process_time():
        pass
    before = stopwatch.time.process_time()
    assert watch.read().cpu_seconds >= 0.02
    assert watch.read().cpu_seconds <= stopwatch.time.process_time() - before


def test_blocks_wait_for_the_device_only_if_told_to(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    cuda = torch.device("cuda", 0)
    for watch in (Stopwatch(cuda), Stopwatch(CPU, synchronise=True), Stopwatch(cuda, synchronise=True)):
        with watch("forward"):
            pass
    assert waited == [cuda]
