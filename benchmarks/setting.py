"""What a part of the GPU benchmark works with."""

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch

from benchmarks.report import Report
from cluster.world import World


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


def seconds(call: Callable[[], object], device: torch.device, repeats: int, warm_up: int = 2) -> float:
    """The median time of a call, after some that do not count; the device is waited for."""
    times = []
    for number in range(warm_up + repeats):
        start = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if number >= warm_up:
            times.append(time.perf_counter() - start)
    return median(times)
