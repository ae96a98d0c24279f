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


class Gpu:
    """One that works off what it is given: `launch` some seconds of it; the program's own time passes by `clock`."""

    def __init__(self, clock: Clock, patch: pytest.MonkeyPatch) -> None:
        self.clock, self.free = clock, 0.0
        patch.setattr(torch.cuda, "Event", lambda enable_timing: Event(self))
        patch.setattr(torch.cuda, "current_stream", lambda device: device)

    def launch(self, seconds: float) -> None:
        self.free = max(self.free, self.clock.now) + seconds


class Event:
    def __init__(self, gpu: Gpu) -> None:
        self.gpu, self.at = gpu, 0.0

    def record(self, stream: object) -> None:
        self.at = max(self.gpu.free, self.gpu.clock.now)

    def synchronize(self) -> None:
        self.gpu.clock.now = max(self.gpu.clock.now, self.at)

    def elapsed_time(self, other: "Event") -> float:
        return 1000 * (other.at - self.at)


def test_on_a_gpu_the_parts_are_the_devices_time() -> None:
    """Of a program that runs ahead of it, and then waits for images while the device has nothing to do."""
    with pytest.MonkeyPatch.context() as patch:
        clock = Clock(patch)
        gpu, watch = Gpu(clock, patch), Stopwatch(torch.device("cuda", 0))
        for waiting in (0.0, 3.0, 15.0):
            with watch("input"):
                clock.now += waiting
            with watch("forward"):
                clock.now += 1
                gpu.launch(4)
            with watch("backward"):
                clock.now += 1
                gpu.launch(8)
        reading = watch.read()
    # The first batch is there at once, and nothing is ahead of the first forward pass. The second one's images come at
    # 2 + 3, while the device is busy until 13. The third one's come at 7 + 15 = 22; it is busy until 25.
    assert reading.parts == {**dict.fromkeys(PARTS, 0), "forward": 1 + 3 * 4, "backward": 3 * 8}
    assert reading.seconds == 37


def test_on_a_gpu_what_the_device_waits_for_is_input() -> None:
    with pytest.MonkeyPatch.context() as patch:
        clock = Clock(patch)
        gpu, watch = Gpu(clock, patch), Stopwatch(torch.device("cuda", 0))
        for _ in range(3):
            with watch("forward"):
                gpu.launch(4)
            with watch("input"):
                clock.now += 6
        reading = watch.read()
    assert reading.parts["input"] == 3 * 2
    assert reading.parts["forward"] == 3 * 4
    assert reading.seconds == 18
