"""Batches for the net. A loader's state is one integer, the step; it can start at any.

images  (n, 3, H, W) float32, RGB, mean subtracted, on the device
labels  (n,) int64, on the device
rows    (n,) int64, on the CPU: which rows of the data set these are
total   images in the global batch of this step, over all workers
"""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import torch
import torch.utils.dlpack
from nvidia.dali.pipeline import Pipeline
from torch import Tensor

from pipelines import augment, graphs
from pipelines.augment import Ints, Recipe
from pipelines.errors import DataError
from pipelines.order import Order, part
from pipelines.shards import DataSet, ReadAhead, RowGroup

_STEPS_AHEAD = 8  # how far ahead of the graph row groups are read
_VALIDATION_BATCH = 64
_WHOLE_IMAGES, _WHOLE_PIXELS = 64, 16 * 512 * 683  # a dense batch's bounds: images, and pixels in all of them
_CHUNK_ROWS = 1024  # dense: rows that are held at a time, to be grouped by shape


@dataclass(frozen=True)
class Batch:
    images: Tensor
    labels: Tensor
    rows: Tensor
    total: int


@dataclass(frozen=True)
class Seat:
    """Where the batches go: worker `rank` of `world`, its device, and the threads it may use."""

    rank: int
    world: int
    device: torch.device
    threads: int

    @property
    def device_id(self) -> int | None:
        return self.device.index or 0 if self.device.type == "cuda" else None


class TrainingBatches:
    """The steps `first` <= step < `last` of a run, counted over its epochs; iterated once."""

    def __init__(self, data: DataSet, order: Order, recipe: Recipe, seat: Seat, first: int, last: int) -> None:
        self._data, self._order, self._recipe, self._seat = data, order, recipe, seat
        self._first, self._last, self._next = first, last, first
        self._reader = ReadAhead(data)
        self._fed: deque[tuple[Ints, Ints]] = deque()
        largest = -(-order.batch // seat.world)
        self._graph = graphs.crops(self._source, recipe.crop, recipe.pixel_std, largest, seat.threads, seat.device_id)

    def __iter__(self) -> Iterator[Batch]:
        for step in range(self._first, self._last):
            total = self._order.batch_rows(step)
            if self._share_size(step) == 0:
                yield _empty(self._recipe.crop, self._seat.device, total)
                continue
            images = _run(self._graph, self._seat.device)
            rows, labels = self._fed.popleft()
            yield _batch(images, labels, rows, total)

    def close(self) -> None:
        self._reader.close()

    def _share_size(self, step: int) -> int:
        first, last = part(self._order.batch_rows(step), self._seat.rank, self._seat.world)
        return last - first

    def _source(self) -> graphs.Feed:
        while self._next < self._last and self._share_size(self._next) == 0:
            self._next += 1
        if self._next >= self._last:
            raise StopIteration
        step, self._next = self._next, self._next + 1
        rank, world = self._seat.rank, self._seat.world
        rows = self._order.share(step, rank, world)
        ahead = range(step, min(step + _STEPS_AHEAD, self._last))
        self._reader.want(g for s in ahead for g in self._order.groups(s, rank, world))
        encoded, labels, widths, heights = _gather(self._data, self._reader.get, rows)
        epoch = step // self._order.steps_per_epoch
        draws = augment.training_draws(self._recipe, self._order.seed, epoch, rows, widths, heights)
        self._fed.append((rows, labels))
        return graphs.feed(encoded, draws, self._recipe.crop)


class ValidationBatches:
    """The worker's part of a data set, its middle crops, in order; can be iterated again and again."""

    def __init__(self, data: DataSet, recipe: Recipe, seat: Seat) -> None:
        self._device = seat.device
        first, last = part(data.rows, seat.rank, seat.world)
        plan = [np.arange(a, min(a + _VALIDATION_BATCH, last)) for a in range(first, last, _VALIDATION_BATCH)]

        def feed(encoded: graphs.Encoded, widths: Ints, heights: Ints) -> graphs.Feed:
            return graphs.feed(encoded, augment.centre_draws(recipe, widths, heights), recipe.crop)

        self._passes = _Passes(data, plan, feed)
        self._graph = graphs.crops(
            self._passes.source, recipe.crop, recipe.pixel_std, _VALIDATION_BATCH, seat.threads, seat.device_id
        )

    def __iter__(self) -> Iterator[Batch]:
        return self._passes.run(self._graph, self._device)


class WholeBatches:
    """The worker's part of a data set as whole images of one shape a batch; can be iterated again and again.

    `shorter`: the shorter side after the rescale, Q in the paper. `mean`: RGB to subtract. `stride`: of the net that
    they are for; see `augment.dense_windows`.
    """

    def __init__(
        self,
        data: DataSet,
        shorter: int,
        mean: tuple[float, float, float],
        pixel_std: float,
        stride: int,
        seat: Seat,
    ) -> None:
        self._device = seat.device
        first, last = part(data.rows, seat.rank, seat.world)
        widths, heights = data.read_sizes(first, last)
        plan = shape_batches(augment.dense_windows(augment.rescaled(widths, heights, shorter), stride), first)

        def feed(encoded: graphs.Encoded, widths: Ints, heights: Ints) -> graphs.WholeFeed:
            sizes = augment.rescaled(widths, heights, shorter)
            return graphs.feed_wholes(encoded, sizes, augment.dense_windows(sizes, stride))

        self._passes = _Passes(data, plan, feed)
        self._graph = graphs.wholes(self._passes.source, mean, pixel_std, _WHOLE_IMAGES, seat.threads, seat.device_id)

    def __iter__(self) -> Iterator[Batch]:
        return self._passes.run(self._graph, self._device)


def shape_batches(sizes: Ints, first: int) -> list[Ints]:
    """Rows (first, first + 1, ...) in batches of equal size (height, width), bounded in images and pixels."""
    batches = []
    for start in range(0, len(sizes), _CHUNK_ROWS):
        chunk = sizes[start : start + _CHUNK_ROWS]
        order = np.lexsort((chunk[:, 1], chunk[:, 0]))
        borders = np.flatnonzero(np.any(np.diff(chunk[order], axis=0) != 0, axis=1)) + 1
        for same in np.split(order, borders):
            height, width = chunk[same[0]]
            most = max(1, min(_WHOLE_IMAGES, _WHOLE_PIXELS // int(height * width)))
            batches += [first + start + same[i : i + most] for i in range(0, len(same), most)]
    return batches


F = TypeVar("F")


class _Passes(Generic[F]):
    """Feeds planned batches to a graph, pass after pass, reading their row groups ahead."""

    def __init__(self, data: DataSet, plan: list[Ints], feed: Callable[[graphs.Encoded, Ints, Ints], F]) -> None:
        self._data, self._plan, self._feed = data, plan, feed
        self._groups = [list(dict.fromkeys(int(g) for g in data.groups_of(rows))) for rows in plan]
        self._reader = ReadAhead(data)
        self._next = 0
        self._fed: deque[tuple[Ints, Ints]] = deque()

    def source(self) -> F:
        if self._next == len(self._plan):
            raise StopIteration
        i, self._next = self._next, self._next + 1
        rows = self._plan[i]
        self._reader.want(g for groups in self._groups[i : i + _STEPS_AHEAD] for g in groups)
        encoded, labels, widths, heights = _gather(self._data, self._reader.get, rows)
        self._fed.append((rows, labels))
        return self._feed(encoded, widths, heights)

    def run(self, graph: Pipeline, device: torch.device) -> Iterator[Batch]:
        if not self._plan:
            return
        for _ in range(len(self._plan)):
            images = _run(graph, device)
            rows, labels = self._fed.popleft()
            yield _batch(images, labels, rows, len(rows))
        try:
            graph.run()
        except StopIteration:
            pass
        self._next = 0
        graph.reset()


def _gather(data: DataSet, get: Callable[[int], RowGroup], rows: Ints) -> tuple[graphs.Encoded, Ints, Ints, Ints]:
    """(encoded, labels, widths, heights) of the rows, in their order."""
    groups = data.groups_of(rows)
    within = rows - data.group_starts[groups]
    pieces = [(get(int(g)), int(i)) for g, i in zip(groups, within, strict=True)]
    return (
        [group.encoded[i] for group, i in pieces],
        np.array([group.labels[i] for group, i in pieces]),
        np.array([group.widths[i] for group, i in pieces]),
        np.array([group.heights[i] for group, i in pieces]),
    )


def _run(graph: Pipeline, device: torch.device) -> Tensor:
    stream = torch.cuda.current_stream(device) if device.type == "cuda" else None
    try:
        (output,) = graph.run(stream)
    except RuntimeError as error:
        operator, _, found = str(error).partition("encountered:")
        if "decoders" not in operator or not found.strip():
            raise
        reason = found.strip().splitlines()[0]
        raise DataError(
            f"an image cannot be decoded and costs its batch; prepare the data set again: {reason}"
        ) from error
    return torch.utils.dlpack.from_dlpack(output.as_tensor())


def _batch(images: Tensor, labels: Ints, rows: Ints, total: int) -> Batch:
    assert len(images) == len(labels) == len(rows), (len(images), len(labels), len(rows))
    return Batch(images, torch.from_numpy(labels).to(images.device), torch.from_numpy(rows), total)


def _empty(crop: int, device: torch.device, total: int) -> Batch:
    none = torch.empty(0, dtype=torch.int64)
    return Batch(torch.empty(0, 3, crop, crop, device=device), none.to(device), none, total)
