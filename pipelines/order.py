"""Which row comes when, for any number of workers: pure functions of (seed, epoch, step, world).

An epoch's row groups are permuted and their rows laid end to end. This line is cut into equal streams, each shuffled
inside windows that end where row groups end. Position p of the epoch takes the next row of stream
`_bit_reversed(p mod streams)`, so that a batch, a run of positions, takes equally from streams all over the line. The
global batch, sorted by stream, is cut into one share for each worker at the borders of its streams. So a worker reads
its own part of the line, in sequence, whatever the world size; every row comes once an epoch; and the last batch may
be smaller.

Windows of different streams end at different times, so row groups are read at an even pace; the windows of all streams
together hold at most `held` row groups.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from pipelines import keys
from pipelines.keys import Purpose
from pipelines.schema import Manifest, first_rows

Rows = NDArray[np.int64]

_STREAMS_MOST = 64
_GROUPS_PER_STREAM = 8  # fewer, and too many groups lie across two streams, to be read by both
_HELD_GROUPS = 64
_HELD_BYTES = 512 << 20


@dataclass(frozen=True, eq=False)
class Order:
    """`group_rows`: rows in each row group of the data set; `batch`: rows of a global batch; `held`: row groups in the
    windows of all streams together."""

    group_rows: tuple[int, ...]
    batch: int
    seed: int
    held: int = _HELD_GROUPS

    @classmethod
    def of(cls, manifest: Manifest, batch: int, seed: int) -> "Order":
        """The order of a data set, with windows of at most 64 row groups and, if that is possible, 512 MiB."""
        held = max(1, min(_HELD_GROUPS, int(_HELD_BYTES / manifest.group_bytes)))
        return cls(manifest.group_rows, batch, seed, held)

    @cached_property
    def rows(self) -> int:
        return sum(self.group_rows)

    @cached_property
    def group_starts(self) -> Rows:
        """(groups + 1,): the first row of each row group, then the number of rows."""
        return first_rows(self.group_rows)

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.rows // self.batch)

    @cached_property
    def streams(self) -> int:
        """A power of two."""
        most = min(_STREAMS_MOST, self.held, len(self.group_rows) // _GROUPS_PER_STREAM)
        return 1 << max(0, most.bit_length() - 1)

    def batch_rows(self, step: int) -> int:
        """The size of the global batch of step `step` (counted from 0 over all epochs)."""
        within = step % self.steps_per_epoch
        return min(self.batch, self.rows - within * self.batch)

    def share_rows(self, step: int, rank: int, world: int) -> int:
        """The size of the share of worker `rank` of `world`."""
        first, last = _cuts(_counts(self, step), rank, world)
        return last - first

    def shares(self, step: int, world: int) -> list[int]:
        """The sizes of the shares of all ranks."""
        cut = _cutter(_counts(self, step), world)
        borders = [cut(rank) for rank in range(world + 1)]
        return [last - first for first, last in zip(borders, borders[1:], strict=False)]

    def share(self, step: int, rank: int, world: int) -> Rows:
        """The rows of worker `rank` of `world` in step `step`. Shares of all ranks, joined, are the global batch."""
        epoch = step // self.steps_per_epoch
        pieces = [_stream(self, epoch, s).places(first, last) for s, first, last in self._pieces(step, rank, world)]
        places = np.concatenate([np.empty(0, np.int64), *pieces])
        groups, ends = _line(self, epoch)
        k = np.searchsorted(ends, places, side="right")
        return self.group_starts[groups[k] + 1] - (ends[k] - places)

    def groups(self, step: int, rank: int, world: int) -> list[int]:
        """The row groups in the windows that this share comes from, in the order in which they are needed."""
        epoch = step // self.steps_per_epoch
        found: dict[int, None] = {}
        for s, first, last in self._pieces(step, rank, world):
            found.update(dict.fromkeys(_stream(self, epoch, s).groups(first, last)))
        return list(found)

    def _pieces(self, step: int, rank: int, world: int) -> list[tuple[int, int, int]]:
        """(stream, first index in it, last one, excluded) of each run of rows that makes up a share."""
        counts = _counts(self, step)
        begin = _begins(self, step)
        first, last = _cuts(counts, rank, world)
        ends = np.cumsum(counts)
        pieces = []
        for s in range(int(np.searchsorted(ends, first, side="right")), self.streams):
            before = int(ends[s] - counts[s])
            if before >= last:
                break
            a, b = max(first, before), min(last, int(ends[s]))
            if a < b:
                pieces.append((s, int(begin[s]) + a - before, int(begin[s]) + b - before))
        return pieces


def part(n: int, rank: int, world: int) -> tuple[int, int]:
    """(first, last) of the n things, last excluded, that are worker `rank`'s; sizes are at most 1 apart."""
    return rank * n // world, (rank + 1) * n // world


def _cuts(counts: Rows, rank: int, world: int) -> tuple[int, int]:
    """(first, last) of a batch's rows, last excluded, that are worker `rank`'s. `counts`: rows of each stream.

    Every worker gets the same number of streams, to fractions, so that it reads from no others. With a world that is a
    power of two, sizes are at most 1 apart; with others they were never found to be more than 4 apart.
    """
    assert 0 <= rank < world, (rank, world)
    cut = _cutter(counts, world)
    return cut(rank), cut(rank + 1)


def _cutter(counts: Rows, world: int) -> Callable[[int], int]:
    """Where the share of a rank begins; of `world` itself, where the batch ends."""
    ends = np.concatenate([[0], np.cumsum(counts)])

    def cut(rank: int) -> int:
        stream, shared = divmod(rank * len(counts), world)
        return int(ends[stream]) + ((int(counts[stream]) * shared + world // 2) // world if shared else 0)

    return cut


def _begins(order: Order, step: int) -> Rows:
    """The index inside each stream that a step's batch begins with."""
    first = step % order.steps_per_epoch * order.batch
    return -((_bit_reversed(order.streams) - first) // order.streams)


def _counts(order: Order, step: int) -> Rows:
    """The rows that a step's batch takes from each stream."""
    first = step % order.steps_per_epoch * order.batch
    end = -((_bit_reversed(order.streams) - first - order.batch_rows(step)) // order.streams)
    return end - _begins(order, step)


@lru_cache(maxsize=8)
def _bit_reversed(n: int) -> Rows:
    """0, ..., n - 1 (a power of two) with their bits reversed: any run of them is spread evenly over all."""
    bits = n.bit_length() - 1
    return np.array([int(format(i, f"0{bits}b")[::-1], 2) if bits else 0 for i in range(n)], dtype=np.int64)


@lru_cache(maxsize=4)
def _line(order: Order, epoch: int) -> tuple[Rows, Rows]:
    """(row groups in this epoch's order, the place on the line where each ends)."""
    permuted = keys.permutation(len(order.group_rows), order.seed, epoch, Purpose.GROUP_ORDER)
    return permuted, np.cumsum(np.diff(order.group_starts)[permuted])


@dataclass(frozen=True)
class _Stream:
    """A part of an epoch's line. `bounds`: places on the line where its windows begin, and its end."""

    order: Order
    epoch: int
    number: int
    bounds: Rows

    def places(self, first: int, last: int) -> Rows:
        """Of the rows with the indices first <= i < last of this stream: where on the line they lie."""
        begin = int(self.bounds[0])
        places = np.empty(last - first, dtype=np.int64)
        for block in self._blocks(first, last):
            a, b = int(self.bounds[block]) - begin, int(self.bounds[block + 1]) - begin
            i, j = max(a, first), min(b, last)
            places[i - first : j - first] = (
                begin + a + _window(self.order, self.epoch, self.number, block)[i - a : j - a]
            )
        return places

    def groups(self, first: int, last: int) -> list[int]:
        """The row groups of the windows with the indices first <= i < last."""
        groups, ends = _line(self.order, self.epoch)
        blocks = self._blocks(first, last)
        places = self.bounds[blocks.start], self.bounds[blocks.stop] - 1
        a, b = np.searchsorted(ends, places, side="right")
        return [int(g) for g in groups[a : b + 1]]

    def _blocks(self, first: int, last: int) -> range:
        a, b = np.searchsorted(self.bounds - self.bounds[0], [first, last - 1], side="right") - 1
        return range(int(a), int(b) + 1)


@lru_cache(maxsize=2 * _STREAMS_MOST)
def _stream(order: Order, epoch: int, number: int) -> _Stream:
    """Its length is the number of positions of an epoch that fall to it."""
    k = order.streams
    lengths = (order.rows - _bit_reversed(k) + k - 1) // k
    end = int(lengths[: number + 1].sum())
    begin = end - int(lengths[number])
    _, ends = _line(order, epoch)
    inner = ends[np.searchsorted(ends, begin, side="right") : np.searchsorted(ends, end)]
    window = order.held // k
    phase = max(window * (int(_bit_reversed(k)[number]) + 1) // k - 1, 0)  # streams do not change windows all at once
    if len(order.group_rows) <= order.held:
        inner = inner[:0]  # one window for all
    return _Stream(order, epoch, number, np.concatenate([[begin], inner[phase::window], [end]]))


@lru_cache(maxsize=2 * _STREAMS_MOST)
def _window(order: Order, epoch: int, stream: int, block: int) -> Rows:
    """The rows of one window of a stream, counted from its first, shuffled."""
    bounds = _stream(order, epoch, stream).bounds
    n = int(bounds[block + 1] - bounds[block])
    return keys.permutation(n, order.seed, epoch, Purpose.WINDOW_ORDER, block * _STREAMS_MOST + stream)
