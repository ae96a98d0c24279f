"""What a checkpoint costs the steps around it, whatever takes the steps and writes it."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True)
class Cost:
    """Median seconds: of a `normal` step, of one that triggers a checkpoint (`triggering`), of a step right after that,
    while the checkpoint may still be on its way (`following`), and from the trigger until it is `written`."""

    normal: float
    triggering: float
    following: float
    written: float

    @property
    def ratio(self) -> float:
        """Of a step that triggers a checkpoint to a normal one."""
        return self.triggering / self.normal


def measure(
    step: Callable[[], None], save: Callable[[], None], wait: Callable[[], None], checkpoints: int, between: int
) -> Cost:
    """`step`: takes one, and returns when the device is done with it. `save`: triggers a checkpoint; `wait`: until it
    is written. Of each of the `checkpoints`, `between` steps before it, and as many after it, are timed."""
    step()  # warms up
    normal, triggering, following, written = [], [], [], []
    for _ in range(checkpoints):
        normal += [_seconds(step) for _ in range(between)]
        began = time.perf_counter()
        step()
        save()
        triggering.append(time.perf_counter() - began)
        following += [_seconds(step) for _ in range(between)]
        wait()
        written.append(time.perf_counter() - began)
    return Cost(median(normal), median(triggering), median(following), median(written))


def _seconds(step: Callable[[], None]) -> float:
    began = time.perf_counter()
    step()
    return time.perf_counter() - began
