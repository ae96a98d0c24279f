"""One attempt at a stage: from its newest checkpoint, or from nothing, to its end, a stop or a crash."""

import math
import time
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass

import torch

from cluster import checkpoint, init, optimise
from cluster.agree import Agreement, Control, Wish
from cluster.checkpoint import Card, Checkpoint, Epoch, Progress, Writer
from cluster.metrics import Meter, Totals
from cluster.optimise import Average
from cluster.records import Log, check_readable
from cluster.settings import CheckpointSettings, StageSettings
from cluster.step import Step
from cluster.stopwatch import Stopwatch
from cluster.vgg import VGG
from cluster.world import World
from pipelines.errors import TrainingError
from pipelines.location import Location
from pipelines.order import Order


@dataclass(frozen=True)
class Stage:
    """One stage's work.

    `folder` takes its checkpoints and `start` is the one that its net starts from: whole paths or URIs. `run` is its
    run in MLflow. With `ledger`, the rows of every step are told of.
    """

    name: str
    settings: StageSettings
    training_data: str
    validation_data: str
    folder: str
    start: str | None = None
    run: str | None = None
    checkpoints: CheckpointSettings = CheckpointSettings()
    ledger: bool = False


class Stopped(Exception):  # noqa: N818 - no error
    """All workers end here, at the same step; its checkpoint is on its way."""


class Attempt:
    """What a stage is while it is under way. All workers make one together and call its methods together."""

    def __init__(self, stage: Stage, card: Card, order: Order, world: World, control: Control, log: Log) -> None:
        s = stage.settings
        self.stage, self.order, self.world, self.log = stage, order, world, log
        self.card, self._control = card, control
        saved = _newest(Location.of(stage.folder), world)
        self.progress = saved.progress if saved else Progress()
        self.net = _net(stage, card, saved).to(world.device)
        self.optimiser = optimise.sgd(self.net, s)
        if saved:
            optimise.restore(self.optimiser, self.net, saved.momentum)
        self.average = _average(s, self.net, saved)
        self.watch = Stopwatch(world.device)
        self.step = Step(self.net, world, s, order, self.watch)
        self.meter = Meter(world)
        self._agreement = Agreement(world)
        self._writer = Writer(Location.of(stage.folder), stage.checkpoints.keep) if world.rank == 0 else None
        self._saved_at = time.monotonic()

    def count(self) -> Totals:
        """What the epoch comes to so far, over all workers. Raises TrainingError if it should not go on."""
        before, new = self.progress.totals, self.meter.read()
        if new.images and not math.isfinite(new.loss):
            raise TrainingError(self._not_finite(before, new))
        self.progress.totals = before + new
        check_readable(self.progress.totals, self.order.rows, self.stage.settings.max_unreadable)
        return self.progress.totals

    def heed(self) -> None:
        """Does what the workers agreed on one call ago. Raises Stopped."""
        wish = self._agreement.exchange(max(self._control.wish(), self._due()))
        if wish is Wish.LOOK:
            wish = self._control.look()
        if wish >= Wish.SAVE:
            self.save()
        if wish is Wish.STOP:
            raise Stopped

    def end_epoch(self, epoch: Epoch) -> None:
        self.progress = Progress([*self.progress.epochs, epoch])
        self.save()

    def save(self) -> None:
        """Worker 0 writes a checkpoint, while training goes on."""
        self.count()
        self._saved_at = time.monotonic()
        if self._writer is not None:
            self._writer.save(
                Checkpoint(
                    self.card,
                    self.net.state_dict(),
                    optimise.momentum(self.optimiser, self.net),
                    self.average.weights if self.average else None,
                    deepcopy(self.progress),
                    self.stage.settings.model_dump(by_alias=True, mode="json"),
                    self.stage.run,
                )
            )

    def close(self) -> None:
        """Waits for the checkpoints that are being written. Raises CheckpointError if one cannot be."""
        if self._writer is not None:
            self._writer.close()

    def _due(self) -> Wish:
        every = 60 * self.stage.checkpoints.every_minutes
        due = self.world.rank == 0 and time.monotonic() - self._saved_at >= every
        return Wish.SAVE if due else Wish.NONE

    def _not_finite(self, before: Totals, new: Totals) -> str:
        epoch, step = len(self.progress.epochs) + 1, self.progress.step
        last = f"it was {before.loss:.4g} before" if before.images else "it had no other in this epoch"
        return (
            f"stage {self.stage.name}: the loss is {new.loss} in epoch {epoch} before step {step + 1}; {last}, the "
            f"gradient's norm is {new.gradient_norm:.4g}, the learning rate "
            f"{self.optimiser.param_groups[0]['lr']:g}. Checkpoints of before are kept"
        )


def _newest(folder: Location, world: World) -> Checkpoint | None:
    """The one that worker 0 finds, for all: another may see a file less, or more."""
    saved = checkpoint.newest(folder) if world.rank == 0 else None
    name = world.from_first(checkpoint.name_of(saved.progress) if saved else None)
    if world.rank == 0 or name is None:
        return saved
    return checkpoint.load(folder / name)


def _net(stage: Stage, card: Card, saved: Checkpoint | None) -> VGG:
    s = stage.settings
    net = card.build(s.dropout)
    if saved is not None:
        net.load_state_dict(saved.weights)
        return net
    init.randomise(net, s.init.random, s.init.std, s.seed)
    if stage.start is not None:
        source = checkpoint.load(Location.of(stage.start))
        init.copy_from(net, source.card.net, source.delivered)
    return net
