"""How long a step of data-parallel training takes on so many workers, out of counts and a few constants; pure.

A step is a timeline of two things that work side by side: a GPU, which takes the images forward, and backward layer by
layer from the last one, and a link, on which the exchange of each gradient begins as soon as it is there and the link
is free. FC layers come first, so that the largest exchanges have the whole backward pass to hide behind. After both
have come to their end, the gradients that were exchanged as factors are multiplied, and the optimiser makes its step:

    GPU    forward | fc3 fc2 fc1 conv5_3 ... conv1_1 |         | products | optimiser
    link             fc3  fc2 fc1 ...... buckets of convolutions

A layer takes as long as its multiply-adds or the traffic of its weights, whichever is more: with few images the FC
layers do little but read and write these. Not in it: input, stragglers, launches of kernels, contention of GPU memory
between exchange and arithmetic, casting for sums in bf16. So it is what can be reached at best.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from cluster import flops, table, wire
from cluster.settings import StageSettings
from cluster.table import Layer
from cluster.wire import Sent

_CLASSES = 1000
_FLOAT_BYTES, _BF16_BYTES = 4, 2
_OPTIMISER_BYTES = 5 * _FLOAT_BYTES  # SGD with momentum, at least: reads weight, gradient, momentum; writes two of them


@dataclass(frozen=True)
class Gpu:
    """`flops`: FLOP/s that it sustains in training, by cluster/flops's count; `memory`: its bytes a second. `bf16`: the
    precision that it computes in, not float32."""

    flops: float
    memory: float
    bf16: bool


@dataclass(frozen=True)
class Link:
    """Between two neighbours: bytes a second, one way, and the seconds that each hop adds to a collective."""

    bandwidth: float
    hop_seconds: float


@dataclass(frozen=True)
class System:
    """`node`: the GPUs of each node, which share its link to the others. A ring through all GPUs crosses each link
    once, so that sharing costs no bandwidth. `local`: between GPUs of a node. `logarithmic`: collectives over nodes
    take log2 N hops (NCCL's trees since 2.4, its PAT since 2.23), not a ring's. `start_seconds`: of each collective.
    `overlaps`: the exchange begins during the backward pass. `bucket_bytes`: of the first sum, and of the others (1
    and 25 MiB are DistributedDataParallel's own)."""

    gpu: Gpu
    network: Link
    local: Link | None = None
    node: int = 1
    logarithmic: bool = True
    start_seconds: float = 0.0
    overlaps: bool = True
    bucket_bytes: tuple[float, float] = (2**20, 25 * 2**20)


@dataclass(frozen=True)
class Step:
    """Seconds. `forward` and `backward`: the GPU's passes; `waiting`: from the end of these to the exchange's; then
    `products` of factors, and the `optimiser`."""

    forward: float
    backward: float
    waiting: float
    products: float
    optimiser: float

    @property
    def seconds(self) -> float:
        return self.forward + self.backward + self.waiting + self.products + self.optimiser


@dataclass(frozen=True)
class _Costs:
    """A layer's seconds on a GPU: forward, gradient of its input, gradient of its weights."""

    forward: float
    of_input: float
    of_weights: float


def step(system: System, s: StageSettings, workers: int) -> Step:
    """`s.batch`: of all the workers, of which one with the most images is looked at."""
    gpu, images = system.gpu, -(-s.batch // workers)
    layers = list(table.layers(s.net, _CLASSES, s.input_size, s.width))
    per_image = flops.by_layer(s.net, _CLASSES, s.input_size, s.width)
    costs = {layer.name: _costs(gpu, layer, images * per_image[layer.name]) for layer in layers}
    sent = wire.sent(s, _CLASSES, workers, gpu.bf16)
    forward = sum(cost.forward for cost in costs.values())
    backward, free = _backward(system, s, workers, sent, costs)
    factors = [layer for layer, each in zip(layers, sent, strict=True) if each.way == "factors"]
    products = sum(_product(gpu, layer, s.batch) for layer in factors)
    optimiser = sum(layer.weights + layer.channels for layer in layers) * _OPTIMISER_BYTES / gpu.memory
    return Step(forward, backward, max(0.0, free - backward), products, optimiser)


def efficiency(system: System, s: StageSettings, workers: int, weak: bool) -> float:
    """Images a second of a worker, beside those of one that works alone. `weak`: `s.batch` is each worker's, not that
    of all of them."""
    whole = s.model_copy(update={"batch": s.batch * workers}) if weak else s
    alone, together = step(system, s, 1).seconds / s.batch, step(system, whole, workers).seconds / whole.batch
    return alone / (together * workers)


def exchange_seconds(system: System, s: StageSettings, workers: int) -> float:
    """With nothing else to do: all gradients are there at once."""
    sent = wire.sent(s, _CLASSES, workers, system.gpu.bf16)
    idle = {each.layer: _Costs(0.0, 0.0, 0.0) for each in sent}
    return _backward(system, s, workers, sent, idle)[1]


def _backward(
    system: System, s: StageSettings, workers: int, sent: Sequence[Sent], costs: dict[str, _Costs]
) -> tuple[float, float]:
    """When, from its beginning, the backward pass has come to its end, and when the exchange."""
    clock, free, bucket, held = 0.0, 0.0, 0.0, 0.0
    first, limit = sent[0].layer, system.bucket_bytes[0]
    starts: list[tuple[float, float]] = []  # when a collective's numbers are there, and the seconds that it takes
    for each in reversed(sent):
        if each.way == "factors":  # which are there before the layer's own gradients are
            starts.append((clock, _seconds(system, each.bytes, workers, 1)))
            clock += costs[each.layer].of_input
            continue
        clock += costs[each.layer].of_weights + (costs[each.layer].of_input if each.layer != first else 0.0)
        held, bucket = held + each.bytes, bucket + _numbers_bytes(each, s, workers)
        if bucket >= limit or each.layer == first:
            starts.append((clock, _seconds(system, held, workers, 2)))
            bucket, held, limit = 0.0, 0.0, system.bucket_bytes[1]
    for ready, seconds in starts if workers > 1 else ():
        free = max(free, ready if system.overlaps else clock) + seconds
    return clock, free


def _numbers_bytes(each: Sent, s: StageSettings, workers: int) -> float:
    """Of a layer's gradient as it lies in a bucket, in float32 whatever is sent."""
    if workers == 1:
        return 0.0
    number = _BF16_BYTES if s.exchange_precision == "bf16" else _FLOAT_BYTES
    return each.ddp_bytes * workers / (2 * (workers - 1)) * _FLOAT_BYTES / number


def _seconds(system: System, sent_bytes: float, workers: int, rounds: int) -> float:
    """Of a collective in which each worker sends so much, in as many rounds over all of them: two of a sum."""
    nodes = -(-workers // system.node)
    slowest = system.network if nodes > 1 or system.local is None else system.local
    hops = math.log2(nodes) if system.logarithmic else nodes if nodes > 1 else 0
    latency = rounds * hops * system.network.hop_seconds
    if system.local is not None:
        inside = min(system.node, workers) - 1 if system.logarithmic else workers - nodes
        latency += rounds * inside * system.local.hop_seconds
    return system.start_seconds + latency + sent_bytes / slowest.bandwidth


def _costs(gpu: Gpu, layer: Layer, operations: float) -> _Costs:
    """Bytes that weights cost: autocast copies them to bf16 and their gradients back, which reads and writes more than
    it saves."""
    whole, half = layer.weights * _FLOAT_BYTES, layer.weights * _BF16_BYTES
    cast = whole + 2 * half
    forward, of_input, of_weights = (cast, half, cast) if gpu.bf16 else (whole, whole, whole)
    busy = operations / gpu.flops
    return _Costs(*(max(busy, traffic / gpu.memory) for traffic in (forward, of_input, of_weights)))


def _product(gpu: Gpu, layer: Layer, batch: int) -> float:
    """Of the whole batch's factors, by every worker, left in float32."""
    return max(2 * batch * layer.weights / gpu.flops, layer.weights * _FLOAT_BYTES / gpu.memory)
