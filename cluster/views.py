"""The ways in which a test looks at an image (paper, sections 3.2 and 4)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Mode = Literal["dense", "multi-crop"]
TestMode = Literal["dense", "multi-crop", "both"]
Scales = Sequence[int] | Literal["single", "several"]
Precision = Literal["float32", "tf32", "bf16"]


@dataclass(frozen=True)
class View:
    """An image whole, or as a grid of 5 x 5 crops, its shorter side rescaled to `scale` pixels (Q), and whether its
    mirror image is looked at, too, and averaged with it. `precision`: of the net's products; see `passes.precisely`."""

    mode: Mode
    scale: int
    mirror: bool
    precision: Precision = "float32"


def scales_of(wanted: Scales, trained: tuple[int, int], input_size: int) -> tuple[int, ...]:
    """Q, each once, in order. `trained`: S, smallest and largest.

    single: S, or the middle of its range (section 4.1). several: S - 32, S, S + 32, or the range's ends and middle
    (section 4.2); 32 is a seventh of the paper's input, so it is of other inputs, and Q is never smaller than that.
    """
    low, high = trained
    middle = (low + high) // 2
    if wanted == "single":
        return (middle,)
    if wanted == "several":
        step = input_size // 7
        wanted = (low - step, low, low + step) if low == high else (low, middle, high)
        return tuple(sorted({max(q, input_size) for q in wanted}))
    return tuple(sorted(set(wanted)))  # type: ignore[arg-type]


def views(mode: TestMode, scales: Sequence[int], mirror: bool, precision: Precision = "float32") -> tuple[View, ...]:
    """All that a test averages, each with the same weight."""
    modes: tuple[Mode, ...] = ("dense", "multi-crop") if mode == "both" else (mode,)
    return tuple(View(each, scale, mirror, precision) for each in modes for scale in scales)
