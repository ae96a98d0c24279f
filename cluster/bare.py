"""The peer of `bench step`: training as one writes it by hand, for `torchrun`.

Plain DistributedDataParallel, SGD and nothing else: no metrics, no checkpoints, no Ray. Batches come from the same
loader, and the first weights are the same, so that the work is that of `cluster.train`.
"""

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from statistics import median

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from cluster import init, torchrun, turns
from cluster.settings import StageSettings
from cluster.stopwatch import Reading, Stopwatch
from cluster.vgg import VGG
from cluster.world import World
from pipelines.augment import Recipe
from pipelines.loader import TrainingBatches
from pipelines.order import Order
from pipelines.shards import DataSet
from pipelines.stream import Batch


class Task(torchrun.Task):
    """Time is taken at the ends of the steps `points`, counted from 1, the last of which ends training."""

    settings: StageSettings
    data: str
    points: tuple[int, ...]
    pairs: int  # of our steps with and without exchange


@dataclass(frozen=True)
class Answer:
    """`seconds` and `cpu_seconds` of worker 0 between two points each. `backward` and `exchanged`: median seconds
    of our step's backward passes, of a worker by itself and of all with the exchange of gradients."""

    seconds: tuple[float, ...]
    cpu_seconds: tuple[float, ...]
    backward: float
    exchanged: float


def run(task: Task, world: World) -> Answer:
    """Every worker calls it."""
    data = DataSet.open(task.data)
    net = random_net(task.settings, data, world)
    with closing(batches_of(task, data, world)) as batches:
        readings = train(net, iter(batches), task, world)
    seconds, cpu_seconds = (tuple(getattr(r, name) for r in readings) for name in ("seconds", "cpu_seconds"))
    return Answer(seconds, cpu_seconds, *_exchange(net, task, world))


def random_net(s: StageSettings, data: DataSet, world: World) -> VGG:
    return init.random_net(s, len(data.manifest.classes)).to(world.device).train()


def batches_of(task: Task, data: DataSet, world: World) -> TrainingBatches:
    s, statistics = task.settings, data.manifest.statistics
    assert statistics is not None  # of a training set
    recipe = Recipe(s.scale, s.input_size, s.flip, s.colour_shift, s.pixel_std, statistics)
    return TrainingBatches(data, Order.of(data.manifest, s.batch, s.seed), recipe, world.seat, 0, task.points[-1])


def train(net: nn.Module, stream: Iterator[Batch], task: Task, world: World) -> list[Reading]:
    """The loop that is measured: what passed between the points."""
    s = task.settings
    model = DistributedDataParallel(net, gradient_as_bucket_view=True) if world.size > 1 else net
    optimiser = torch.optim.SGD(
        model.parameters(), s.learning_rate, s.momentum, weight_decay=s.weight_decay, fused=True
    )
    watch, readings = Stopwatch(world.device, parts=()), []
    for step, batch in enumerate(stream, 1):
        loss = F.cross_entropy(model(batch.images), batch.labels)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        if step in task.points:
            world.meet()
            readings.append(watch.read())
    return readings[1:]


def _exchange(net: VGG, task: Task, world: World) -> tuple[float, float]:
    """Median seconds of the backward passes of `cluster.train`'s step (without, with) the exchange, in turns."""
    watch = Stopwatch(world.device)
    both = turns.alone_and_together(net, world, task.settings, watch)
    for take in both:  # first steps take longer
        take()
    pairs = [[_backward(take, world, watch) for take in both] for _ in range(task.pairs)]
    without, exchanged = (median(times) for times in zip(*pairs, strict=True))
    return without, exchanged


def _backward(take: Callable[[], None], world: World, watch: Stopwatch) -> float:
    """Of a step, with all that comes after it until the gradients are there."""
    world.meet()
    watch.read()
    take()
    parts = watch.read().parts
    return parts["backward"] + parts["exchange"]


if __name__ == "__main__":
    torchrun.work(Task, run)
