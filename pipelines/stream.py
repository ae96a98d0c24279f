"""Batches by their indices: row groups read ahead, a DALI graph fed with them, and its output handed on.

One image that DALI cannot decode costs its whole batch, and the graph. The image is then looked for, replaced in that
batch, and the graph started anew with the same batch, so that nothing else is lost.
"""

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from pipelines import graphs, transfer
from pipelines.augment import Ints, Windows
from pipelines.graphs import Encoded, Graph
from pipelines.seat import Seat
from pipelines.shards import DataSet, ReadAhead

_STEPS_AHEAD = 8  # how far ahead of the graph row groups are looked for
MOST_LENT = 4  # batches: as far as a program gets ahead of its GPU, which bounds their memory


@dataclass(frozen=True)
class Replaced:
    """An image that could not be decoded: its row and name in the data set, and the decoder's reason."""

    row: int
    name: str
    reason: str


@dataclass(frozen=True)
class Batch:
    """
    images    (n, 3, H, W) float32, RGB, mean subtracted, on the device; to be used before the next batch is asked for,
              which on the CPU takes its memory
    labels    (n,) int64, on the device
    rows      (n,) int64, on the CPU: which rows of the data set these are
    total     images in the global batch of this step, over all workers
    replaced  those of them that could not be decoded; a picture of one colour, the mean, stands in for each
    names     of the images, in the data set
    """

    images: Tensor
    labels: Tensor
    rows: Tensor
    total: int
    replaced: tuple[Replaced, ...] = ()
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Images:
    """The rows of a batch, as they are stored. `replaced`: the positions of those with a stand-in."""

    rows: Ints
    encoded: Encoded
    labels: Ints
    widths: Ints
    heights: Ints
    names: list[str]
    replaced: list[int]

    def without(self, positions: Collection[int]) -> "Images":
        """Of images without a stand-in, those at other positions."""
        assert not self.replaced
        left = [i for i in range(len(self.rows)) if i not in positions]
        encoded, names = [self.encoded[i] for i in left], [self.names[i] for i in left]
        return Images(self.rows[left], encoded, self.labels[left], self.widths[left], self.heights[left], names, [])


F = TypeVar("F")


@dataclass(frozen=True)
class _Fed(Generic[F]):
    """A batch in the graph. It is kept until it is out, since the graph reads the arrays where they lie."""

    index: int
    images: Images
    feed: F
    windows: Windows
    bad: Mapping[int, str]  # positions of the images with a stand-in, and why


class Stream(Generic[F]):
    """Batches by their indices: reads their row groups ahead, feeds them to a graph, replaces what cannot be decoded.

    `rows(i)` and `groups(i)`: the rows of batch i, and the row groups to hold for it. `feed(i, images)`: what the graph
    takes, and the windows that are decoded. `build(source)`: the graph.
    """

    def __init__(
        self,
        data: DataSet,
        rows: Callable[[int], Ints],
        groups: Callable[[int], list[int]],
        feed: Callable[[int, Images], tuple[F, Windows]],
        build: Callable[[Callable[[], F]], Graph],
        mean: tuple[float, float, float],
        seat: Seat,
    ) -> None:
        self._data, self._seat = data, seat
        self._rows, self._groups, self._feed, self._build = rows, groups, feed, build
        self._stand_in = _plain_image(mean)
        self._reader = ReadAhead(data)
        self._graph: Graph | None = None
        self._todo: Iterator[int] = iter(())
        self._ahead: deque[tuple[int, list[int]]] = deque()
        self._fed: deque[_Fed[F]] = deque()
        self._bad: dict[int, dict[int, str]] = {}  # by batch: positions of the images that failed in it, and why
        self._suspects: set[int] = set()  # rows that failed in an earlier batch
        self._lent = _Lent(seat.device)
        self._used = 0

    @property
    def read_per_used(self) -> float:
        return self._reader.rows_read / self._used if self._used else 0.0

    def run(self, indices: Iterable[int]) -> Iterator[Batch]:
        """One pass, which may be left before its end. `total` of its batches is their own size."""
        self._todo = iter(indices)
        self._ahead.clear()
        if not self._look_ahead():
            return
        graph = self._graph or self._build(self._source)
        self._graph = None  # until it has come to the end of the pass: half way, it holds batches of this one
        try:
            while True:
                try:
                    pixels = graphs.run(graph, self._seat.device)
                except StopIteration:
                    break
                except RuntimeError as error:
                    graphs.stop(graph)
                    if not graphs.is_refusal(error) or not self._find_bad():
                        raise
                    graph = self._build(self._source)
                    continue
                fed = self._fed.popleft()
                self._bad.pop(fed.index, None)
                self._used += len(fed.images.rows)
                try:
                    yield _batch(pixels, fed.images, fed.bad)
                finally:  # also where nobody asks for more
                    self._lent.hold(pixels)
            graph.reset()
            self._graph = graph
        finally:
            if self._graph is None:
                graphs.stop(graph)
            self._fed.clear()

    def images(self, index: int) -> Images:
        """Of a batch, as they are stored. Not for the middle of a pass, whose row groups it would let go."""
        self._reader.want(self._groups(index), ())
        return self._gather(self._rows(index), [])

    def close(self) -> None:
        if self._graph is not None:
            graphs.stop(self._graph)
            self._graph = None
        self._reader.close()
        self._lent.close()

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

    def _gather(self, rows: Ints, bad: list[int]) -> Images:
        groups = self._data.groups_of(rows)
        within = rows - self._data.group_starts[groups]
        pieces = [(self._reader.get(g), i) for g, i in zip(groups.tolist(), within.tolist(), strict=True)]
        encoded = [group.encoded[i] for group, i in pieces]
        for position in bad:
            encoded[position] = self._stand_in
        return Images(
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


class _Lent:
    """Batches that a GPU may still be reading, though the program is done with them: see `graphs.run`."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._held: deque[tuple[torch.cuda.Event, Tensor]] = deque()

    def hold(self, pixels: Tensor) -> None:
        """Until all is done that the current stream has been given so far. On the CPU all is done."""
        if self._device.type != "cuda":
            return
        read = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        read.record(torch.cuda.current_stream(self._device))
        self._held.append((read, pixels))
        while self._held and (len(self._held) > MOST_LENT or self._done()):
            self._let_go()

    def close(self) -> None:
        while self._held:
            self._let_go()

    def _done(self) -> bool:
        return bool(self._held[0][0].query())  # type: ignore[no-untyped-call]

    def _let_go(self) -> None:
        read, _ = self._held[0]
        read.synchronize()
        self._held.popleft()


def _plain_image(rgb: tuple[float, float, float]) -> NDArray[np.uint8]:
    """One pixel, encoded."""
    red, green, blue = (round(value) for value in rgb)
    out = BytesIO()
    Image.new("RGB", (1, 1), (red, green, blue)).save(out, "PNG")
    return np.frombuffer(out.getvalue(), np.uint8)


def _batch(pixels: Tensor, images: Images, bad: Mapping[int, str]) -> Batch:
    n = len(images.rows)
    assert len(pixels) == n, (len(pixels), n)
    replaced = tuple(Replaced(int(images.rows[i]), images.names[i], why) for i, why in sorted(bad.items()))
    labels = transfer.onto(torch.from_numpy(images.labels), pixels.device)
    return Batch(pixels, labels, torch.from_numpy(images.rows), n, replaced, tuple(images.names))
