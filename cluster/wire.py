"""What the exchange of a step's gradients sends, layer by layer, and by which of two ways it sends less; pure.

A fully-connected layer's gradient is a product of two thin matrices, its factors: of its inputs and of its outputs'
gradients, a row for each image. Either the products are summed, by an all-reduce over all of the layer's numbers, or
the factors are gathered, and multiplied by every worker (Zhang et al. 2017, Poseidon, arXiv 1706.03292, section 4.2).
A worker sends, of N,

    all-reduce   2 (N - 1) / N numbers for each weight and bias (a ring's; Patarasuk and Yuan 2009)
    factors        (N - 1) / N numbers for each image of the global batch, and each input and output

so that which is less does not depend on N.
"""

import math
from dataclasses import dataclass
from typing import Literal

from cluster import table
from cluster.settings import StageSettings
from cluster.table import Layer

Way = Literal["ddp", "factors"]

FLOAT_BYTES, BF16_BYTES = 4, 2


@dataclass(frozen=True)
class Sent:
    """What each worker sends of a layer's gradient in a step: `bytes`, by `way`; `ddp_bytes` by an all-reduce."""

    layer: str
    way: Way
    bytes: float
    ddp_bytes: float


def ways(s: StageSettings, classes: int, workers: int, bf16: bool, alike: bool = True) -> dict[str, Way]:
    """Of each layer that is trained. `bf16`: the precision that is computed in, and that factors have. `alike`: all
    workers multiply to the same bits; where they do not, factors are taken only if they are asked for.

    Of exact training, whose sums are to be the same for any number of workers, it is that of many workers.
    """
    if not alike and s.exchange == "auto":
        s = s.model_copy(update={"exchange": "ddp"})
    return {layer.name: _way(layer, s, workers, bf16) for layer in _trained(s, classes)}


def sent(s: StageSettings, classes: int, workers: int, bf16: bool) -> list[Sent]:
    """From the first layer to the last."""
    found = []
    for layer in _trained(s, classes):
        way = _way(layer, s, workers, bf16)
        ddp = _reduced_bytes(layer, s, workers)
        found.append(Sent(layer.name, way, _gathered_bytes(layer, s, workers, bf16) if way == "factors" else ddp, ddp))
    return found


def break_even(inputs: int, outputs: int, ddp_bytes: int = FLOAT_BYTES, factor_bytes: int = FLOAT_BYTES) -> float:
    """The global batch at which both ways send as much; biases are left out. `..._bytes`: of a number."""
    return 2 * inputs * outputs / (inputs + outputs) * ddp_bytes / factor_bytes


def _trained(s: StageSettings, classes: int) -> list[Layer]:
    return [x for x in table.layers(s.net, classes, s.input_size, s.width) if x.name not in s.frozen]


def _way(layer: Layer, s: StageSettings, workers: int, bf16: bool) -> Way:
    if layer.block or s.exchange == "ddp" or (workers == 1 and s.reproducible != "exact"):
        return "ddp"
    if s.exchange == "factors":
        return "factors"
    numbers = s.batch * (layer.inputs + layer.channels) * _factor_bytes(bf16)
    return "factors" if numbers < 2 * (layer.weights + layer.channels) * _reduced_number(s) else "ddp"


def _gathered_bytes(layer: Layer, s: StageSettings, workers: int, bf16: bool) -> float:
    return (workers - 1) / workers * s.batch * (layer.inputs + layer.channels) * _factor_bytes(bf16)


def _reduced_bytes(layer: Layer, s: StageSettings, workers: int) -> float:
    """Exact training adds up along a tree of pairs: all of the numbers, log2 N times."""
    norm = 2 * layer.channels if s.batch_norm and layer.block else 0
    share = math.log2(workers) if s.reproducible == "exact" else 2 * (workers - 1) / workers
    return share * (layer.weights + layer.channels + norm) * _reduced_number(s)


def _reduced_number(s: StageSettings) -> int:
    return BF16_BYTES if s.exchange_precision == "bf16" else FLOAT_BYTES


def _factor_bytes(bf16: bool) -> int:
    return BF16_BYTES if bf16 else FLOAT_BYTES
