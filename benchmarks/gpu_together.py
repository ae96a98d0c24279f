"""Training on JPEGs out of Parquet files as users start it, through Ray Train, beside what its two halves reach alone.

The halves are measured right before, in this process, with the same settings: the step on one batch that is kept, and
the input whose batches nobody looks at. E first, whose share of the synthetic rate is the aim; then D and A, as far as
there is time.
"""

import gc
import shutil
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from benchmarks import pictures
from benchmarks.setting import Setting, seconds
from cluster import checkpoint_cost, interrupt, launch, optimise, place
from cluster.agree import Undisturbed
from cluster.attempt import Attempt, Stage
from cluster.settings import ClusterSettings, StageSettings
from cluster.train import card, recipes
from pipelines import cycle, tune
from pipelines.decoding import Decoding
from pipelines.loader import TrainingBatches
from pipelines.order import Order
from pipelines.shards import DataSet
from pipelines.stream import Batch

_NETS, _SMALL_NETS = ("E", "D", "A"), ("E", "A")
_ROUGHLY_SECONDS = 35.0  # of a net that is measured without its checkpoints
_CHECKPOINT_SECONDS = 12.0
_TUNING_SECONDS = 4.0  # after which no other way of decoding is tried
_TRAINING_SECONDS = 7.0  # in steady state; as long again a third of it before
_LEAST_STEPS, _MOST_STEPS = 40, 400
_LEARNING_RATE = 1e-8  # no net diverges with it, whatever its first weights
_GOAL = 0.95  # of the synthetic rate, and of the slower half


@dataclass(frozen=True)
class _Alone:
    """Images a second of the halves, each by itself."""

    step: float
    input: float

    @property
    def slower(self) -> float:
        return min(self.step, self.input)


def run(setting: Setting) -> None:
    data = DataSet.open(str(pictures.training_set(setting, setting.pick(1024, 32))))
    feed: float | None = None
    for number, net in enumerate(_SMALL_NETS if setting.small else _NETS):
        if number and setting.left() < _ROUGHLY_SECONDS:
            setting.report.left_out(net)
            continue
        s, folder = _settings(setting, net), setting.folder / f"together-{net}"
        feed = feed or _input_alone(setting, data, s)
        alone = _Alone(_step_alone(setting, data, s, folder), feed)
        starting = time.monotonic()
        launch.connect("local")  # once
        _together(setting, data, s, folder, alone, starting)
        shutil.rmtree(folder)
    launch.disconnect()


def _settings(setting: Setting, net: str) -> StageSettings:
    small = setting.small
    return StageSettings(
        net=net,  # type: ignore[arg-type]
        scale=(32, 48) if small else (256, 512),
        input_size=setting.pick(224, 32),
        width=0.05 if small else 1.0,
        batch=setting.pick(256, 8),
        epochs=1,
        learning_rate=_LEARNING_RATE,
    )


def _input_alone(setting: Setting, data: DataSet, s: StageSettings) -> float:
    """Images a second."""
    warm_up, steps = setting.pick(10, 2), setting.pick(60, 6)
    longer = cycle.write(data, (warm_up + steps) * s.batch, setting.folder / "together-input")
    decoding = Decoding()
    if setting.cuda:  # as every worker does it
        with closing(_batches(setting, longer, s, warm_up + steps)) as batches:
            choice = tune.choose(batches, seconds=_TUNING_SECONDS)
        setting.report.note(f"input alone: {choice}")
        decoding = choice.decoding
    with closing(_batches(setting, longer, s, warm_up + steps, decoding)) as batches:
        stream = iter(batches)
        for _ in islice(stream, warm_up):
            _settle(setting)
        start = time.perf_counter()
        for _ in islice(stream, steps):
            pass
        _settle(setting)
        return steps * s.batch / (time.perf_counter() - start)


def _batches(
    setting: Setting, data: DataSet, s: StageSettings, steps: int, decoding: Decoding | None = None
) -> TrainingBatches:
    order, recipe = Order.of(data.manifest, s.batch, s.seed), recipes(s, data.manifest)[0]
    return TrainingBatches(data, order, recipe, setting.world.seat, 0, steps, decoding or Decoding())


def _settle(setting: Setting) -> None:
    if setting.cuda:
        torch.cuda.synchronize(setting.device)


def _step_alone(setting: Setting, data: DataSet, s: StageSettings, folder: Path) -> float:
    """Images a second; and what a checkpoint costs, if there is time for it."""
    each = _step_seconds(setting, data, s, folder)
    gc.collect()
    if setting.cuda:
        torch.cuda.empty_cache()  # the worker that follows finds all of the memory
    return s.batch / each


def _step_seconds(setting: Setting, data: DataSet, s: StageSettings, folder: Path) -> float:
    stage = Stage("alone", s, data.location.absolute, data.location.absolute, str(folder / "alone"))
    order = Order.of(data.manifest, s.batch, s.seed)
    attempt = Attempt(stage, card(s, data.manifest), order, setting.world, Undisturbed(), lambda record: None)
    with closing(attempt), closing(_batches(setting, data, s, 1)) as batches:
        step = _step(attempt, next(iter(batches)))
        several = setting.pick(10, 1)  # without waiting for each, as in the loop
        times, calls = setting.pick(4, 3), range(several)
        each = seconds(lambda: [step() for _ in calls], setting.device, times, warm_up=1) / several
        if setting.left() > _ROUGHLY_SECONDS + _CHECKPOINT_SECONDS or setting.small:
            _checkpoints(setting, attempt, step, s.net)
    return each


def _step(attempt: Attempt, batch: Batch) -> Callable[[], None]:
    """What the loop does with a batch."""
    kept = Batch(batch.images.clone(), batch.labels.clone(), batch.rows, batch.total)

    def step() -> None:
        scores, losses = attempt.step.gradients(kept, 0)
        norm = optimise.clip(attempt.parameters, attempt.stage.settings.clip_norm)
        attempt.optimiser.step()
        attempt.meter.add(scores, kept.labels, losses, 0, norm)

    return step


def _checkpoints(setting: Setting, attempt: Attempt, step: Callable[[], None], net: str) -> None:
    def settled() -> None:
        step()
        _settle(setting)

    times, between = setting.pick(3, 2), setting.pick(12, 2)
    cost = checkpoint_cost.measure(settled, attempt.save, attempt.wait, times, between)
    setting.report.row(
        "A checkpoint, of weights and momentum, to the local disk",
        net=net,
        **{"step, ms": 1000 * cost.normal, "step that saves, ms": 1000 * cost.triggering},
        **{"next steps, ms": 1000 * cost.following, "written after, s": cost.written},
    )


def _together(setting: Setting, data: DataSet, s: StageSettings, folder: Path, alone: _Alone, starting: float) -> None:
    """A stage of one epoch on Ray. `starting`: when Ray's start began, on the clock `time.monotonic`."""
    steps = round(4 / 3 * _TRAINING_SECONDS * alone.slower / s.batch)
    steps = setting.pick(min(max(steps, _LEAST_STEPS), _MOST_STEPS), 24)
    longer = cycle.write(data, steps * s.batch, folder / "train").location.absolute
    validation = cycle.write(data, 1, folder / "val").location.absolute
    stage = Stage(f"together-{s.net}", s, longer, validation, str(folder / "stage"))
    records: list[dict[str, Any]] = []
    offset = time.time() - time.monotonic()  # of the workers' clock to ours
    settings = ClusterSettings(workers=(1, 1), max_failures=0)
    shape = place.shape(settings)
    connected = time.monotonic()
    with interrupt.noted() as stop, launch.environment(settings):
        launch.train_stage(stage, shape, settings, records.append, stop)
    ended = time.monotonic()
    setting.report.row(
        "From nothing to the end of one epoch, s",
        net=s.net,
        Ray=connected - starting,
        **{"worker there": _first(records, "workers") - offset - connected},
        **{"its first step done": _first(records, "tick") - _first(records, "workers")},
        **{"after its last step": ended - (_last(records, "tick") - offset)},
    )
    for record in records:
        if record["kind"] == "decoding":
            setting.report.note(f"{s.net}: {record['text']}")
    _tell(setting, s, alone, [record for record in records if record["kind"] == "parts"])


def _first(records: list[dict[str, Any]], kind: str) -> float:
    return next(float(record["time"]) for record in records if record["kind"] == kind)


def _last(records: list[dict[str, Any]], kind: str) -> float:
    return next(
        float(record["time"]) for record in reversed(records) if record["kind"] == kind and record["epoch"] == 1
    )


def _tell(setting: Setting, s: StageSettings, alone: _Alone, points: list[dict[str, Any]]) -> None:
    """`points`: the records of time by part; what is before the end of the first one is starting up."""
    steady = points[1:]
    spent = sum(point["seconds"] for point in steady)
    steps = steady[-1]["step"] - points[0]["step"]
    speed = steps * s.batch / spent
    shares = {part: sum(point["parts"][part] for point in steady) / spent for part in steady[0]["parts"]}
    report = setting.report
    report.row(
        "Training on JPEGs, images/s in steady state",
        net=s.net,
        steps=steps,
        **{"together": speed, "step alone": alone.step, "input alone": alone.input},
        **{"of the slower %": 100 * speed / alone.slower, "waiting for input %": 100 * shares["input"]},
    )
    report.row("Where the time goes, %", net=s.net, **{part: 100 * share for part, share in shares.items()})
    report.check(f"{s.net}: steps that were timed", steps, least=setting.pick(_LEAST_STEPS // 2, 12))
    if s.net == "E":
        report.check("E: together over the step alone", speed / alone.step, least=_GOAL, goal=True)
    report.check(f"{s.net}: together over the slower half", speed / alone.slower, least=_GOAL, goal=True)
