"""Where the time of a step goes."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType

import torch

PARTS = ("input", "forward", "backward", "exchange", "optimiser", "report")


@dataclass(frozen=True)
class Reading:
    """Since the reading before. `parts`: seconds inside the blocks of each part; `seconds`: in all; `cpu_seconds`: of
    this process, its threads together."""

    parts: dict[str, float]
    seconds: float
    cpu_seconds: float


class Stopwatch:
    """Adds up the seconds spent in blocks `with watch("input"): ...`, of parts that do not lie inside one another.

    On a CUDA device a block takes as long as its launches, and the device is waited for where a value is read, unless
    `synchronise` is set: then each block waits for the device, so that a part's time is its own, and the whole slower.
    """

    def __init__(self, device: torch.device, synchronise: bool = False, parts: Sequence[str] = PARTS) -> None:
        waits_for = device if synchronise and device.type == "cuda" else None
        self._parts = {name: _Part(waits_for) for name in parts}
        self._since, self._cpu_since = time.perf_counter(), time.process_time()

    def __call__(self, part: str) -> "_Part":
        """The block's context manager. Raises KeyError if there is no such part."""
        return self._parts[part]

    def read(self) -> Reading:
        """What was added up since the last call, or since the beginning; of a block that it is called in, too."""
        now, cpu = time.perf_counter(), time.process_time()
        reading = Reading(
            {name: part.take(now) for name, part in self._parts.items()}, now - self._since, cpu - self._cpu_since
        )
        self._since, self._cpu_since = now, cpu
        return reading


class _Part:
    def __init__(self, waits_for: torch.device | None) -> None:
        self._waits_for = waits_for
        self._seconds = 0.0
        self._entered: float | None = None

    def __enter__(self) -> None:
        self._entered = time.perf_counter()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._waits_for is not None:
            torch.cuda.synchronize(self._waits_for)
        self._count(time.perf_counter())
        self._entered = None

    def take(self, now: float) -> float:
        if self._entered is not None:
            self._count(now)
        seconds, self._seconds = self._seconds, 0.0
        return seconds

    def _count(self, now: float) -> None:
        assert self._entered is not None
        self._seconds, self._entered = self._seconds + now - self._entered, now
