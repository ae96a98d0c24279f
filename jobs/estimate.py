"""What is left to be done of a job's parts, in steps, images, operations and bytes, and how long that takes; pure.

It is at most that: the plateau rule may end a stage before its last epoch. Not counted are validation and exchange of
steps done again after a crash, what is read twice where two workers' parts meet, and the metrics' few bytes.
"""

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import NamedTuple

from cluster import table, wire
from cluster.flops import dense_flops, forward_flops, training_flops
from cluster.settings import CheckpointSettings, StageSettings
from cluster.views import View
from jobs.plan import State

Sizes = Mapping[View, Mapping[tuple[int, int], float]]  # of images, (height, width), and the share of all with each

_FLOAT_BYTES = 4  # gradients, weights and momentum are float32 in any precision
_COUNT_BYTES = 8  # of a batch norm's batches
_GRID = 25  # crops of an image in multi-crop tests


class Shape(NamedTuple):
    """What a net's size follows from."""

    net: str
    classes: int
    input_size: int
    width: float

    @classmethod
    def of(cls, s: StageSettings, classes: int) -> "Shape":
        return cls(s.net, classes, s.input_size, s.width)


@dataclass(frozen=True)
class Images:
    """Of a data set: how many, and the bytes of its files."""

    rows: int
    bytes: int


@dataclass(frozen=True)
class Work:
    """`images`: that are trained on; `looked_at`: taken forward only, for validation or in a view of a test. `sent`:
    bytes that each worker sends to others."""

    steps: int = 0
    images: int = 0
    looked_at: int = 0
    flops: int = 0
    read_bytes: int = 0
    sent_bytes: int = 0

    @classmethod
    def sum(cls, works: Iterable["Work"]) -> "Work":
        each = list(works)
        return cls(*(sum(getattr(work, field.name) for work in each) for field in fields(cls)))


def training(
    s: StageSettings, state: State, data: Images, validation: Images, classes: int, workers: int, bf16: bool
) -> Work:
    """What is left of a stage of which `state` is done. `bf16`: the precision that is computed in."""
    shape, steps_per_epoch = Shape.of(s, classes), -(-data.rows // s.batch)
    epochs = max(0, s.epochs - state.epochs)  # whose end is still to come
    step = state.step if epochs else 0
    steps = epochs * steps_per_epoch - step
    images = epochs * data.rows - min(step * s.batch, data.rows)
    looked_at = epochs * validation.rows
    return Work(
        steps,
        images,
        looked_at,
        images * training_flops(*shape, frozen=s.frozen) + looked_at * forward_flops(*shape),
        round(images / data.rows * data.bytes) + epochs * validation.bytes,
        steps * sent_bytes(s, classes, workers, bf16),
    )


def testing(shape: Shape, views: Collection[View], sizes: Sizes, data: Images) -> Work:
    """Of a net in each of the views. `sizes`: of dense ones, the images' (height, width) as they are looked at, and the
    share of all that have it."""
    flops = sum(data.rows * (1 + view.mirror) * _image_flops(shape, view, sizes) for view in views)
    return Work(0, 0, len(views) * data.rows, round(flops), len(views) * data.bytes, 0)


def _image_flops(shape: Shape, view: View, sizes: Sizes) -> float:
    if view.mode == "multi-crop":
        return _GRID * forward_flops(*shape)
    return sum(share * dense_flops(*shape, size) for size, share in sizes[view].items())


def sent_bytes(s: StageSettings, classes: int, workers: int, bf16: bool) -> int:
    """What each of the workers sends to others in a step. `bf16`: the precision that is computed in."""
    gradients = wire.sent(s, classes, workers, bf16)
    return round(sum(each.bytes for each in gradients) + statistics_bytes(s, classes, workers))


def statistics_bytes(s: StageSettings, classes: int, workers: int) -> float:
    """Of batch norms, likewise; they are added along a tree of pairs."""
    trained = [layer for layer in table.layers(*Shape.of(s, classes)) if layer.name not in s.frozen]
    statistics = _FLOAT_BYTES * sum(2 * layer.channels for layer in trained if layer.block) if s.batch_norm else 0
    return math.log2(workers) * statistics


def parameters(s: StageSettings, classes: int) -> int:
    return sum(_parameters(layer, s.batch_norm) for layer in table.layers(*Shape.of(s, classes)))


def _parameters(layer: table.Layer, batch_norm: bool) -> int:
    norm = 2 * layer.channels if batch_norm and layer.block else 0
    return layer.weights + layer.channels + norm


def checkpoint_bytes(s: StageSettings, classes: int) -> int:
    """Of one: weights, momentum of layers that are trained, and running averages, without the head's few kB."""
    found = list(table.layers(*Shape.of(s, classes)))
    everything = parameters(s, classes)
    trained = sum(_parameters(layer, s.batch_norm) for layer in found if layer.name not in s.frozen)
    norms = [layer for layer in found if layer.block] if s.batch_norm else []
    statistics = sum(_FLOAT_BYTES * 2 * layer.channels + _COUNT_BYTES for layer in norms)
    weights = _FLOAT_BYTES * everything + statistics
    return weights + _FLOAT_BYTES * trained * (s.momentum > 0) + weights * (s.average_decay > 0)


@dataclass(frozen=True)
class Files:
    """Checkpoints of a stage: the bytes of one, how many are still written, and how many stay in the end."""

    bytes: int
    written: int
    kept: int


def files(s: StageSettings, state: State, classes: int, settings: CheckpointSettings, hours: float | None) -> Files:
    """`hours`: that training takes; without it only those at the ends of epochs are counted."""
    epochs = max(0, s.epochs - state.epochs)
    between = int(60 * hours / epochs / settings.every_minutes) if hours and epochs else 0
    written = epochs * (1 + between)
    there = settings.keep + 1 if state.begun else 0
    return Files(checkpoint_bytes(s, classes), written, min(settings.keep + 1, written + there))
