"""Probabilities out of a net: of whole images, and of grids of crops (paper, section 3.2).

    images         (n, 3, H, W) float32, as `pipelines.loader` makes them
    probabilities  (n, classes) float32, on the CPU

Scores are averaged over space before the soft-max; mirror images and crops after it. Whatever the precision of the
net's products, all that comes after them is done in float32.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cluster.stopwatch import Stopwatch
from cluster.vgg import VGG
from cluster.views import Precision
from pipelines.augment import grid_corners
from pipelines.errors import TrainingError

Scores = Callable[[Tensor], Tensor]  # (n, 3, H, W) -> (n, classes)

GRID = 25  # crops of an image, without their mirror images
# Of all images of a pass. On a GPU 64 maps of them, before a layer and after it, are 2 GiB: enough to keep it busy, and
# within what small ones have. A CPU is at its best, by up to a third, where a pass fits its caches.
PASS_PIXELS = {"cuda": 1 << 22, "cpu": 1 << 19}


class Passes:
    """A net applied to any number of images, as many at a time as `pixels` in all of them are, and never more than fit
    the device's memory."""

    def __init__(self, scores: Scores, watch: Stopwatch, pixels: int) -> None:
        """`watch`: of the part "net"."""
        self._scores, self._watch, self._pixels = scores, watch, pixels

    def images(self, height: int, width: int) -> int:
        """Of such a size, in one pass."""
        return max(1, self._pixels // (height * width))

    def __call__(self, images: Tensor) -> Tensor:
        """(n, classes) scores. Raises TrainingError if there is no memory for a single image."""
        while True:
            most = self.images(*images.shape[2:])
            parts = images.tensor_split(-(-len(images) // most))
            try:
                return torch.cat([self._scores(part.contiguous(memory_format=torch.channels_last)) for part in parts])
            except torch.cuda.OutOfMemoryError as error:
                if most == 1:
                    height, width = images.shape[2:]
                    raise TrainingError(
                        f"an image of {width} x {height} pixels does not fit the GPU's memory"
                    ) from error
                self._pixels = most * images.shape[2] * images.shape[3] // 2

    def probabilities(self, images: Tensor, mirror: bool) -> Tensor:
        """Of n images; with `mirror` the mean of theirs and of their mirror images', which are in the same passes."""
        with self._watch("net"):
            both = torch.cat([images, images.flip(3)]) if mirror else images
            soft = F.softmax(self(both), dim=1)
            return soft.view(-1, len(images), soft.shape[1]).mean(dim=0).cpu()


def plain_scores(net: VGG) -> Scores:
    """Of images of the net's input size."""
    return lambda images: net(images).float()


def dense_scores(net: VGG) -> Scores:
    """Of images of at least the net's input size: the mean over all places."""
    dense = net.dense()
    return lambda images: dense(images).float().mean(dim=(2, 3))


@contextmanager
def precisely(precision: Precision, device: torch.device) -> Iterator[None]:
    """What a net is to compute with inside the block, in the whole process.

    float32     nothing is rounded; GPUs leave their matrix units idle
    tf32        factors are rounded to 10 binary digits after the point; on devices without it as float32
    bf16        what autocast finds safe is rounded to 7, layers' results too
    """
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32
    cudnn.allow_tf32 = matmul.allow_tf32 = precision == "tf32"
    try:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            yield
    finally:
        cudnn.allow_tf32, matmul.allow_tf32 = before


def of_wholes(passes: Passes, images: Iterable[Tensor], mirror: bool) -> Iterator[Tensor]:
    """Probabilities of all images, in their order; each batch of `images` has a shape of its own."""
    for batch in images:
        yield passes.probabilities(batch, mirror)


def of_crops(passes: Passes, images: Iterable[Tensor], side: int, mirror: bool) -> Iterator[Tensor]:
    """The same, the mean over each image's 5 x 5 crops of `side` pixels, whose mirror images count, too, if `mirror`.

    The net gets full passes of crops, whichever images they are of.
    """
    most = max(1, passes.images(side, side) // (1 + mirror))
    crops = (crop for batch in images for crop in _grids(batch, side))
    probabilities = (passes.probabilities(batch, mirror) for batch in regrouped(crops, most))
    for of_one in regrouped(probabilities, GRID):
        yield of_one.mean(dim=0, keepdim=True)


def regrouped(parts: Iterable[Tensor], n: int) -> Iterator[Tensor]:
    """The rows of all parts, in their order, `n` at a time; at the end those that are left."""
    held: list[Tensor] = []
    lacking = n
    for part in parts:
        rest = part
        while len(rest) >= lacking:
            yield torch.cat([*held, rest[:lacking]])
            held, rest, lacking = [], rest[lacking:], n
        if len(rest):
            held.append(rest)
            lacking -= len(rest)
    if held:
        yield torch.cat(held)


def _grids(images: Tensor, side: int) -> Iterator[Tensor]:
    """(25, 3, side, side) of each image; memory of their own."""
    (corners,) = grid_corners(np.array([images.shape[2:]]), side).tolist()
    for image in images:
        yield torch.stack([image[:, y : y + side, x : x + side] for y, x in corners])
