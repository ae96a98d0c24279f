"""The loop of one stage."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from cluster import checkpoint, init, optimise
from cluster.checkpoint import Card, Checkpoint, Epoch, Progress
from cluster.metrics import Meter, Totals
from cluster.settings import StageSettings
from cluster.step import Step, loss
from cluster.vgg import VGG
from cluster.world import World
from pipelines.augment import Recipe
from pipelines.errors import TrainingError
from pipelines.loader import TrainingBatches, ValidationBatches
from pipelines.order import Order
from pipelines.schema import Manifest, Statistics
from pipelines.shards import DataSet
from pipelines.stream import Batch

Log = Callable[[dict[str, Any]], None]

_LINES_PER_EPOCH = 4
_STEPS_PER_POINT = 50  # metrics at least this often, in steps


@dataclass(frozen=True)
class Stage:
    """One stage's work: `start` is the checkpoint that its net starts from, `folder` takes its own."""

    name: str
    settings: StageSettings
    training_data: str
    validation_data: str
    folder: Path
    start: Path | None = None


def train(stage: Stage, world: World, log: Log) -> Progress:
    """Trains to the end, from the newest checkpoint if there is one. Every worker calls it; only rank 0 writes."""
    s = stage.settings
    training, validation = DataSet.open(stage.training_data), DataSet.open(stage.validation_data)
    order = Order.of(training.manifest, s.batch, s.seed)
    card = _card(s, training.manifest)
    net, saved = _begin(stage, card, world)
    model, meter = Step(net, world, s, order), Meter(world)
    optimiser = optimise.sgd(net, s.learning_rate, s.momentum, s.weight_decay)
    if saved is not None:
        optimiser.load_state_dict(saved.optimiser)
    progress = saved.progress if saved is not None else Progress()
    first, last = (epochs * order.steps_per_epoch for epochs in (len(progress.epochs), s.epochs))
    recipe, middle = _recipes(s, training.manifest)
    with (
        closing(TrainingBatches(training, order, recipe, world.seat, first, last)) as batches,
        closing(ValidationBatches(validation, middle, world.seat)) as checks,
    ):
        stream = iter(batches)
        while not _over(progress, s):
            number = len(progress.epochs)
            rate = optimise.schedule(progress.accuracies, s.plateau).rate(s.learning_rate, s.plateau.factor)
            optimise.set_rate(optimiser, rate)
            started = time.monotonic()
            report = _reporter(stage, number, rate, started, log)
            totals = _epoch(number, model, optimiser, stream, order, meter, s.max_unreadable, report, log)
            trained = time.monotonic()
            checked = validate(model, checks, meter, validation.rows, log)
            check_readable(checked, validation.rows, s.max_unreadable)
            epoch = _result(totals, checked, rate, trained - started, time.monotonic() - started)
            progress.epochs.append(epoch)
            if world.rank == 0:
                settings = s.model_dump(by_alias=True)
                saved = Checkpoint(card, net.state_dict(), optimiser.state_dict(), progress, settings)
                checkpoint.save(stage.folder, saved)
                checkpoint.prune(stage.folder, {progress.best, number + 1})
            log({"kind": "epoch", "stage": stage.name, "epoch": number + 1, "epochs": s.epochs, **asdict(epoch)})
            log({"kind": "reading", "epoch": number + 1, "rank": world.rank, "read_per_used": batches.read_per_used})
    return progress


def _card(s: StageSettings, training: Manifest) -> Card:
    mean = _statistics(training).mean_rgb
    return Card(s.net, training.classes, s.input_size, s.width, mean, s.pixel_std, s.scale, s.flip, s.batch_norm)


def _recipes(s: StageSettings, training: Manifest) -> tuple[Recipe, Recipe]:
    """What is done to images that are trained on, and to those that are validated with."""
    statistics = _statistics(training)
    return (
        Recipe(s.scale, s.input_size, s.flip, s.colour_shift, s.pixel_std, statistics),
        Recipe((s.test_scale,) * 2, s.input_size, False, 0.0, s.pixel_std, statistics),
    )


def _statistics(training: Manifest) -> Statistics:
    assert training.statistics is not None  # of a job's training set, which was checked
    return training.statistics


def _result(totals: Totals, checked: Totals, rate: float, training_seconds: float, seconds: float) -> Epoch:
    return Epoch(
        loss=totals.loss,
        accuracy=totals.accuracy,
        validation_loss=checked.loss,
        validation_accuracy=checked.accuracy,
        validation_accuracy5=checked.accuracy5,
        learning_rate=rate,
        images_per_second=totals.images / training_seconds,
        seconds=seconds,
        unreadable=totals.unreadable,
    )


def _over(progress: Progress, s: StageSettings) -> bool:
    return len(progress.epochs) >= s.epochs or optimise.schedule(progress.accuracies, s.plateau).finished


def _begin(stage: Stage, card: Card, world: World) -> tuple[VGG, Checkpoint | None]:
    """The net, new, or that of the newest checkpoint, which comes with it."""
    s = stage.settings
    net = card.build(s.dropout)
    saved = checkpoint.newest(stage.folder)
    if saved is not None:
        net.load_state_dict(saved.weights)
    else:
        init.randomise(net, s.init.random, s.init.std, s.seed)
        if stage.start is not None:
            source = checkpoint.load(stage.start)
            init.copy_from(net, source.card.net, source.weights)
    return net.to(world.device), saved


def _epoch(
    number: int,
    model: Step,
    optimiser: torch.optim.SGD,
    stream: Iterator[Batch],
    order: Order,
    meter: Meter,
    max_unreadable: float,
    report: Callable[[int, int, Totals | None], None],
    log: Log,
) -> Totals:
    """One pass over the training set."""
    steps = order.steps_per_epoch
    points = _points(steps)
    totals = Totals(0, 0.0, 0, 0)
    for step in range(1, steps + 1):
        batch = next(stream)
        scores, losses = model.gradients(batch, number * steps + step - 1)
        optimiser.step()
        meter.add(scores, batch.labels, losses, len(batch.replaced))
        name_unreadable(batch, log)
        point = meter.read() if step in points else None
        report(step, steps, point)
        if point is not None:
            totals = totals + point
            check_readable(totals, order.rows, max_unreadable)
    if totals.images != order.rows:
        raise TrainingError(f"an epoch of {order.rows} images has trained on {totals.images}")
    return totals


def validate(model: Step, batches: ValidationBatches, meter: Meter, rows: int, log: Log) -> Totals:
    """Loss and accuracy on the middle crops of all `rows` images, each counted once."""
    for batch in batches:
        scores = model.evaluate(batch.images)
        meter.add(scores, batch.labels, loss(scores, batch.labels), len(batch.replaced))
        name_unreadable(batch, log)
    totals = meter.read()
    if totals.images != rows:
        raise TrainingError(f"a validation set of {rows} images had {totals.images} looked at")
    return totals


def name_unreadable(batch: Batch, log: Log) -> None:
    """Tells of a batch's images that could not be decoded."""
    for image in batch.replaced:
        log({"kind": "unreadable", "name": image.name, "reason": image.reason})


def check_readable(totals: Totals, rows: int, most: float) -> None:
    """Raises TrainingError, on all workers, if more than the share `most` of `rows` images could not be decoded."""
    if totals.unreadable > most * rows:
        raise TrainingError(
            f"{totals.unreadable} of {rows} images cannot be decoded, more than max_unreadable ({most:g}) allows; "
            "they are named above and in MLflow: prepare the data set again"
        )


def _reporter(
    stage: Stage, epoch: int, rate: float, started: float, log: Log
) -> Callable[[int, int, Totals | None], None]:
    """Tells of a step: a tick for the progress bar, and where there are totals of the steps since, a point."""
    images, lines = 0, 0

    def report(step: int, steps: int, totals: Totals | None) -> None:
        nonlocal images, lines
        where = {"stage": stage.name, "epoch": epoch + 1, "epochs": stage.settings.epochs, "step": step, "steps": steps}
        if totals is None:
            log({"kind": "tick", **where})
            return
        if not math.isfinite(totals.loss):
            raise TrainingError(
                f"stage {stage.name}: the loss is {totals.loss} in epoch {epoch + 1} before step {step}; "
                f"the learning rate was {rate:g}. Checkpoints of earlier epochs are kept"
            )
        images += totals.images
        line = step * _LINES_PER_EPOCH // steps
        log(
            {
                "kind": "point",
                **where,
                "loss": totals.loss,
                "accuracy": totals.accuracy,
                "learning_rate": rate,
                "images_per_second": images / (time.monotonic() - started),
                "line": line > lines and step < steps,
            }
        )
        lines = line

    return report


def _points(steps: int) -> set[int]:
    """The steps after which the meter is read, the last one of the epoch among them."""
    n = max(_LINES_PER_EPOCH, math.ceil(steps / _STEPS_PER_POINT))
    return {math.ceil(k * steps / n) for k in range(1, n + 1)}
