"""`verydeep bench step`: the time of a step of our loop by part, and beside it the bare loop of `cluster.bare`.

Both train the same net on the same batches, in turns, in rounds whose order alternates. Ours is a whole run through
Ray Train, with all that it does in a step; only MLflow and the terminal are left out. Both are timed on worker 0, from
the end of our first point (see `cluster.train`), which warms up, to the end of the last step, where workers wait for
one another; starting up is not in it.
"""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cluster import bare, checkpoint_cost, interrupt, launch, place, torchrun
from cluster.agree import Undisturbed
from cluster.attempt import Attempt, Stage
from cluster.bare import Answer, Task
from cluster.checkpoint_cost import Cost
from cluster.flops import training_flops
from cluster.peak import peak_flops
from cluster.place import Shape
from cluster.records import STEPS_PER_POINT
from cluster.settings import ClusterSettings, StageSettings
from cluster.train import card, recipes
from cluster.world import World
from pipelines import cycle
from pipelines.errors import BenchError, DataError, SettingsError
from pipelines.loader import TrainingBatches
from pipelines.order import Order
from pipelines.shards import DataSet

Log = Callable[[str], None]

_PAIRS_MOST = 20
_CHECKPOINTS, _STEPS_BETWEEN = 7, 10
# The speed does not depend on it, and with this no net diverges, whatever its first weights and its pixels' range.
_LEARNING_RATE = 1e-8


@dataclass(frozen=True)
class Interval:
    """`steps` of our loop on worker 0; `parts`, `seconds`, `cpu_seconds`: see `stopwatch.Reading`."""

    steps: int
    parts: dict[str, float]
    seconds: float
    cpu_seconds: float


@dataclass(frozen=True)
class Round:
    """`intervals` follow one another, and `bare` was timed over the same ones."""

    intervals: tuple[Interval, ...]
    bare: Answer


@dataclass(frozen=True)
class Comparison:
    """`flops`: of training with one image. `peak_flops`: of one worker's device, if known. `saving`: on one worker."""

    settings: StageSettings
    shape: Shape
    points: tuple[int, ...]  # steps at whose ends time was taken
    rounds: tuple[Round, ...]
    flops: int
    peak_flops: float | None
    saving: Cost


def run(source: str, settings: StageSettings, workers: int, steps: int, rounds: int, log: Log) -> Comparison:
    """At least `steps` are timed in each of the rounds. Raises SettingsError, DataError, ClusterError, BenchError,
    TrainingError."""
    for option, value in (("--steps", steps), ("--rounds", rounds), ("--workers", workers)):
        if value < 1:
            raise SettingsError(f"{option} {value}: at least 1")
    data = DataSet.open(source)
    if data.manifest.statistics is None:
        raise DataError(f"{source}: has no statistics of its pixels, as validation sets have none; take a training set")
    settings = settings.model_copy(
        update={"epochs": 1, "learning_rate": _LEARNING_RATE, "init": settings.init.model_copy(update={"source": None})}
    )
    launch.connect("local")  # on this machine, as the bare loop is, and nobody else's
    try:
        cluster = ClusterSettings(workers=(workers, workers), max_failures=0)
        shape = place.shape(cluster)
        with tempfile.TemporaryDirectory(prefix="verydeep-bench-") as folder:
            return _compare(data, settings, (cluster, shape), steps, rounds, Path(folder), log)
    finally:
        launch.disconnect()


def _compare(
    data: DataSet, s: StageSettings, on: tuple[ClusterSettings, Shape], steps: int, rounds: int, folder: Path, log: Log
) -> Comparison:
    cluster, shape = on
    warm_up = min(-(-steps // 3), STEPS_PER_POINT)  # the first point: a quarter of an epoch, at most so many steps
    training = cycle.write(data, (steps + warm_up) * s.batch, folder / "train").location.absolute
    validation = cycle.write(data, 1, folder / "val").location.absolute
    found: list[Round] = []
    points: tuple[int, ...] = ()  # not known before our first run
    for number in range(rounds):
        log(f"round {number + 1} of {rounds}")
        stage = Stage("bench", s, training, validation, str(folder / f"round-{number}"))
        answer = _bare(s, training, shape, points, folder) if number % 2 else None
        records = _ours(stage, shape, cluster)
        points = tuple(record["step"] for record in records)
        answer = answer or _bare(s, training, shape, points, folder)
        found.append(Round(tuple(_intervals(records)), answer))
    device = torch.device("cuda" if shape.gpus else "cpu")
    flops = training_flops(s.net, len(data.manifest.classes), s.input_size, s.width)
    return Comparison(
        s,
        shape,
        points,
        tuple(found),
        flops,
        peak_flops(device, "float32", shape.cpus),
        _saving(data, s, shape, folder),
    )


def _saving(data: DataSet, s: StageSettings, shape: Shape, folder: Path) -> Cost:
    """What a checkpoint costs the steps around it, on one worker: this process, on a CPU."""
    torch.set_num_threads(shape.cpus)
    world, order = World.single(shape.cpus), Order.of(data.manifest, s.batch, s.seed)
    stage = Stage("bench", s, data.location.absolute, data.location.absolute, str(folder / "saving"))
    attempt = Attempt(stage, card(s, data.manifest), order, world, Undisturbed(), lambda record: None)
    with (
        closing(attempt),
        closing(TrainingBatches(data, order, recipes(s, data.manifest)[0], world.seat, 0, 1)) as batches,
    ):
        batch = next(iter(batches))

        def step() -> None:
            attempt.step.gradients(batch, 0)
            attempt.optimiser.step()

        return checkpoint_cost.measure(step, attempt.save, attempt.wait, _CHECKPOINTS, _STEPS_BETWEEN)


def _ours(stage: Stage, shape: Shape, cluster: ClusterSettings) -> list[dict[str, Any]]:
    """The records of time by part, of a run of one epoch."""
    records: list[dict[str, Any]] = []
    with interrupt.noted() as stop, launch.environment(cluster):
        launch.train_stage(stage, shape, cluster, records.append, stop)
    return [record for record in records if record["kind"] == "parts"]


def _intervals(records: list[dict[str, Any]]) -> Iterator[Interval]:
    for before, after in zip(records, records[1:], strict=False):
        steps = after["step"] - before["step"]
        yield Interval(steps, after["parts"], after["seconds"], after["cpu_seconds"])


def _bare(s: StageSettings, data: str, shape: Shape, points: tuple[int, ...], folder: Path) -> Answer:
    pairs = max(1, min(_PAIRS_MOST, (points[-1] - points[0]) // 4))
    task = Task(settings=s, data=data, cuda=shape.gpus > 0, threads=shape.cpus, points=points, pairs=pairs)
    try:
        answer = torchrun.run(bare.__name__, task, shape.workers, folder)
    except BenchError as error:
        raise BenchError(f"the bare loop: {error}") from error
    return Answer(tuple(answer["seconds"]), tuple(answer["cpu_seconds"]), answer["backward"], answer["exchanged"])
