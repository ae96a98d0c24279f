"""What a stage's run needs to go on, and what its net needs to be used, in one file:

    epoch-0007.safetensors               after seven epochs
    epoch-0007-step-000123.safetensors   123 steps into the eighth

Weights, momentum and the weights' moving average are tensors, all else is JSON in the file's head (see `sealed`), which
can be read alone. `writer` writes them, whole or not at all, and damage is found when they are loaded.
"""

import json
import logging
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

from torch import Tensor

from cluster import sealed, table
from cluster.metrics import Totals
from cluster.vgg import VGG
from pipelines.errors import CheckpointError, DamagedError, first_line
from pipelines.location import Location

VERSION = "2"
_NAME = re.compile(r"epoch-(\d{4,})(?:-step-(\d{6,}))?\.safetensors")

log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True)
class Epoch:
    """What an epoch came to. Rates are over training alone, waiting for input included."""

    loss: float
    accuracy: float
    accuracy5: float
    gradient_norm: float  # before it is clipped; the mean over steps
    validation_loss: float
    validation_accuracy: float
    validation_accuracy5: float
    learning_rate: float
    images_per_second: float
    waiting: float  # share of the time that worker 0 waited for input
    flops_per_second: float  # of the model, by all workers
    peak_memory_bytes: float  # of worker 0: of its device, or resident
    seconds: float
    peak_share: float | None = None  # of what the devices could do, if that is known
    unreadable: int = 0  # images that could not be decoded


@dataclass
class Progress:
    """All that a run is, beside the tensors: the epochs behind it, and of the one after them the first steps."""

    epochs: list[Epoch] = field(default_factory=list)
    step: int = 0  # steps of that epoch that are done
    totals: Totals = field(default_factory=lambda: Totals(0, 0.0, 0, 0))  # over these steps
    seconds: float = 0.0  # spent on them, in all attempts
    waiting: float = 0.0  # of these, by worker 0 for input

    @property
    def accuracies(self) -> list[float]:
        return [epoch.validation_accuracy for epoch in self.epochs]

    @property
    def best(self) -> int:
        """Which epoch (from 1) has the best validation accuracy; the first of equals."""
        return self.accuracies.index(max(self.accuracies)) + 1


@dataclass(frozen=True)
class Card:
    """What using a net takes: its shape, the classes' names, and the preprocessing that it was trained with.

    Raises ValueError: there is no such net, or no image could be prepared for it.
    """

    net: str
    classes: tuple[str, ...]
    input_size: int
    width: float
    mean_rgb: tuple[float, float, float]
    pixel_std: float
    scale: tuple[int, int]
    flip: bool
    batch_norm: bool = False

    def __post_init__(self) -> None:
        table.check(self.net, len(self.classes), self.input_size, self.width)
        if not all(map(math.isfinite, self.mean_rgb)) or not 0 < self.pixel_std < math.inf:
            raise ValueError(f"pixels less {self.mean_rgb} over {self.pixel_std} are no input")
        if not self.input_size <= self.scale[0] <= self.scale[1]:
            raise ValueError(f"S of {self.scale} is none for an input of {self.input_size} pixels")

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> "Card":
        """From JSON. Raises KeyError, TypeError or ValueError."""
        return cls(**{**content, **{name: tuple(content[name]) for name in ("classes", "mean_rgb", "scale")}})

    def build(self, dropout: float = 0.0) -> VGG:
        return VGG(self.net, len(self.classes), self.input_size, self.width, dropout, self.batch_norm)


@dataclass(frozen=True)
class Head:
    """A checkpoint without its tensors; `seal` stands for all of the file."""

    card: Card
    progress: Progress
    settings: dict[str, Any]
    run: str | None  # in MLflow
    seal: str


@dataclass(frozen=True)
class Checkpoint:
    """`momentum` by the parameters' names, empty before the first step; `average`: of the weights over steps."""

    card: Card
    weights: dict[str, Tensor]
    momentum: dict[str, Tensor]
    average: dict[str, Tensor] | None
    progress: Progress
    settings: dict[str, Any]
    run: str | None = None

    @property
    def delivered(self) -> dict[str, Tensor]:
        """The net that later stages, tests and users take."""
        return self.weights if self.average is None else self.average


def load(place: Location) -> Checkpoint:
    """Onto the CPU; the tensors share one piece of memory. Raises CheckpointError, naming the file."""
    return unpacked(*sealed.load(place), place)


def unpacked(content: sealed.Head, tensors: Mapping[str, Tensor], place: Location) -> Checkpoint:
    """The same, of a file that is read already."""
    head = head_of(content, place)
    groups: dict[str, dict[str, Tensor]] = {"weights": {}, "momentum": {}, "average": {}}
    for name, tensor in tensors.items():
        group, _, own = name.partition("/")
        groups.setdefault(group, {})[own] = tensor
    return Checkpoint(
        head.card,
        groups["weights"],
        groups["momentum"],
        groups["average"] or None,
        head.progress,
        head.settings,
        head.run,
    )


def read_head(place: Location) -> Head:
    """Cheaply, whatever the size of the net. Raises CheckpointError, naming the file."""
    return head_of(sealed.read_head(place), place)


def newest(folder: Location) -> Checkpoint | None:
    """The newest checkpoint that is whole. Raises CheckpointError: the folder, or a file, cannot be read."""
    return newest_of(folder)[0]


def newest_of(folder: Location) -> tuple[Checkpoint | None, set[tuple[int, int]]]:
    """The same, and by epoch and step the damaged ones that were passed over, with a warning."""
    return _first(folder, load)


def progress(folder: Location) -> Progress:
    """Where the newest checkpoint stands, as far as heads and sizes of files tell. Raises CheckpointError."""
    head, _ = _first(folder, read_head)
    return head.progress if head else Progress()


def _first(folder: Location, read: Callable[[Location], T]) -> tuple[T | None, set[tuple[int, int]]]:
    """What cannot be read now may be the newest nevertheless: only what is damaged is passed over."""
    damaged: set[tuple[int, int]] = set()
    for at, place in sorted(files_of(folder).items(), reverse=True):
        try:
            return read(place), damaged
        except DamagedError as error:
            log.warning("passed over: %s", error)
            damaged.add(at)
    return None, damaged


def path_of(folder: Location, epoch: int, step: int = 0) -> Location:
    return folder / f"epoch-{epoch:04d}{f'-step-{step:06d}' * (step > 0)}.safetensors"


def files_of(folder: Location) -> dict[tuple[int, int], Location]:
    """By epoch and step. Raises CheckpointError: the folder cannot be read."""
    try:
        found = ((_NAME.fullmatch(name), place) for name, place in folder.files().items())
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be read: {first_line(error)}") from error
    return {(int(match[1]), int(match[2] or 0)): place for match, place in found if match}


def notes(checkpoint: Checkpoint) -> dict[str, str]:
    """All but the tensors, as JSON texts."""
    content = {
        "card": asdict(checkpoint.card),
        "progress": asdict(checkpoint.progress),
        "settings": checkpoint.settings,
        "run": checkpoint.run,
    }
    return {"version": VERSION, **{key: json.dumps(value) for key, value in content.items()}}


def head_of(content: sealed.Head, place: Location) -> Head:
    """Of a file that is opened already. Raises CheckpointError."""
    if content.notes.get("version") != VERSION:
        raise CheckpointError(f"{place}: not a checkpoint of this version of the program")
    try:
        card, done, settings, run = (json.loads(content.notes[key]) for key in ("card", "progress", "settings", "run"))
        parts = {"epochs": [Epoch(**epoch) for epoch in done["epochs"]], "totals": Totals(**done["totals"])}
        return Head(Card.of(card), Progress(**{**done, **parts}), settings, run, content.seal)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{place}: not a checkpoint of this program: {first_line(error)}") from error
