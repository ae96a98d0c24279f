"""One attempt at a stage: from its newest checkpoint, or from nothing, to its end, a stop or a crash."""

import logging
import math
import time
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from types import TracebackType
from typing import Any

from torch import nn

from cluster import checkpoint, exchange, init, nets, optimise, schedule
from cluster.agree import Agreement, Control, Wish
from cluster.average import Average
from cluster.checkpoint import Card, Checkpoint, Epoch, Progress
from cluster.metrics import Meter, Totals
from cluster.records import Log, Speed, check_readable, name_unreadable, numbers
from cluster.settings import CheckpointSettings, StageSettings
from cluster.step import Step
from cluster.stopwatch import Stopwatch
from cluster.vgg import VGG
from cluster.world import World
from cluster.writer import Writer
from pipelines.errors import CheckpointError, TrainingError
from pipelines.location import Location
from pipelines.order import Order
from pipelines.stream import Batch

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Stage:
    """One stage's work.

    `folder` takes its checkpoints, and `start` is the file of the net that it starts from: whole paths or URIs. `run`:
    in MLflow. `ledger`: the rows of every step are told of.
    """

    name: str
    settings: StageSettings
    training_data: str
    validation_data: str
    folder: str
    start: str | None = None
    run: str | None = None
    checkpoints: CheckpointSettings = field(default_factory=CheckpointSettings)
    ledger: bool = False


class Stopped(Exception):
    """All workers end here, at the same step, whose checkpoint is on its way."""


class Attempt:
    """A stage that is under way. Every worker makes one, and calls its methods when the others do."""

    def __init__(self, stage: Stage, card: Card, order: Order, world: World, control: Control, log: Log) -> None:
        """Raises CheckpointError, and what `Step` raises."""
        s, folder = stage.settings, Location.of(stage.folder)
        self.stage, self.card, self.order, self.world = stage, card, order, world
        self.log, self._control = log, control
        saved, damaged = _newest(folder, world)
        self.progress = saved.progress if saved else Progress()
        self.net = _net(stage, card, saved).to(world.device)
        optimise.freeze(self.net, s)
        self.watch = Stopwatch(world.device)
        self.step = Step(self.net, world, s, order, self.watch)
        self.optimiser = optimise.sgd(self.net, s)
        self.average = Average(self.net, s.average_decay) if s.average_decay else None
        if saved:
            optimise.restore(self.optimiser, self.net, saved.momentum)
            if self.average and saved.average:
                self.average.restore(saved.average)
        if s.compile and world.rank == 0:
            self.tell("warning", text=f"compiling the net took {self.step.compile_seconds:.0f} s")
        if self.step.unlike and world.rank == 0:
            self.tell("warning", text="the workers' devices are not alike: gradients are summed, as by exchange: ddp")
        self.parameters: list[nn.Parameter] = [p for p in self.net.parameters() if p.requires_grad]
        self.meter, self.rate = Meter(world), s.learning_rate
        self.speed = Speed(s, len(card.classes), world, self.step.bf16)
        self._agreement = Agreement(world)
        self._writer = Writer(folder, stage.checkpoints.keep, damaged) if world.rank == 0 else None
        self._saved_at = time.monotonic()

    def tell(self, kind: str, **content: Any) -> None:
        """A record of this place in training."""
        progress, s = self.progress, self.stage.settings
        where = {"epoch": len(progress.epochs) + 1, "epochs": s.epochs, "step": progress.step}
        self.log({"kind": kind, "stage": self.stage.name, **where, "steps": self.order.steps_per_epoch, **content})

    def set_rate(self, step: int) -> None:
        """`step`: counted over all epochs."""
        s, steps = self.stage.settings, self.order.steps_per_epoch
        self.rate = schedule.rate(s, step, steps, self.progress.accuracies)
        optimise.set_rate(self.optimiser, self.rate)

    def tell_step(self, batch: Batch) -> None:
        """Of a step that is done, to be told by every worker."""
        self.tell("tick")
        name_unreadable(batch, self.log)
        if self.stage.ledger:
            self.tell("rows", rank=self.world.rank, rows=batch.rows.tolist())

    def point(self, line: bool = False) -> None:
        """Tells what the steps since the last point came to. Raises TrainingError if training should not go on."""
        since, reading = self.meter.read(), self.watch.read()
        if not since.images:
            return
        if not math.isfinite(since.loss):
            raise TrainingError(self._not_finite(since))
        if (names := exchange.differing(self.net, self.world)) is not None:
            raise TrainingError(self._come_apart(names))
        progress, waiting = self.progress, reading.parts["input"]
        progress.totals += since
        progress.seconds += reading.seconds
        progress.waiting += waiting
        check_readable(progress.totals, self.order.rows, self.stage.settings.max_unreadable)
        speed = self.speed.numbers(since.images, reading.seconds, waiting)
        self.tell("point", line=line, learning_rate=self.rate, **numbers(since), **speed)
        self.tell("parts", **asdict(reading))

    def heed(self) -> None:
        """Does what the workers agreed on at the last call: saves, and at their wish ends. Raises Stopped."""
        wish = self.agree(self._due())
        if wish is Wish.SAVE:
            self.save()
        if wish is Wish.STOP:
            self.stop()

    def stop(self) -> None:
        """Raises Stopped."""
        self.save()
        raise Stopped

    def agree(self, mine: Wish = Wish.NONE) -> Wish:
        """What the workers agreed on at the last call. `mine`: a wish of the loop's own."""
        return self._agreement.exchange(max(self._control.wish(), mine))

    def end_epoch(self, epoch: Epoch) -> None:
        self.progress = Progress([*self.progress.epochs, epoch])
        self.save()

    def save(self) -> None:
        """Worker 0 writes a checkpoint, while training goes on."""
        self.point()
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

    def __enter__(self) -> "Attempt":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Waits for what is being written. An error that ends the attempt is not replaced by one of writing."""
        try:
            self.close()
        except CheckpointError as failure:
            if error is None or isinstance(error, Stopped):
                raise
            _log.warning("%s", failure)

    def wait(self) -> None:
        """For the checkpoints that are being written. Raises CheckpointError if one cannot be."""
        if self._writer is not None:
            self._writer.wait()

    def close(self) -> None:
        """Waits for what is being written. Raises CheckpointError if it cannot be."""
        if self._writer is not None:
            self._writer.close()

    def _due(self) -> Wish:
        every = 60 * self.stage.checkpoints.every_minutes
        due = self.world.rank == 0 and time.monotonic() - self._saved_at >= every
        return Wish.SAVE if due else Wish.NONE

    def _come_apart(self, names: str) -> str:
        place = f"in epoch {len(self.progress.epochs) + 1} before step {self.progress.step + 1}"
        cause = "their devices, libraries or numbers of threads may not be alike"
        if self.stage.settings.exchange != "ddp":
            cause += ", without which `exchange: ddp` can do"
        return f"the workers' weights differ ({names}) {place}: {cause}. Checkpoints of before are kept"

    def _not_finite(self, since: Totals) -> str:
        before = self.progress.totals
        last = f"it was {before.loss:.4g} before" if before.images else "it is the first one of the epoch"
        return (
            f"the loss is {since.loss} in epoch {len(self.progress.epochs) + 1} before step "
            f"{self.progress.step + 1}; {last}; the gradient's norm is {since.gradient_norm:.4g}, the learning rate "
            f"{self.rate:g}. Checkpoints of before are kept"
        )


def _newest(folder: Location, world: World) -> tuple[Checkpoint | None, set[tuple[int, int]]]:
    """The one that worker 0 finds, for all: another one may see a file more, or less. And those found damaged.

    All look at once, so that none waits for the others for longer than a collective may take.
    """
    saved, damaged = checkpoint.newest_of(folder)
    mine = (len(saved.progress.epochs), saved.progress.step) if saved else None
    agreed = world.from_first(mine)
    if agreed == mine:
        return saved, damaged
    return checkpoint.load(checkpoint.path_of(folder, *agreed)) if agreed else None, damaged


def _net(stage: Stage, card: Card, saved: Checkpoint | None) -> VGG:
    s = stage.settings
    net = card.build(s.dropout)
    if saved is not None:
        net.load_state_dict(saved.weights)
        return net
    init.randomise(net, s.init.random, s.init.std, s.seed)
    if stage.start is not None:
        source = nets.load(Location.of(stage.start))
        gain = card.pixel_std / source.card.pixel_std
        init.copy_from(net, source.card.net, source.weights, s.left_out, gain)
    return net
