"""Where the CPU waits for the GPU in a step, and whether the GPU waits for the CPU."""

import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch

from benchmarks.setting import Setting, seconds, wait

_SYNCHRONISING = "synchronizing CUDA operation"  # what PyTorch calls it in its warning


def synchronisations(setting: Setting, step: Callable[[], None], steps: int) -> Counter[str]:
    """By place in the code: how often in so many steps an operation waited for the device. Not all are seen: those of
    torch.distributed are not."""
    if setting.cuda:
        torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(steps):
                step()
    finally:
        if setting.cuda:
            torch.cuda.set_sync_debug_mode("default")
    places = (f"{Path(w.filename).name}:{w.lineno}" for w in caught if _SYNCHRONISING in str(w.message))
    return Counter(places)


def launching(setting: Setting, step: Callable[[], None]) -> tuple[float, float]:
    """Seconds until the CPU has a step's operations handed over, with a device that has nothing to do; and what a step
    takes in a row of them. Where these are equal the device waits for the CPU."""
    handed = []
    for _ in range(setting.pick(7, 1)):
        wait(setting.device)
        start = time.perf_counter()
        step()
        handed.append(time.perf_counter() - start)
    wait(setting.device)
    return median(handed), seconds(step, setting.device, setting.pick(3, 1), warm_up=0, in_a_row=setting.pick(5, 1))
