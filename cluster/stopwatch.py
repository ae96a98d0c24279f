"""Where the time of a step goes."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol

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

    On a CUDA device they are the device's: a program runs ahead of it, and its own time in a block says little. A block
    lasts there from the end of what was launched before it to the end of what it launched; what the device has to wait
    for is the time of the block that lets it wait. Nothing is held up for it, but `read` waits for the blocks' ends.
    """

    def __init__(self, device: torch.device, parts: Sequence[str] = PARTS) -> None:
        clock = _Device(device) if device.type == "cuda" else _Host()
        self._parts = {name: _Part(clock) for name in parts}
        self._since, self._cpu_since = time.perf_counter(), time.process_time()

    def __call__(self, part: str) -> "_Part":
        """The block's context manager. Raises KeyError if there is no such part."""
        return self._parts[part]

    def read(self) -> Reading:
        """What was added up since the last call, or since the beginning; of a block that it is called in, too."""
        parts = {name: part.take() for name, part in self._parts.items()}
        now, cpu = time.perf_counter(), time.process_time()
        reading = Reading(parts, now - self._since, cpu - self._cpu_since)
        self._since, self._cpu_since = now, cpu
        return reading


class _Clock(Protocol):
    def mark(self) -> Any:
        """A moment."""

    def between(self, first: Any, last: Any) -> float:
        """Seconds."""


class _Host:
    def mark(self) -> float:
        return time.perf_counter()

    def between(self, first: float, last: float) -> float:
        return last - first


class _Device:
    """A moment is when the device is done with all that it was given before."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def mark(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._device))
        return event

    def between(self, first: torch.cuda.Event, last: torch.cuda.Event) -> float:
        last.synchronize()
        return float(first.elapsed_time(last)) / 1000  # type: ignore[no-untyped-call]


class _Part:
    def __init__(self, clock: _Clock) -> None:
        self._clock = clock
        self._blocks: list[tuple[Any, Any]] = []
        self._entered: Any = None

    def __enter__(self) -> None:
        self._entered = self._clock.mark()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._blocks.append((self._entered, self._clock.mark()))
        self._entered = None

    def take(self) -> float:
        if self._entered is not None:
            now = self._clock.mark()
            self._blocks.append((self._entered, now))
            self._entered = now
        blocks, self._blocks = self._blocks, []
        return sum(self._clock.between(first, last) for first, last in blocks)
