"""The peer of `bench step`: training as one writes it by hand, for `torchrun -m cluster.bare TASK ANSWER`.

Plain DistributedDataParallel, SGD and nothing else: no metrics, no checkpoints, no Ray. Batches come from the same
loader, and the first weights are the same, so that the work is that of `cluster.train`.
"""

import copy
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import closing, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from pydantic import BaseModel
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from cluster import exchange, init
from cluster.settings import StageSettings
from cluster.stopwatch import Reading, Stopwatch
from cluster.vgg import VGG
from cluster.world import World
from pipelines.augment import Recipe
from pipelines.loader import TrainingBatches
from pipelines.order import Order
from pipelines.shards import DataSet
from pipelines.stream import Batch


class Task(BaseModel):
    """Time is taken at the ends of the steps `points`, counted from 1, the last of which ends training."""

    settings: StageSettings
    data: str
    cuda: bool
    threads: int
    points: tuple[int, ...]
    pairs: int  # of backward passes with and without exchange


@dataclass(frozen=True)
class Answer:
    """`seconds` and `cpu_seconds` of worker 0 between two points each. `backward` and `exchanged`: median seconds of a
    backward pass without and with the exchange of gradients, on the same batch."""

    seconds: tuple[float, ...]
    cpu_seconds: tuple[float, ...]
    backward: float
    exchanged: float


def run(task: Task, world: World) -> Answer:
    """Every worker calls it."""
    torch.set_num_threads(world.threads)
    data = DataSet.open(task.data)
    net = random_net(task.settings, data, world)
    with closing(batches_of(task, data, world)) as batches:
        readings = train(net, iter(batches), task, world)
    seconds, cpu_seconds = (tuple(getattr(r, name) for r in readings) for name in ("seconds", "cpu_seconds"))
    return Answer(seconds, cpu_seconds, *_exchange(net, task, world))


def random_net(s: StageSettings, data: DataSet, world: World) -> VGG:
    net = VGG(s.net, len(data.manifest.classes), s.input_size, s.width, s.dropout)
    init.randomise(net, s.init.random, s.init.std, s.seed)
    return net.to(world.device).train()


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
            _meet(world)
            readings.append(watch.read())
    return readings[1:]


def _exchange(net: nn.Module, task: Task, world: World) -> tuple[float, float]:
    """Median seconds of a backward pass of `cluster.train`'s model (without, with) the exchange, in turns."""
    model = exchange.parallel(copy.deepcopy(net), world)
    share = -(-task.settings.batch // world.size)
    images = torch.randn(share, 3, task.settings.input_size, task.settings.input_size, device=world.device)
    labels = torch.zeros(share, dtype=torch.int64, device=world.device)
    _backward(model, images, labels, world, alone=False)  # DDP orders its buckets after the first one
    turns = [[_backward(model, images, labels, world, alone) for alone in (True, False)] for _ in range(task.pairs)]
    without, exchanged = (median(times) for times in zip(*turns, strict=True))
    return without, exchanged


def _backward(model: nn.Module, images: Tensor, labels: Tensor, world: World, alone: bool) -> float:
    model.zero_grad(set_to_none=True)
    with model.no_sync() if alone and isinstance(model, DistributedDataParallel) else nullcontext():
        loss = F.cross_entropy(model(images), labels)
        _meet(world)
        start = time.perf_counter()
        loss.backward()  # type: ignore[no-untyped-call]
        if world.device.type == "cuda":
            torch.cuda.synchronize(world.device)
    return time.perf_counter() - start


def _meet(world: World) -> None:
    """Waits for all workers and their devices."""
    if world.device.type == "cuda":
        torch.cuda.synchronize(world.device)
    if world.size > 1:
        dist.barrier()


def main(task_file: str, answer_file: str) -> None:
    task = Task.model_validate_json(Path(task_file).read_bytes())
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if task.cuda else torch.device("cpu")
    if task.cuda:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if task.cuda else "gloo")
    world = World(dist.get_rank(), dist.get_world_size(), device, task.threads)
    answer: dict[str, Any] = asdict(run(task, world))
    if world.rank == 0:
        Path(answer_file).write_text(json.dumps(answer))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
