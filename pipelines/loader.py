"""Batches for the net. A loader's state is one integer, the step; it can start at any."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TypeAlias, TypeVar

import numpy as np
import torch

from pipelines import augment, graphs
from pipelines.augment import Ints, Recipe, Windows
from pipelines.decoding import Decoding
from pipelines.graphs import Graph
from pipelines.order import Order, part
from pipelines.seat import Seat
from pipelines.shards import DataSet
from pipelines.stream import Batch, Images, Stream

_VALIDATION_BATCH = 64
_WHOLE_IMAGES, _WHOLE_PIXELS = 64, 16 * 512 * 683  # a dense batch's bounds: images, and pixels in all of them
_CHUNK_ROWS, _CHUNK_BYTES = 1024, 64 << 20  # dense: what is held at a time, to be grouped by shape

_SAFE = Decoding()

F = TypeVar("F")
Sample: TypeAlias = tuple[int, Images]  # a step, and a worker's images of it


class TrainingBatches:
    """The steps `first` <= step < `last` of a run, counted over its epochs; iterated once."""

    def __init__(
        self,
        data: DataSet,
        order: Order,
        recipe: Recipe,
        seat: Seat,
        first: int,
        last: int,
        decoding: Decoding = _SAFE,
    ) -> None:
        self._order, self._recipe, self._seat = order, recipe, seat
        self._steps = range(first, last)

        def wanted(step: int) -> list[int]:
            return order.groups(step, seat.rank, seat.world)

        def feed(step: int, images: Images) -> tuple[graphs.Feed, Windows]:
            return self._draw(step, images, decoding)

        def graph(source: Callable[[], graphs.Feed]) -> Graph:
            return self.graph(source, decoding)

        self._stream = Stream(data, self._share, wanted, feed, graph, recipe.statistics.mean_rgb, seat)

    def __iter__(self) -> Iterator[Batch]:
        batches = self._stream.run(step for step in self._steps if self._share_rows(step))
        for step in self._steps:
            total = self._order.batch_rows(step)
            if self._share_rows(step):
                yield replace(next(batches), total=total)
            else:
                yield _empty(self._recipe.crop, self._seat.device, total)

    @property
    def read_per_used(self) -> float:
        """Rows read so far over rows used so far, by this worker."""
        return self._stream.read_per_used

    @property
    def device(self) -> torch.device:
        return self._seat.device

    def samples(self, images: int) -> list[Sample]:
        """The worker's part of its first steps, about so many images and one step at least; to try graphs with."""
        found: list[Sample] = []
        for step in self._steps:
            if sum(len(sample.rows) for _, sample in found) >= images:
                break
            if self._share_rows(step):
                found.append((step, self._stream.images(step)))
        return found

    def feed(self, step: int, images: Images, decoding: Decoding) -> graphs.Feed:
        """What a graph that decodes so is fed."""
        return self._draw(step, images, decoding)[0]

    def refused(self, step: int, images: Images, decoding: Decoding) -> dict[int, str]:
        """The positions of the images that the decoder does not take, and why."""
        _, windows = self._draw(step, images, decoding)
        return graphs.refused(images.encoded, windows, self._seat.threads, self._seat.device_id)

    def graph(self, source: Callable[[], graphs.Feed], decoding: Decoding) -> Graph:
        recipe, seat = self._recipe, self._seat
        largest = max(map(self._share_rows, range(self._order.steps_per_epoch)))
        return graphs.crops(source, recipe.crop, recipe.pixel_std, largest, seat.threads, seat.device_id, decoding)

    def close(self) -> None:
        self._stream.close()

    def _draw(self, step: int, images: Images, decoding: Decoding) -> tuple[graphs.Feed, Windows]:
        order, epoch = self._order, step // self._order.steps_per_epoch
        draws = augment.training_draws(self._recipe, order.seed, epoch, images.rows, images.widths, images.heights)
        return _crop_feed(images, draws, self._recipe, decoding)

    def _share(self, step: int) -> Ints:
        return self._order.share(step, self._seat.rank, self._seat.world)

    def _share_rows(self, step: int) -> int:
        return self._order.share_rows(step, self._seat.rank, self._seat.world)


class ValidationBatches:
    """The worker's part of a data set, its middle crops, in order; can be iterated again and again."""

    def __init__(self, data: DataSet, recipe: Recipe, seat: Seat, decoding: Decoding = _SAFE) -> None:
        first, last = part(data.rows, seat.rank, seat.world)
        self._plan = [np.arange(a, min(a + _VALIDATION_BATCH, last)) for a in range(first, last, _VALIDATION_BATCH)]
        largest = max(b - a for a, b in (part(data.rows, rank, seat.world) for rank in range(seat.world)))
        self.most = -(-largest // _VALIDATION_BATCH)  # batches of the worker that has the most

        def feed(_: int, images: Images) -> tuple[graphs.Feed, Windows]:
            return _crop_feed(images, augment.centre_draws(recipe, images.widths, images.heights), recipe, decoding)

        def graph(source: Callable[[], graphs.Feed]) -> Graph:
            size, std = recipe.crop, recipe.pixel_std
            return graphs.crops(source, size, std, _VALIDATION_BATCH, seat.threads, seat.device_id, decoding)

        self._stream = _planned(data, self._plan, feed, graph, recipe.statistics.mean_rgb, seat)

    def __iter__(self) -> Iterator[Batch]:
        return self._stream.run(range(len(self._plan)))

    def close(self) -> None:
        self._stream.close()


class WholeBatches:
    """A part of a data set as whole images of one shape a batch; can be iterated again and again.

    `shorter`: the shorter side after the rescale, Q in the paper. `mean`: RGB to subtract. `stride`: of the net that
    they are for; see `augment.dense_windows`. `rows`: without gaps; if none are given, the worker's part of all.
    """

    def __init__(
        self,
        data: DataSet,
        shorter: int,
        mean: tuple[float, float, float],
        pixel_std: float,
        stride: int,
        seat: Seat,
        rows: range | None = None,
        decoding: Decoding = _SAFE,
    ) -> None:
        first, last = part(data.rows, seat.rank, seat.world) if rows is None else (rows.start, rows.stop)
        widths, heights = data.read_sizes(first, last)
        held = max(1, min(_CHUNK_ROWS, int(_CHUNK_BYTES * data.rows / data.manifest.total_bytes)))
        shapes = augment.dense_windows(augment.rescaled(widths, heights, shorter), stride)
        self._plan = shape_batches(shapes, first, held)

        def feed(_: int, images: Images) -> tuple[graphs.WholeFeed, Windows]:
            sizes = augment.rescaled(images.widths, images.heights, shorter)
            seen = augment.dense_windows(sizes, stride)
            windows = _windows(images, sizes, (sizes - seen) // 2, seen, decoding)
            return graphs.feed_wholes(images.encoded, seen, windows), windows

        def graph(source: Callable[[], graphs.WholeFeed]) -> Graph:
            return graphs.wholes(source, mean, pixel_std, _WHOLE_IMAGES, seat.threads, seat.device_id, decoding)

        self._stream = _planned(data, self._plan, feed, graph, mean, seat)

    def __iter__(self) -> Iterator[Batch]:
        return self._stream.run(range(len(self._plan)))

    def close(self) -> None:
        self._stream.close()


def shape_batches(sizes: Ints, first: int, held: int) -> list[Ints]:
    """Rows (first, first + 1, ...) in batches of equal size (height, width), bounded in images and pixels.

    Batches are made of `held` rows at a time, whose images are in memory together.
    """
    batches = []
    for start in range(0, len(sizes), held):
        chunk = sizes[start : start + held]
        order = np.lexsort((chunk[:, 1], chunk[:, 0]))
        borders = np.flatnonzero(np.any(np.diff(chunk[order], axis=0) != 0, axis=1)) + 1
        for same in np.split(order, borders):
            height, width = chunk[same[0]]
            most = max(1, min(_WHOLE_IMAGES, _WHOLE_PIXELS // int(height * width)))
            batches += [first + start + same[i : i + most] for i in range(0, len(same), most)]
    return batches


def _planned(
    data: DataSet,
    plan: list[Ints],
    feed: Callable[[int, Images], tuple[F, Windows]],
    build: Callable[[Callable[[], F]], Graph],
    mean: tuple[float, float, float],
    seat: Seat,
) -> Stream[F]:
    """A stream of batches that are known beforehand."""

    def groups(i: int) -> list[int]:
        return list(dict.fromkeys(data.groups_of(plan[i]).tolist()))

    return Stream(data, plan.__getitem__, groups, feed, build, mean, seat)


def _crop_feed(images: Images, draws: augment.Draws, recipe: Recipe, decoding: Decoding) -> tuple[graphs.Feed, Windows]:
    windows = _windows(images, draws.sizes, draws.corners, recipe.crop, decoding)
    return graphs.feed(images.encoded, draws, windows), windows


def _windows(images: Images, sizes: Ints, corners: Ints, crop: Ints | int, decoding: Decoding) -> Windows:
    """What has to be decoded; of a stand-in, its one pixel."""
    windows = augment.source_windows(sizes, corners, crop, images.widths, images.heights)
    if not decoding.regions:
        windows = windows.whole(images.widths, images.heights)
    bad = images.replaced
    windows.starts[bad], windows.extents[bad], windows.crop_starts[bad], windows.crop_ends[bad] = 0, 1, 0.0, 1.0
    return windows


def _empty(crop: int, device: torch.device, total: int) -> Batch:
    none = torch.empty(0, dtype=torch.int64)
    return Batch(torch.empty(0, 3, crop, crop, device=device), none.to(device), none, total)
