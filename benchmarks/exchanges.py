"""One worker of `benchmarks.network`: exchanges of gradients over whatever link there is, in turns.

exchange   tensors of a net's shapes, which nobody computes: sums by DistributedDataParallel, with its buckets and
           hooks, whose backward pass hands out gradients that were made beforehand; factors by the layers of
           `cluster.factors`, from inputs and to outputs of the real shapes
steps      whole steps of a narrow net, by `cluster.step`
buckets    forward and backward passes of convolutions alone, whose gradients are sent while others are computed
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.namespaces import INTERFACE
from cluster import exchange, init, torchrun, traffic, turns, wire
from cluster.factors import Factors
from cluster.layers import FC
from cluster.settings import StageSettings
from cluster.step import uses_bf16
from cluster.turns import ALONE, Turn
from cluster.vgg import VGG
from cluster.world import World

CLASSES = 1000
# The first one is what the others are compared with.
WAYS: dict[str, dict[str, Any]] = {
    "ddp": {"exchange": "ddp"},
    "ddp, bf16": {"exchange": "ddp", "exchange_precision": "bf16"},
    "factors": {"exchange": "factors"},
    "factors, bf16 convolutions": {"exchange": "factors", "exchange_precision": "bf16"},
    "bf16 factors and convolutions": {"exchange": "factors", "exchange_precision": "bf16", "precision": "bf16"},
}
# MiB; the default is PyTorch's: a first one of 1, then 25.
BUCKETS: dict[str, int | None] = {"default": None, "1": 1, "5": 5, "25": 25, "100": 100}


class Task(torchrun.Task):
    """`shapes`: of the first part's net; `narrow`: the second part's; `convolutions`: the third's. Rounds of each."""

    shapes: StageSettings
    narrow: StageSettings
    convolutions: StageSettings
    exchanges: int
    steps: int


@dataclass(frozen=True)
class Exchange:
    """Of the slowest worker: seconds from the beginning of a backward pass until all is summed or gathered, and then
    of the products of factors. `sent_bytes`: by each worker, on average."""

    seconds: float
    product_seconds: float
    sent_bytes: float


@dataclass(frozen=True)
class Answer:
    """By way, a turn for each round; ALONE: nothing is exchanged."""

    exchange: dict[str, list[Exchange]]
    steps: dict[str, list[Turn]]
    buckets: dict[str, list[Turn]]


def run(task: Task, world: World) -> Answer:
    """Every worker calls it."""
    sent = partial(traffic.by_interface, INTERFACE)
    answer = turns.run(_narrow(task), world, sent)
    return Answer(_exchanges(task, world, sent), answer.turns, _buckets(task, world, sent))


class Shaped(nn.Module):
    """A net's layers, whose backward pass hands `gradients` out, the last layer's first; but those that `inputs` are
    given to compute what layers do. Their inputs take no gradients: none are computed."""

    def __init__(self, net: VGG, gradients: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._gradients = gradients
        for name, layer in net.named_children():
            if next(layer.parameters(), None) is not None:
                self.add_module(name, layer)

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        total = torch.zeros((), requires_grad=True)
        for name, layer in self.named_children():
            if name not in inputs:
                own = self._gradients[f"{name}.weight"], self._gradients[f"{name}.bias"]
                total = _HandingOut.apply(total, layer.weight, layer.bias, *own)  # type: ignore[no-untyped-call]
        for name, x in inputs.items():
            total = total + self.get_submodule(name)(x).float().sum()
        return total


class _HandingOut(torch.autograd.Function):
    """Hands a number on, and gradients to parameters: another tensor over the same memory, which autograd takes as it
    takes a new one, while one that somebody else holds it would copy."""

    @staticmethod
    def forward(ctx: Any, number: Tensor, weight: Tensor, bias: Tensor, *gradients: Tensor) -> Tensor:
        ctx.save_for_backward(*gradients)
        return number.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        for_weight, for_bias = ctx.saved_tensors
        return gradient, for_weight.detach(), for_bias.detach(), None, None


def filled(net: nn.Module) -> dict[str, Tensor]:
    """Gradients for all parameters by their names, written to once, so that their memory is there."""
    return {name: torch.full_like(parameter, 0.5) for name, parameter in net.named_parameters()}


def _narrow(task: Task) -> turns.Task:
    return turns.Task(
        settings=task.narrow, classes=CLASSES, ways=WAYS, rounds=task.steps, cuda=task.cuda, threads=task.threads
    )


def _exchanges(task: Task, world: World, sent: Callable[[], int]) -> dict[str, list[Exchange]]:
    s = task.shapes
    with torch.device("meta"):
        net = VGG(s.net, CLASSES, s.input_size, s.width)
    net.to_empty(device="cpu").requires_grad_(False)
    for parameter in net.parameters():
        parameter.zero_()
    ends = [s.batch * rank // world.size for rank in range(world.size + 1)]
    rows = [last - first for first, last in zip(ends, ends[1:], strict=False)]
    gradients = filled(net)  # one for all ways, none of which changes them
    shaped = {name: Shaped(turns.sharing(net), gradients) for name in (*WAYS, ALONE)}
    made = {name: _made(shaped[name], s.model_copy(update=way), world, rows) for name, way in WAYS.items()}
    made[ALONE] = _Made(shaped[ALONE], None, False, {})
    takes = {name: partial(_exchange, each, world, rows, sent) for name, each in made.items()}
    return turns.in_turns(takes, task.exchanges)


@dataclass(frozen=True)
class _Made:
    """`inputs` (n, inputs): of the layers that hand their factors in."""

    model: nn.Module
    factors: Factors | None
    bf16: bool
    inputs: dict[str, Tensor]


def _made(shaped: Shaped, s: StageSettings, world: World, rows: list[int]) -> _Made:
    bf16 = uses_bf16(s, world.device)
    apart = [name for name, way in wire.ways(s, CLASSES, world.size, bf16).items() if way == "factors"]
    inputs = {name: torch.ones(rows[world.rank], shaped.get_parameter(f"{name}.weight").shape[1]) for name in apart}
    factors = Factors(shaped, apart, world) if apart else None
    return _Made(exchange.parallel(shaped, world, apart, s.exchange_precision == "bf16"), factors, bf16, inputs)


def _exchange(made: _Made, world: World, rows: list[int], sent: Callable[[], int]) -> Exchange:
    factors = made.factors
    if factors:
        factors.begin(rows)
    with torch.autocast("cpu", torch.bfloat16, enabled=made.bf16):
        total = made.model(made.inputs)
    if factors:
        factors.last()
    world.meet()
    before, start = sent(), time.perf_counter()
    total.backward()
    if factors:
        factors.wait()
    there = time.perf_counter()
    if factors:
        factors.settle(world.size)
    product = time.perf_counter() - there
    world.meet()  # until then some of what this one has sent may lie in queues
    count = sent() - before
    made.model.zero_grad(set_to_none=True)
    return Exchange(turns.largest(there - start, world), turns.largest(product, world), turns.mean(count, world))


def _buckets(task: Task, world: World, sent: Callable[[], int]) -> dict[str, list[Turn]]:
    s = task.convolutions
    net = init.random_net(s.model_copy(update={"dropout": 0.0}), CLASSES)
    images = torch.randn(s.batch // world.size, 3, s.input_size, s.input_size)
    models: dict[str, nn.Module] = {
        name: exchange.parallel(_frozen(turns.sharing(net)), world, bucket_megabytes=size)
        for name, size in BUCKETS.items()
    }
    models[ALONE] = _frozen(turns.sharing(net))
    takes = {name: partial(_pass, model, images) for name, model in models.items()}
    return turns.in_turns({name: partial(turns.timed, take, world, sent) for name, take in takes.items()}, task.steps)


def _frozen(net: VGG) -> VGG:
    for name in FC:
        net.get_submodule(name).requires_grad_(False)
    return net


def _pass(model: nn.Module, images: Tensor) -> None:
    model.zero_grad(set_to_none=True)
    scores = model(images.contiguous(memory_format=torch.channels_last))
    F.cross_entropy(scores, torch.zeros(len(images), dtype=torch.int64)).backward()  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    torchrun.work(Task, run)
