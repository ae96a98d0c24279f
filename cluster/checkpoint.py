"""What a stage's run needs to go on, and what its net needs to be used, in one file an epoch.

    epoch-0007.pt   after seven epochs: weights, optimiser, progress, settings, and the net's card

A file is written aside and renamed, so it is there whole or not at all. Kept are the last and the best.
Loading executes no code (`weights_only`).
"""

import os
import re
import time
import warnings
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cluster.vgg import VGG
from pipelines.errors import CheckpointError

VERSION = 1
_ABANDONED_SECONDS = 3600
_NAME = re.compile(r"epoch-(\d{4,})\.pt")


@dataclass(frozen=True)
class Epoch:
    """What an epoch came to. Rates are over training alone, waiting for input included."""

    loss: float
    accuracy: float
    validation_loss: float
    validation_accuracy: float
    validation_accuracy5: float
    learning_rate: float
    images_per_second: float
    seconds: float
    unreadable: int = 0  # images that could not be decoded


@dataclass
class Progress:
    """All that a run is, beside the tensors: the epochs behind it. The step follows from their number."""

    epochs: list[Epoch] = field(default_factory=list)

    @property
    def accuracies(self) -> list[float]:
        return [epoch.validation_accuracy for epoch in self.epochs]

    @property
    def best(self) -> int:
        """Which epoch (from 1) has the best validation accuracy; the first of equals."""
        return self.accuracies.index(max(self.accuracies)) + 1


@dataclass(frozen=True)
class Card:
    """What using a net takes: its shape, the classes' names, and the preprocessing that it was trained with."""

    net: str
    classes: tuple[str, ...]
    input_size: int
    width: float
    mean_rgb: tuple[float, float, float]
    pixel_std: float
    scale: tuple[int, int]
    flip: bool
    batch_norm: bool = False

    def build(self, dropout: float = 0.0) -> VGG:
        return VGG(self.net, len(self.classes), self.input_size, self.width, dropout, self.batch_norm)


@dataclass(frozen=True)
class Checkpoint:
    card: Card
    weights: dict[str, Tensor]
    optimiser: dict[str, Any]
    progress: Progress
    settings: dict[str, Any]


def save(folder: Path, checkpoint: Checkpoint) -> Path:
    """Writes the checkpoint of the epoch that its progress stands at."""
    path = folder / f"epoch-{len(checkpoint.progress.epochs):04d}.pt"
    content = {
        "version": VERSION,
        "card": _plain(asdict(checkpoint.card)),
        "weights": checkpoint.weights,
        "optimiser": checkpoint.optimiser,
        "progress": asdict(checkpoint.progress),
        "settings": _plain(checkpoint.settings),
    }
    aside = path.with_suffix(f".{os.getpid()}.part")
    with aside.open("wb") as stream:
        torch.save(content, stream)
        stream.flush()
        os.fsync(stream.fileno())
    aside.rename(path)
    return path


def load(path: Path) -> Checkpoint:
    """Onto the CPU. Raises CheckpointError, naming the file."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such checkpoint") from error
    except Exception as error:  # a damaged file makes the unpickler raise anything
        raise CheckpointError(f"{path}: not a whole checkpoint") from error
    if not isinstance(content, dict) or content.get("version") != VERSION:
        raise CheckpointError(f"{path}: not a checkpoint of this version of the program")
    try:
        card = content["card"]
        tuples = {name: tuple(card[name]) for name in ("classes", "mean_rgb", "scale")}
        return Checkpoint(
            Card(**{**card, **tuples}),
            content["weights"],
            content["optimiser"],
            Progress([Epoch(**epoch) for epoch in content["progress"]["epochs"]]),
            content["settings"],
        )
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: not a checkpoint of this program: {error}") from error


def newest(folder: Path) -> Checkpoint | None:
    """The newest checkpoint that is whole; others are passed over with a warning."""
    for _, path in sorted(_files(folder).items(), reverse=True):
        try:
            return load(path)
        except CheckpointError as error:
            warnings.warn(f"passed over: {error}", stacklevel=2)
    return None


def path_of(folder: Path, epoch: int) -> Path:
    return folder / f"epoch-{epoch:04d}.pt"


def prune(folder: Path, keep: set[int]) -> None:
    """Deletes the checkpoints of all epochs but these, and what a `save` that was interrupted long ago left."""
    for epoch, path in _files(folder).items():
        if epoch not in keep:
            path.unlink(missing_ok=True)
    for part in folder.glob("epoch-*.part"):
        if time.time() - part.stat().st_mtime > _ABANDONED_SECONDS:
            part.unlink(missing_ok=True)


def _files(folder: Path) -> dict[int, Path]:
    found = ((_NAME.fullmatch(path.name), path) for path in folder.iterdir()) if folder.is_dir() else ()
    return {int(match[1]): path for match, path in found if match}


def _plain(value: Any) -> Any:
    """Tuples as lists: what `weights_only` loading and JSON both take."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
