"""Floating-point operations that a net asks for: two for each multiply-add of its convolutions and FC layers; pure.

Activations, pools, biases and normalisations are not counted, as is usual; they are less than 1 % at full width.
"""

import math
from collections.abc import Collection

from cluster import table
from cluster.table import STRIDE


def forward_flops(net: str, classes: int = 1000, input_size: int = 224, width: float = 1.0) -> int:
    """Of one image of `input_size` pixels a side."""
    return sum(_layers(net, classes, input_size, width, (input_size, input_size)).values())


def dense_flops(net: str, classes: int, input_size: int, width: float, shape: tuple[int, int]) -> int:
    """Of one image of `shape` (height, width), of at least `input_size` pixels each, through the dense form."""
    return sum(_layers(net, classes, input_size, width, shape).values())


def training_flops(
    net: str, classes: int = 1000, input_size: int = 224, width: float = 1.0, frozen: Collection[str] = ()
) -> int:
    """Of one image, forward and backward. `frozen`: layers that are not trained.

    A layer's backward pass multiplies twice, for the gradient of its weights and for that of its input, each time as
    much as forward. A frozen layer's weights need none, nor does the input of the first layer that is trained.
    """
    layers = _layers(net, classes, input_size, width, (input_size, input_size))
    trained = [name for name in layers if name not in frozen]
    behind = list(layers)[list(layers).index(trained[0]) + 1 :] if trained else []
    return sum(layers.values()) + sum(layers[name] for name in (*trained, *behind))


def by_layer(net: str, classes: int = 1000, input_size: int = 224, width: float = 1.0) -> dict[str, int]:
    """Of one image of `input_size` pixels a side, forward, from the first layer to the last."""
    return _layers(net, classes, input_size, width, (input_size, input_size))


def _layers(net: str, classes: int, input_size: int, width: float, shape: tuple[int, int]) -> dict[str, int]:
    """Of each layer, forward: every weight is used once for each place of the layer's map."""
    windows = math.prod((pixels - input_size) // STRIDE + 1 for pixels in shape)

    def places(block: int) -> int:
        return math.prod(pixels >> (block - 1) for pixels in shape) if block else windows

    return {
        layer.name: 2 * places(layer.block) * layer.weights for layer in table.layers(net, classes, input_size, width)
    }
