"""The loop of one stage."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, nullcontext
from dataclasses import asdict
from enum import Enum

from cluster import chance, optimise, records, schedule
from cluster.agree import Control, Undisturbed, Wish
from cluster.attempt import Attempt, Stage, Stopped
from cluster.checkpoint import Card
from cluster.metrics import Meter, Totals
from cluster.records import Log
from cluster.settings import StageSettings
from cluster.step import loss
from cluster.world import World
from pipelines import probe, tune
from pipelines.augment import Recipe
from pipelines.decoding import Decoding
from pipelines.errors import TrainingError
from pipelines.loader import TrainingBatches, ValidationBatches
from pipelines.order import Order
from pipelines.schema import Manifest, Statistics
from pipelines.shards import DataSet
from pipelines.stream import Batch


class Outcome(Enum):
    FINISHED = "finished"
    STOPPED = "stopped"


def train(stage: Stage, world: World, log: Log, control: Control | None = None) -> Outcome:
    """Trains to the end, or until it is asked to stop, from the newest checkpoint if there is one.

    Every worker calls it; worker 0 writes. Raises TrainingError, on all workers together, if training should not go
    on, and DataError or CheckpointError on the worker that meets it.
    """
    s = stage.settings
    training, validation = DataSet.open(stage.training_data), DataSet.open(stage.validation_data)
    order = Order.of(training.manifest, s.batch, s.seed)
    recipe, middle = recipes(s, training.manifest)
    with ExitStack() as stack:
        attempt = stack.enter_context(
            Attempt(stage, card(s, training.manifest), order, world, control or Undisturbed(), log)
        )
        done = len(attempt.progress.epochs) * order.steps_per_epoch + attempt.progress.step

        def batches_by(decoding: Decoding) -> TrainingBatches:
            last = s.epochs * order.steps_per_epoch
            return TrainingBatches(training, order, recipe, world.seat, done, last, decoding)

        decoding = _decoding(attempt, batches_by)
        batches = batches_by(decoding)
        stack.enter_context(closing(batches))
        checks = ValidationBatches(validation, middle, world.seat, decoding)
        stack.enter_context(closing(checks))
        stream = iter(batches)
        try:
            while not schedule.finished(s, attempt.progress.accuracies):
                _epoch(attempt, stream)
                began = time.monotonic()
                checked = _validate(attempt, checks, validation.rows)
                attempt.tell("reading", rank=world.rank, read_per_used=batches.read_per_used)
                _conclude(attempt, checked, time.monotonic() - began)
        except Stopped:
            return Outcome.STOPPED
    return Outcome.FINISHED


def _decoding(attempt: Attempt, batches_by: Callable[[Decoding], TrainingBatches]) -> Decoding:
    """For all of the attempt: on a GPU the way that is the fastest on this worker. Where results have to be the same
    bits it is one and the same for all, without JPEG engines: these round otherwise, and which images of a batch they
    take depends on the batch, and so on the number of workers."""
    safe = probe.safe(attempt.world.seat.device_id)
    if attempt.world.device.type != "cuda" or attempt.stage.settings.reproducible == "exact":
        return safe
    with closing(batches_by(safe)) as batches:
        choice = tune.choose(batches, safe=safe)
    attempt.tell("decoding", text=str(choice))
    return choice.decoding


def _epoch(attempt: Attempt, stream: Iterator[Batch]) -> None:
    """What is left of one pass over the training set. Raises Stopped."""
    progress, order, watch = attempt.progress, attempt.order, attempt.watch
    done, steps = len(progress.epochs) * order.steps_per_epoch, order.steps_per_epoch
    points = records.points(steps)
    watch.read()  # what was before is no step's
    for step in range(progress.step, steps):
        with watch("input"):
            batch = next(stream)
        scores, losses = attempt.step.gradients(batch, done + step)
        with watch("optimiser"):
            attempt.set_rate(done + step)
            norm = optimise.clip(attempt.parameters, attempt.stage.settings.clip_norm)
            attempt.optimiser.step()
            if attempt.average:
                attempt.average.update(attempt.net, done + step + 1)
        with watch("report"):
            attempt.meter.add(scores, batch.labels, losses, len(batch.replaced), norm)
            progress.step = step + 1
            attempt.tell_step(batch)
            if progress.step in points:
                attempt.point(line=points[progress.step])
            attempt.heed()
    attempt.set_rate(done + steps - 1)  # if all of it was trained on in earlier attempts
    if progress.totals.images != order.rows:
        raise TrainingError(f"an epoch of {order.rows} images has trained on {progress.totals.images}")


def _validate(attempt: Attempt, checks: ValidationBatches, rows: int) -> Totals:
    """Loss and accuracy on the middle crops of all `rows` images, each counted once. Raises Stopped."""
    meter, batches, wish = Meter(attempt.world), iter(checks), Wish.NONE
    with attempt.average.inside(attempt.net) if attempt.average else nullcontext():
        for _ in range(checks.most):  # equally often on all workers
            batch = next(batches, None)
            if batch is not None:
                scores = attempt.step.evaluate(batch.images)
                meter.add(scores, batch.labels, loss(scores, batch.labels), len(batch.replaced))
                records.name_unreadable(batch, attempt.log)
            attempt.tell("tick")
            if (wish := attempt.agree()) is Wish.STOP:
                break
    if wish is Wish.STOP:
        attempt.stop()
    totals = meter.read()
    if totals.images != rows:
        raise TrainingError(f"a validation set of {rows} images had {totals.images} looked at")
    if not math.isfinite(totals.loss):
        number, seen = len(attempt.progress.epochs) + 1, attempt.progress.totals.loss
        raise TrainingError(f"the validation loss is {totals.loss} after epoch {number}; in training it was {seen:.4g}")
    records.check_readable(totals, rows, attempt.stage.settings.max_unreadable)
    return totals


def _conclude(attempt: Attempt, checked: Totals, validating: float) -> None:
    """Ends an epoch: its numbers, a checkpoint, and a word if it has learnt nothing."""
    progress, s = attempt.progress, attempt.stage.settings
    speed = attempt.speed.numbers(progress.totals.images, progress.seconds, progress.waiting)
    epoch = records.result(progress.totals, checked, attempt.rate, speed, progress.seconds + validating)
    attempt.tell("epoch", **asdict(epoch))
    attempt.end_epoch(epoch)
    losses = [past.loss for past in attempt.progress.epochs]
    accuracies = [past.accuracy for past in attempt.progress.epochs]
    if text := chance.warning(s, losses, accuracies, len(attempt.card.classes), attempt.order.steps_per_epoch):
        attempt.tell("warning", text=f"stage {attempt.stage.name}: {text}")


def card(s: StageSettings, training: Manifest) -> Card:
    """Of a net that is trained so on this set."""
    mean = _statistics(training).mean_rgb
    return Card(s.net, training.classes, s.input_size, s.width, mean, s.pixel_std, s.scale, s.flip, s.batch_norm)


def recipes(s: StageSettings, training: Manifest) -> tuple[Recipe, Recipe]:
    """What is done to images that are trained on, and to those that are validated with."""
    statistics = _statistics(training)
    return (
        Recipe(s.scale, s.input_size, s.flip, s.colour_shift, s.pixel_std, statistics),
        Recipe((s.test_scale,) * 2, s.input_size, False, 0.0, s.pixel_std, statistics),
    )


def _statistics(training: Manifest) -> Statistics:
    assert training.statistics is not None  # of a job's training set, which was checked
    return training.statistics
