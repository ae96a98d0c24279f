"""What a part of the GPU benchmark works with."""

import gc
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch

from benchmarks.report import Report
from cluster.world import World
from pipelines.errors import first_line

# What PyTorch and DALI raise, the project's own errors (which are ValueErrors), a full disk, and, since nobody may be
# there to try again, slips in a piece itself.
_FAILURES = (RuntimeError, ValueError, OSError, AssertionError, LookupError, TypeError, AttributeError, ImportError)


@dataclass(frozen=True)
class Piece:
    """Of a part. `seconds`: what it takes on an H200, at most: with less it is not begun."""

    name: str
    seconds: float
    call: Callable[[], None]


@dataclass(frozen=True)
class Setting:
    """`small`: a rehearsal of the same code with narrow nets and few, small images, on whatever device there is; its
    figures mean nothing. `photos`: a folder of classes with photographs, if there is one. `folder`: scratch, the same
    one for all parts. `until`: on the clock `time.monotonic`, when the part has to have come to its end."""

    device: torch.device
    small: bool
    folder: Path
    photos: Path | None
    until: float
    report: Report

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"

    @property
    def threads(self) -> int:
        """CPUs that this process may use."""
        return len(os.sched_getaffinity(0))

    @property
    def world(self) -> World:
        """This process alone."""
        return World(0, 1, self.device, self.threads)

    def left(self) -> float:
        """Seconds."""
        return self.until - time.monotonic()

    def pick(self, full: int, small: int) -> int:
        """A number for the measurement, or for the rehearsal."""
        return small if self.small else full

    def say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def each(self, pieces: Iterable[Piece]) -> None:
        """Pieces that have nothing to do with one another, those first that are worth most. One that would take longer
        than there is time is left out, and told of; one that fails costs the others nothing."""
        for piece in pieces:
            if self.left() < piece.seconds and not self.small:
                self.report.left_out(piece.name)
                continue
            self.say(f"{piece.name} ({self.left():.0f} s left)")
            try:
                piece.call()
            except _FAILURES as error:
                traceback.print_exc()
                self.report.error(f"{piece.name}: {type(error).__name__}: {first_line(error)}")
            self._give_back()

    def _give_back(self) -> None:
        """What a piece has left of the device's memory, for the next one."""
        gc.collect()
        if self.cuda:
            torch.cuda.empty_cache()


def seconds(
    call: Callable[[], object], device: torch.device, repeats: int, warm_up: int = 2, in_a_row: int = 1
) -> float:
    """The median time of a call, after some that do not count; the device is waited for after so many `in_a_row`."""
    for _ in range(warm_up):
        call()
    wait(device)
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        for _ in range(in_a_row):
            call()
        wait(device)
        times.append((time.perf_counter() - start) / in_a_row)
    return median(times)


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
