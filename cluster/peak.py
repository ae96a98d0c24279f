"""What a device could do at most, and the most memory that was used of it."""

import re
import resource
import time
from functools import cache
from typing import Literal

import torch

Precision = Literal["float32", "tf32", "bfloat16", "float16"]

# Dense peaks in TFLOP/s as the maker gives them (half of a figure that is "with sparsity"), accumulated in float32; 0:
# not offered. The first pattern that is found in torch's name of the device counts. Without another source: the
# device's NVIDIA data sheet.
_CUDA: tuple[tuple[str, float, float, float, float], ...] = (
    # name                      float32 tf32   bf16   fp16
    (r"\bB200\b",               75.0,  1125.0, 2250.0, 2250.0),  # HGX B200, an eighth of the board's
    (r"\bGH200\b",              67.0,  494.5,  989.5,  989.5),
    (r"\bH200 NVL\b",           60.0,  417.5,  835.5,  835.5),
    (r"\bH200\b",               67.0,  494.5,  989.5,  989.5),
    (r"\bH100 NVL\b",           60.0,  417.5,  835.5,  835.5),
    (r"\bH100 PCIe\b",          51.0,  378.0,  756.5,  756.5),
    (r"\bH100\b",               67.0,  494.5,  989.5,  989.5),   # SXM: "NVIDIA H100 80GB HBM3"
    (r"\bA100\b",               19.5,  156.0,  312.0,  312.0),   # SXM and PCIe alike
    (r"\bA30\b",                10.3,  82.0,   165.0,  165.0),
    (r"\bA40\b",                37.4,  74.8,   149.7,  149.7),
    (r"\bA10\b",                31.2,  62.5,   125.0,  125.0),
    (r"\bL40S\b",               91.6,  183.0,  362.0,  362.0),
    (r"\bL40\b",                90.5,  90.5,   181.0,  181.0),
    (r"\bL4\b",                 30.3,  60.0,   121.0,  121.0),
    (r"\bT4\b",                 8.1,   0.0,    0.0,    65.0),
    (r"\bV100S\b",              16.4,  0.0,    0.0,    130.0),
    (r"\bV100-PCIE\b",          14.0,  0.0,    0.0,    112.0),
    (r"\bV100\b",               15.7,  0.0,    0.0,    125.0),   # SXM2
    (r"\bRTX 4090\b(?! Laptop)", 82.6, 82.6,   165.2,  165.2),   # NVIDIA Ada GPU architecture white paper, appendix A
    (r"\bRTX 3090\b(?! Ti)",    35.6,  35.6,   71.0,   71.0),    # NVIDIA Ampere GA102 white paper, table 2
    (r"\bRTX A6000\b",          38.7,  77.4,   154.8,  154.8),   # NVIDIA Ampere GA102 white paper, appendix A
)  # fmt: skip
_PRECISIONS = ("float32", "tf32", "bfloat16", "float16")

_MATRIX_SIDE = 1024
_MEASURED_SECONDS = 0.2


def peak_flops(device: torch.device, precision: Precision, threads: int) -> float | None:
    """FLOP/s of one device at most, or None if that is not known.

    Of a CUDA device, what its maker gives for dense matrices; of a CPU, what the product of two large matrices reaches
    on `threads` threads now, which is measured once in a process.
    """
    if device.type == "cuda":
        return named_peak_flops(torch.cuda.get_device_name(device), precision)
    return _measured(precision, threads) if device.type == "cpu" else None


def named_peak_flops(name: str, precision: Precision) -> float | None:
    """`name`: as torch gives it, such as "NVIDIA H100 80GB HBM3". Of a part of a device (MIG) it is not known."""
    if "MIG" in name:
        return None
    for pattern, *tera in _CUDA:
        if re.search(pattern, name):
            return tera[_PRECISIONS.index(precision)] * 1e12 or None
    return None


@cache
def _measured(precision: Precision, threads: int) -> float:
    """The best of many products."""
    kind = torch.float32 if precision == "tf32" else getattr(torch, precision)
    a, b = torch.ones(2, _MATRIX_SIDE, _MATRIX_SIDE, dtype=kind)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        best, end = float("inf"), time.perf_counter() + _MEASURED_SECONDS
        while (start := time.perf_counter()) < end:
            torch.mm(a, b)
            best = min(best, time.perf_counter() - start)
    finally:
        torch.set_num_threads(before)
    return 2 * _MATRIX_SIDE**3 / best


def peak_memory_bytes(device: torch.device) -> int:
    """The most that this process held so far: of a CUDA device, in tensors; else resident in main memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # KiB on Linux: getrusage(2)
