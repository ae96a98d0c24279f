"""Floating-point operations that a net asks for: two for each multiply-add of its convolutions and FC layers.

Activations, pools, biases and normalisations are not counted, as is usual; they are less than 1 % at full width.
"""

import math
from collections.abc import Iterator

import torch

from cluster.vgg import STRIDE, VGG, convolutions


def forward_flops(net: str, classes: int = 1000, input_size: int = 224, width: float = 1.0) -> int:
    """Of one image of `input_size` pixels a side."""
    return sum(_layers(net, classes, input_size, width, (input_size, input_size)))


def dense_flops(net: str, classes: int, input_size: int, width: float, shape: tuple[int, int]) -> int:
    """Of one image of `shape` (height, width), of at least `input_size` pixels each, through the dense form."""
    return sum(_layers(net, classes, input_size, width, shape))


def training_flops(net: str, classes: int = 1000, input_size: int = 224, width: float = 1.0) -> int:
    """Of one image, forward and backward.

    A layer's backward pass multiplies twice, for the gradient of its weights and for that of its input, each time as
    much as forward; the first layer's input, the image, needs no gradient.
    """
    first, *others = _layers(net, classes, input_size, width, (input_size, input_size))
    return 2 * first + 3 * sum(others)


def _layers(net: str, classes: int, input_size: int, width: float, shape: tuple[int, int]) -> Iterator[int]:
    """Of each layer, forward: every weight is used once for each place of the layer's map."""
    with torch.device("meta"):
        model = VGG(net, classes, input_size, width)
    for conv in convolutions(net):
        places = math.prod(pixels >> (conv.block - 1) for pixels in shape)
        yield 2 * places * model.get_parameter(f"{conv.name}.weight").numel()
    places = math.prod((pixels - input_size) // STRIDE + 1 for pixels in shape)
    for fc in (model.fc1, model.fc2, model.fc3):
        yield 2 * places * fc.weight.numel()
