"""The loop of one stage."""

import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import asdict
from enum import Enum

import torch

from cluster import optimise, records
from cluster.agree import Control, Undisturbed
from cluster.attempt import Attempt, Stage, Stopped
from cluster.checkpoint import Card
from cluster.metrics import Meter, Totals
from cluster.records import Log
from cluster.settings import StageSettings
from cluster.world import World
from pipelines.augment import Recipe
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

    Every worker calls it; only worker 0 writes. Raises TrainingError on all workers together, and DataError or
    CheckpointError on the one that meets it.
    """
    s = stage.settings
    training, validation = DataSet.open(stage.training_data), DataSet.open(stage.validation_data)
    order = Order.of(training.manifest, s.batch, s.seed)
    recipe, middle = _recipes(s, training.manifest)
    with ExitStack() as stack:
        attempt = Attempt(stage, _card(s, training.manifest), order, world, control or Undisturbed(), log)
        stack.enter_context(closing(attempt))
        first = len(attempt.progress.epochs) * order.steps_per_epoch + attempt.progress.step
        batches = TrainingBatches(training, order, recipe, world.seat, first, s.epochs * order.steps_per_epoch)
        checks = ValidationBatches(validation, middle, world.seat)
        stack.enter_context(closing(batches))
        stack.enter_context(closing(checks))
        stream = iter(batches)
        try:
            while not optimise.finished(s, attempt.progress.accuracies):
                _epoch(attempt, stream)
                began = time.monotonic()
                checked = _validate(attempt, checks, validation.rows)
                _conclude(attempt, checked, time.monotonic() - began)
                read = batches.read_per_used
                log({"kind": "reading", "epoch": len(attempt.progress.epochs), "rank": world.rank, "read_per_used": read})
        except Stopped:
            return Outcome.STOPPED
    return Outcome.FINISHED


def _epoch(attempt: Attempt, stream: Iterator[Batch]) -> None:
    """What is left of one pass over the training set."""
    s, progress, order, watch = attempt.stage.settings, attempt.progress, attempt.order, attempt.watch
    number, steps = len(progress.epochs), order.steps_per_epoch
    points = records.points(steps)
    counted, rates = progress.totals, attempt.rates()
    attempt.net.train()
    for at in range(progress.step, steps):
        began = time.perf_counter()
        with watch("input"):
            batch = next(stream)
        rate = optimise.rate(s, number * steps + at, steps, progress.accuracies)
        optimise.set_rate(attempt.optimiser, rate)
        scores, losses = attempt.step.gradients(batch, number * steps + at)
        with watch("optimiser"):
            norm = optimise.clip(attempt.parameters, s.clip_norm)
            attempt.optimiser.step()
            if attempt.average:
                attempt.average.update(attempt.net)
        with watch("report"):
            attempt.meter.add(scores, batch.labels, losses, len(batch.replaced), norm)
            records.name_unreadable(batch, attempt.log)
            progress.step = at + 1
            progress.seconds += time.perf_counter() - began
            attempt.tell_step(batch)
            if progress.step in points:
                counted = _point(attempt, counted, rates, rate, points[progress.step])
            attempt.heed()
    totals = attempt.count()
    if totals.images != order.rows:
        raise TrainingError(f"an epoch of {order.rows} images has trained on {totals.images}")


def _point(attempt: Attempt, before: Totals, rates: records.Rates, rate: float, line: bool) -> Totals:
    """Tells of the steps since the totals were `before`; returns what they are now."""
    now = attempt.count()
    since, parts = now - before, attempt.watch.read()
    if since.images:
        attempt.tell(
            "point",
            line=line,
            learning_rate=rate,
            memory_bytes=flops.peak_memory(attempt.world.device),
            **records.numbers(since),
            **rates.read(since.images, parts),
        )
        attempt.tell("parts", **parts)
    return now


def _validate(attempt: Attempt, checks: ValidationBatches, rows: int) -> Totals:
    """Loss and accuracy on the middle crops of all `rows` images, each counted once."""
    meter = Meter(attempt.world)
    net = attempt.step.validated(attempt.average)
    batches = iter(checks)
    with torch.inference_mode():
        for _ in range(checks.most):
            batch = next(batches, None)
            if batch is not None:
                scores = net(batch.images)
                losses = F.cross_entropy(scores, batch.labels, reduction="none")
                meter.add(scores, batch.labels, losses, len(batch.replaced))
                records.name_unreadable(batch, attempt.log)
            attempt.tell("tick")
            attempt.heed()
    totals = meter.read()
    if totals.images != rows:
        raise TrainingError(f"a validation set of {rows} images had {totals.images} looked at")
    check_readable(totals, rows, attempt.stage.settings.max_unreadable)
    return totals
