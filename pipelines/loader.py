"""Batches for the net. A loader's state is one integer, the step; it can start at any.

images    (n, 3, H, W) float32, RGB, mean subtracted, on the device
labels    (n,) int64, on the device
rows      (n,) int64, on the CPU: which rows of the data set these are
total     images in the global batch of this step, over all workers
replaced  those of them that could not be decoded; a picture of one colour, the mean, stands in for each

One image that DALI cannot decode costs its whole batch, and the graph. The image is then looked for, replaced in that
batch, and the graph started anew with the same batch, so that nothing else is lost.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from io import BytesIO
from typing import Generic, TypeVar

import numpy as np
import torch
import torch.utils.dlpack
from numpy.typing import NDArray
from nvidia.dali.pipeline import Pipeline
from PIL import Image
from torch import Tensor

from pipelines import augment, graphs
from pipelines.augment import Ints, Recipe, Windows
from pipelines.graphs import Encoded
from pipelines.order import Order, part
from pipelines.shards import DataSet, ReadAhead

_STEPS_AHEAD = 8  # how far ahead of the graph row groups are looked for
_VALIDATION_BATCH = 64
_WHOLE_IMAGES, _WHOLE_PIXELS = 64, 16 * 512 * 683  # a dense batch's bounds: images, and pixels in all of them
_CHUNK_ROWS = 1024  # dense: rows that are held at a time, to be grouped by shape


@dataclass(frozen=True)
class Replaced:
    """An image that could not be decoded: its row and name in the data set, and the decoder's reason."""

    row: int
    name: str
    reason: str


@dataclass(frozen=True)
class Batch:
    images: Tensor
    labels: Tensor
    rows: Tensor
    total: int
    replaced: tuple[Replaced, ...] = ()


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
        self._order, self._recipe, self._seat = order, recipe, seat
        self._steps = range(first, last)

        def wanted(step: int) -> list[int]:
            return order.groups(step, seat.rank, seat.world)

        def feed(step: int, images: _Images) -> tuple[graphs.Feed, Windows]:
            epoch = step // order.steps_per_epoch
            draws = augment.training_draws(recipe, order.seed, epoch, images.rows, images.widths, images.heights)
            return _crop_feed(images, draws, recipe)

        def graph(source: Callable[[], graphs.Feed]) -> Pipeline:
            largest = max(map(self._share_rows, range(order.steps_per_epoch)))
            return graphs.crops(source, recipe.crop, recipe.pixel_std, largest, seat.threads, seat.device_id)

        self._stream = _Stream(data, self._share, wanted, feed, graph, recipe.statistics.mean_rgb, seat)

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

    def close(self) -> None:
        self._stream.close()

    def _share(self, step: int) -> Ints:
        return self._order.share(step, self._seat.rank, self._seat.world)

    def _share_rows(self, step: int) -> int:
        return self._order.share_rows(step, self._seat.rank, self._seat.world)


class ValidationBatches:
    """The worker's part of a data set, its middle crops, in order; can be iterated again and again."""

    def __init__(self, data: DataSet, recipe: Recipe, seat: Seat) -> None:
        first, last = part(data.rows, seat.rank, seat.world)
        self._plan = [np.arange(a, min(a + _VALIDATION_BATCH, last)) for a in range(first, last, _VALIDATION_BATCH)]

        def feed(_: int, images: _Images) -> tuple[graphs.Feed, Windows]:
            return _crop_feed(images, augment.centre_draws(recipe, images.widths, images.heights), recipe)

        def graph(source: Callable[[], graphs.Feed]) -> Pipeline:
            return graphs.crops(source, recipe.crop, recipe.pixel_std, _VALIDATION_BATCH, seat.threads, seat.device_id)

        self._stream = _planned(data, self._plan, feed, graph, recipe.statistics.mean_rgb, seat)

    def __iter__(self) -> Iterator[Batch]:
        return self._stream.run(range(len(self._plan)))

    def close(self) -> None:
        self._stream.close()


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
        first, last = part(data.rows, seat.rank, seat.world)
        widths, heights = data.read_sizes(first, last)
        self._plan = shape_batches(augment.dense_windows(augment.rescaled(widths, heights, shorter), stride), first)

        def feed(_: int, images: _Images) -> tuple[graphs.WholeFeed, Windows]:
            sizes = augment.rescaled(images.widths, images.heights, shorter)
            seen = augment.dense_windows(sizes, stride)
            windows = _windows(images, sizes, (sizes - seen) // 2, seen)
            return graphs.feed_wholes(images.encoded, seen, windows), windows

        def graph(source: Callable[[], graphs.WholeFeed]) -> Pipeline:
            return graphs.wholes(source, mean, pixel_std, _WHOLE_IMAGES, seat.threads, seat.device_id)

        self._stream = _planned(data, self._plan, feed, graph, mean, seat)

    def __iter__(self) -> Iterator[Batch]:
        return self._stream.run(range(len(self._plan)))

    def close(self) -> None:
        self._stream.close()


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


@dataclass(frozen=True)
class _Images:
    """The rows of a batch, as they are stored. `replaced`: the positions of those with a stand-in."""

    rows: Ints
    encoded: Encoded
    labels: Ints
    widths: Ints
    heights: Ints
    names: list[str]
    replaced: list[int]


F = TypeVar("F")


@dataclass(frozen=True)
class _Fed(Generic[F]):
    """A batch in the graph. It is kept until it is out, since the graph reads the arrays where they lie."""

    index: int
    images: _Images
    feed: F
    windows: Windows
    bad: Mapping[int, str]  # positions of the images with a stand-in, and why


class _Stream(Generic[F]):
    """Batches by their indices: reads their row groups ahead, feeds them to a graph, replaces what cannot be decoded.

    `rows(i)` and `groups(i)`: the rows of batch i, and the row groups to hold for it. `feed(i, images)`: what the graph
    takes, and the windows that are decoded. `build(source)`: the graph.
    """

    def __init__(
        self,
        data: DataSet,
        rows: Callable[[int], Ints],
        groups: Callable[[int], list[int]],
        feed: Callable[[int, _Images], tuple[F, Windows]],
        build: Callable[[Callable[[], F]], Pipeline],
        mean: tuple[float, float, float],
        seat: Seat,
    ) -> None:
        self._data, self._rows, self._groups, self._feed, self._build, self._seat = (
            data,
            rows,
            groups,
            feed,
            build,
            seat,
        )
        self._stand_in = _plain_image(mean)
        self._reader = ReadAhead(data)
        self._graph: Pipeline | None = None
        self._todo: Iterator[int] = iter(())
        self._ahead: deque[tuple[int, list[int]]] = deque()
        self._fed: deque[_Fed[F]] = deque()
        self._bad: dict[int, dict[int, str]] = {}  # by batch: positions of the images that failed in it, and why
        self._suspects: set[int] = set()  # rows that failed in an earlier batch
        self._used = 0

    @property
    def read_per_used(self) -> float:
        return self._reader.rows_read / self._used if self._used else 0.0

    def run(self, indices: Iterable[int]) -> Iterator[Batch]:
        """One pass. `total` of its batches is their own size."""
        self._todo = iter(indices)
        self._ahead.clear()
        if not self._look_ahead():
            return
        if self._graph is None:
            self._graph = self._build(self._source)
        while True:
            try:
                images = _run(self._graph, self._seat.device)
            except StopIteration:
                break
            except RuntimeError as error:
                graphs.stop(self._graph)
                if not graphs.is_refusal(error) or not self._find_bad():
                    raise
                self._graph = self._build(self._source)
                continue
            fed = self._fed.popleft()
            self._bad.pop(fed.index, None)
            self._used += len(fed.images.rows)
            yield _batch(images, fed.images, fed.bad)
        self._graph.reset()

    def close(self) -> None:
        if self._graph is not None:
            graphs.stop(self._graph)
            self._graph = None
        self._reader.close()

    def _look_ahead(self) -> bool:
        """Whether there are batches left."""
        while len(self._ahead) <= _STEPS_AHEAD and (index := next(self._todo, None)) is not None:
            self._ahead.append((index, self._groups(index)))
        return bool(self._ahead)

    def _source(self) -> F:
        if not self._look_ahead():
            raise StopIteration
        index, needed = self._ahead.popleft()
        self._reader.want(needed, (group for _, groups in self._ahead for group in groups))
        fed = self._prepared(index, self._bad.get(index, {}))
        doubtful = [i for i, row in enumerate(fed.images.rows.tolist()) if row in self._suspects and i not in fed.bad]
        if doubtful and (found := self._refused(fed, doubtful)):
            self._bad[index] = {**fed.bad, **found}
            fed = self._prepared(index, self._bad[index])
        self._fed.append(fed)
        return fed.feed

    def _prepared(self, index: int, bad: Mapping[int, str]) -> _Fed[F]:
        images = self._gather(self._rows(index), sorted(bad))
        feed, windows = self._feed(index, images)
        return _Fed(index, images, feed, windows, bad)

    def _gather(self, rows: Ints, bad: list[int]) -> _Images:
        groups = self._data.groups_of(rows)
        within = rows - self._data.group_starts[groups]
        pieces = [(self._reader.get(g), i) for g, i in zip(groups.tolist(), within.tolist(), strict=True)]
        encoded = [group.encoded[i] for group, i in pieces]
        for position in bad:
            encoded[position] = self._stand_in
        return _Images(
            rows,
            encoded,
            np.array([group.labels[i] for group, i in pieces]),
            np.array([group.widths[i] for group, i in pieces]),
            np.array([group.heights[i] for group, i in pieces]),
            [group.names[i] for group, i in pieces],
            bad,
        )

    def _find_bad(self) -> bool:
        """Looks through the batches in the graph, which has failed, and puts them back; whether a new one was found."""
        found_any = False
        for fed in self._fed:
            found = self._refused(fed, list(range(len(fed.images.rows))))
            if found:
                found_any = True
                self._bad[fed.index] = {**fed.bad, **found}
                self._suspects |= {int(fed.images.rows[i]) for i in found}
        self._ahead.extendleft((fed.index, self._groups(fed.index)) for fed in reversed(self._fed))
        self._fed.clear()
        return found_any

    def _refused(self, fed: _Fed[F], positions: list[int]) -> dict[int, str]:
        encoded = [fed.images.encoded[i] for i in positions]
        found = graphs.refused(encoded, fed.windows[positions], self._seat.threads, self._seat.device_id)
        return {positions[i]: reason for i, reason in found.items()}


def _planned(
    data: DataSet,
    plan: list[Ints],
    feed: Callable[[int, _Images], tuple[F, Windows]],
    build: Callable[[Callable[[], F]], Pipeline],
    mean: tuple[float, float, float],
    seat: Seat,
) -> _Stream[F]:
    """A stream of batches that are known beforehand."""

    def groups(i: int) -> list[int]:
        return list(dict.fromkeys(data.groups_of(plan[i]).tolist()))

    return _Stream(data, plan.__getitem__, groups, feed, build, mean, seat)


def _crop_feed(images: _Images, draws: augment.Draws, recipe: Recipe) -> tuple[graphs.Feed, Windows]:
    windows = _windows(images, draws.sizes, draws.corners, recipe.crop)
    return graphs.feed(images.encoded, draws, windows), windows


def _windows(images: _Images, sizes: Ints, corners: Ints, crop: Ints | int) -> Windows:
    """What has to be decoded; of a stand-in, its one pixel."""
    windows = augment.source_windows(sizes, corners, crop, images.widths, images.heights)
    bad = images.replaced
    windows.starts[bad], windows.extents[bad], windows.crop_starts[bad], windows.crop_ends[bad] = 0, 1, 0.0, 1.0
    return windows


def _plain_image(rgb: tuple[float, float, float]) -> NDArray[np.uint8]:
    """One pixel, encoded."""
    red, green, blue = (round(value) for value in rgb)
    out = BytesIO()
    Image.new("RGB", (1, 1), (red, green, blue)).save(out, "PNG")
    return np.frombuffer(out.getvalue(), np.uint8)


def _run(graph: Pipeline, device: torch.device) -> Tensor:
    stream = torch.cuda.current_stream(device) if device.type == "cuda" else None
    (output,) = graph.run(stream)
    return torch.utils.dlpack.from_dlpack(output.as_tensor())


def _batch(pixels: Tensor, images: _Images, bad: Mapping[int, str]) -> Batch:
    n = len(images.rows)
    assert len(pixels) == n, (len(pixels), n)
    replaced = tuple(Replaced(int(images.rows[i]), images.names[i], why) for i, why in sorted(bad.items()))
    labels = torch.from_numpy(images.labels).to(pixels.device)
    return Batch(pixels, labels, torch.from_numpy(images.rows), n, replaced)


def _empty(crop: int, device: torch.device, total: int) -> Batch:
    none = torch.empty(0, dtype=torch.int64)
    return Batch(torch.empty(0, 3, crop, crop, device=device), none.to(device), none, total)
