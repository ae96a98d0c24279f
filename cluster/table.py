"""The six configurations of Simonyan and Zisserman 2014 (arXiv 1409.1556, table 1), and what their layers hold; pure.

Layers are called as in the paper: conv3_2 is the second convolution of the third block, fc1 to fc3 follow.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Conv:
    """One convolution, of stride 1 and a padding that keeps the map's size. `last`: of its block, a pool follows."""

    block: int
    index: int
    kernel: int = 3
    last: bool = False

    @property
    def name(self) -> str:
        return f"conv{self.block}_{self.index}"

    @property
    def norm(self) -> str:
        """The name of the batch norm behind it, in nets that have one."""
        return f"bn{self.block}_{self.index}"


# The kernels of each block's convolutions; widths are those of table 1.
CONFIGURATIONS: dict[str, tuple[tuple[int, ...], ...]] = {
    "A": ((3,), (3,), (3, 3), (3, 3), (3, 3)),
    "A-LRN": ((3,), (3,), (3, 3), (3, 3), (3, 3)),
    "B": ((3, 3), (3, 3), (3, 3), (3, 3), (3, 3)),
    "C": ((3, 3), (3, 3), (3, 3, 1), (3, 3, 1), (3, 3, 1)),
    "D": ((3, 3), (3, 3), (3, 3, 3), (3, 3, 3), (3, 3, 3)),
    "E": ((3, 3), (3, 3), (3, 3, 3, 3), (3, 3, 3, 3), (3, 3, 3, 3)),
}
BLOCK_WIDTHS = (64, 128, 256, 512, 512)
FC_WIDTH = 4096
STRIDE = 32  # of the whole net: five pools of stride 2


def convolutions(net: str) -> Iterator[Conv]:
    for block, kernels in enumerate(CONFIGURATIONS[net], 1):
        for index, kernel in enumerate(kernels, 1):
            yield Conv(block, index, kernel, last=index == len(kernels))


@dataclass(frozen=True)
class Layer:
    """How many numbers a layer holds. `block`: of a convolution, 0 of a fully-connected layer. `channels`: that it
    puts out, each with a bias, and in nets with batch norm with a scale, a shift, and a running mean and variance."""

    name: str
    block: int
    weights: int
    channels: int

    @property
    def inputs(self) -> int:
        """Numbers that one of its outputs is a sum over."""
        return self.weights // self.channels


def layers(net: str, classes: int = 1000, input_size: int = 224, width: float = 1.0) -> Iterator[Layer]:
    """From the image to the scores."""
    check(net, classes, input_size, width)
    *block_widths, hidden = hidden_widths(width)
    before = 3
    for conv in convolutions(net):
        after = block_widths[conv.block - 1]
        yield Layer(conv.name, conv.block, conv.kernel**2 * before * after, after)
        before = after
    before *= (input_size // STRIDE) ** 2
    for name, after in (("fc1", hidden), ("fc2", hidden), ("fc3", classes)):
        yield Layer(name, 0, before * after, after)
        before = after


def check(net: str, classes: int, input_size: int, width: float) -> None:
    """Raises ValueError: there is no such net."""
    if net not in CONFIGURATIONS:
        raise ValueError(f"net {net!r} is not one of {', '.join(CONFIGURATIONS)}")
    if input_size <= 0 or input_size % STRIDE:
        raise ValueError(f"input_size {input_size} is not a multiple of {STRIDE}")
    if classes < 1 or not 0 < width < math.inf:
        raise ValueError(f"classes ({classes}) and width ({width}) must be positive")


def hidden_widths(width: float) -> tuple[int, ...]:
    """Of the convolutions of each block, and of FC-1 and FC-2."""
    return tuple(max(1, round(full * width)) for full in (*BLOCK_WIDTHS, FC_WIDTH))
