"""The cost of a checkpoint, on a clock that the test moves."""

import itertools

import pytest

from cluster import checkpoint_cost
from cluster.checkpoint_cost import Cost


@pytest.mark.parametrize("odd", [0.0, 50.0])
def test_steps_before_at_and_after_a_checkpoint_are_told_apart(monkeypatch: pytest.MonkeyPatch, odd: float) -> None:
    now, left, steps = 0.0, 0.0, itertools.count()
    monkeypatch.setattr(checkpoint_cost.time, "perf_counter", lambda: now)

    def step() -> None:
        """10 s, half as much again while a checkpoint is being written, and once in a while much more."""
        nonlocal now, left
        now += 15 if left else 10
        left = max(0, left - 15)
        if next(steps) % 7 == 5:
            now += odd

    def save() -> None:
        nonlocal now, left
        now += 1
        left = 90

    def wait() -> None:
        nonlocal now, left
        now += left
        left = 0

    assert checkpoint_cost.measure(step, save, wait, checkpoints=9, between=4).normal == 10
    found = checkpoint_cost.measure(step, save, wait, checkpoints=9, between=4)
    assert (found.triggering, found.following) == (11, 15)
    assert found.written >= 11 + 4 * 15 + 30
    assert found.ratio == pytest.approx(1.1)


def test_a_checkpoint_that_is_written_in_place_is_all_in_its_step(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(checkpoint_cost.time, "perf_counter", lambda: now)

    def pass_time(seconds: float) -> None:
        nonlocal now
        now += seconds

    found = checkpoint_cost.measure(lambda: pass_time(2), lambda: pass_time(6), lambda: None, 3, 2)
    assert found == Cost(normal=2, triggering=8, following=2, written=12)
