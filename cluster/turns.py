"""Steps of one net with several ways to exchange its gradients, in turns, for `torchrun`: see `bench_exchange`.

Of each step only the gradients are computed, of made-up images, the same ones each time; nothing is learned, so that
all steps are of the same weights, which lie in memory once.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from cluster import init, optimise, torchrun, traffic
from cluster.layers import FC
from cluster.settings import StageSettings
from cluster.step import Step
from cluster.stopwatch import Stopwatch
from cluster.vgg import VGG
from cluster.world import World
from pipelines.order import Order
from pipelines.stream import Batch

T = TypeVar("T")
Take = Callable[[], None]

ALONE = "alone"  # the turn of each worker by itself, with as many images as it has of the batch


class Task(torchrun.Task):
    """`ways`: changes of the settings, by names for them."""

    settings: StageSettings
    classes: int
    ways: dict[str, dict[str, Any]]
    rounds: int


@dataclass(frozen=True)
class Turn:
    """`seconds`: of the slowest worker; `sent_bytes`: by each, on average."""

    seconds: float
    sent_bytes: float


@dataclass(frozen=True)
class Answer:
    """`turns`: by way, and ALONE, one for each round. `differences`: between the gradients of the first way and each
    other one, norm over norm, the largest of any worker's and fully-connected layer's."""

    turns: dict[str, list[Turn]]
    differences: dict[str, float]


def run(task: Task, world: World, sent: Callable[[], int] = traffic.by_connections) -> Answer:
    """Every worker calls it. `sent`: counts bytes."""
    s = task.settings
    net = init.random_net(s, task.classes).to(world.device)
    nets = {name: sharing(net) for name in (ALONE, *task.ways)}
    takes = {name: taking(nets[name], world, s.model_copy(update=way)) for name, way in task.ways.items()}
    takes[ALONE] = taking(nets[ALONE], *_by_itself(world, s))
    differences = _differences({name: nets[name] for name in task.ways}, takes, world)

    def turn(name: str) -> Turn:
        found = timed(takes[name], world, sent)
        nets[name].zero_grad(set_to_none=True)
        return found

    return Answer(in_turns({name: partial(turn, name) for name in nets}, task.rounds), differences)


def alone_and_together(net: VGG, world: World, s: StageSettings, watch: Stopwatch) -> tuple[Take, Take]:
    """Two calls that compute the gradients of a step: each worker by itself, and all with their exchange."""
    return taking(sharing(net), *_by_itself(world, s), watch), taking(sharing(net), world, s, watch)


def in_turns(takes: Mapping[str, Callable[[], T]], rounds: int) -> dict[str, list[T]]:
    """What they return in so many rounds, after one that warms up; every other one goes backwards."""
    found: dict[str, list[T]] = {name: [] for name in takes}
    for number in range(rounds + 1):
        for name in list(takes)[:: -1 if number % 2 else 1]:
            turn = takes[name]()
            found[name] += [turn] * (number > 0)
    return found


def timed(take: Take, world: World, sent: Callable[[], int]) -> Turn:
    """Bytes are counted when all workers are done: until then some of this one's may lie in queues."""
    world.meet()
    before, start = sent(), time.perf_counter()
    take()
    if world.device.type == "cuda":
        torch.cuda.synchronize(world.device)
    seconds = time.perf_counter() - start
    world.meet()
    count = sent() - before
    return Turn(largest(seconds, world), mean(count, world))


def sharing(net: VGG) -> VGG:
    """Another net with the same weights, in the same memory. Both are laid out as Step has them, so that it has nothing
    to lay out anew."""
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    with torch.device("meta"):
        other = VGG(net.net, net.classes, net.input_size, net.width, net.dropout.p, net.batch_norm)
    other.load_state_dict(net.state_dict(), assign=True)
    return other


def _by_itself(world: World, s: StageSettings) -> tuple[World, StageSettings]:
    changes = {"batch": -(-s.batch // world.size), "virtual_shards": max(1, s.virtual_shards // world.size)}
    return World(0, 1, world.device, world.threads), s.model_copy(update=changes)


def taking(net: VGG, world: World, s: StageSettings, watch: Stopwatch | None = None) -> Take:
    """A call that computes the gradients of one step."""
    optimise.freeze(net, s)
    order = Order((s.batch,), s.batch, s.seed)
    step = Step(net, world, s, order, watch)
    rows = torch.from_numpy(order.share(0, world.rank, world.size))
    generator = torch.Generator().manual_seed(world.rank)
    images = torch.randn(len(rows), 3, s.input_size, s.input_size, generator=generator).to(world.device)
    batch = Batch(images, (rows % net.classes).to(world.device), rows, s.batch)

    def take() -> None:
        step.gradients(batch, 0)

    return take


def _differences(nets: dict[str, VGG], takes: dict[str, Take], world: World) -> dict[str, float]:
    found: dict[str, float] = {}
    first: dict[str, Tensor] = {}
    for name, net in nets.items():
        takes[name]()
        gradients = {layer: net.get_parameter(f"{layer}.weight").grad for layer in FC}
        own = {layer: gradient for layer, gradient in gradients.items() if gradient is not None}
        if first:
            off = max((float((own[k] - first[k]).norm() / first[k].norm()) for k in first), default=0.0)
            found[name] = largest(off, world)
        else:
            first = {layer: gradient.clone() for layer, gradient in own.items()}
        net.zero_grad(set_to_none=True)
    return found


def largest(value: float, world: World) -> float:
    """Of all workers' values; every worker has to call it."""
    number = _number(value, world)
    if world.size > 1:
        dist.all_reduce(number, dist.ReduceOp.MAX)
    return float(number)


def mean(value: float, world: World) -> float:
    """Of all workers' values; every worker has to call it."""
    return float(world.add_up(_number(value, world))) / world.size


def _number(value: float, world: World) -> Tensor:
    return torch.tensor(value, dtype=torch.float64, device=world.device)


if __name__ == "__main__":
    torchrun.work(Task, run)
