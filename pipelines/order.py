"""Which row comes when, for any number of workers: pure functions of (seed, epoch, step, world).

An epoch's row groups are permuted and their rows laid end to end. This line is cut into `streams` equal streams,
each shuffled inside windows. Position p of the epoch takes the next row of stream `_bit_reversed(p mod streams)`,
so that a batch, a run of positions, takes equally from streams all over the line. The global batch, sorted by
stream, is cut into one share for each worker, sizes at most 1 apart. So a worker reads its own part of the line,
in sequence, whatever the world size; every row comes once an epoch; and the last batch may be smaller.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from pipelines import keys
from pipelines.keys import Purpose

Rows = NDArray[np.int64]

_STREAMS_MOST = 64
_GROUPS_PER_STREAM = 8  # fewer, and streams share too many of the groups at their ends
_SHUFFLED_ROWS = 16384  # rows in all streams' windows together; assumption: far more than a class's run of rows


@dataclass(frozen=True)
class Order:
    """`group_rows`: rows in each row group of the data set; `batch`: rows of a global batch."""

    group_rows: tuple[int, ...]
    batch: int
    seed: int

    @property
    def rows(self) -> int:
        return sum(self.group_rows)

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.rows // self.batch)

    @property
    def streams(self) -> int:
        streams = 1
        while streams < _STREAMS_MOST and 2 * streams * _GROUPS_PER_STREAM <= len(self.group_rows):
            streams *= 2
        return streams

    @property
    def window(self) -> int:
        """Rows of a stream that are shuffled together."""
        return _SHUFFLED_ROWS // self.streams

    def batch_rows(self, step: int) -> int:
        """The size of the global batch of step `step` (counted from 0 over all epochs)."""
        within = step % self.steps_per_epoch
        return min(self.batch, self.rows - within * self.batch)

    def share(self, step: int, rank: int, world: int) -> Rows:
        """The rows of worker `rank` of `world` in step `step`. Shares of all ranks, joined, are the global batch."""
        epoch = step // self.steps_per_epoch
        streams, indices = self._share_positions(step, rank, world)
        return _rows_at(self, epoch, streams, indices)

    def groups(self, step: int, rank: int, world: int) -> list[int]:
        """The row groups in the windows that this share comes from, in the order in which they are needed."""
        epoch = step // self.steps_per_epoch
        streams, indices = self._share_positions(step, rank, world)
        order, ends = _line(self, epoch)
        starts, lengths = _streams(self)
        found: dict[int, None] = {}
        for stream, block in sorted({(int(s), int(i) // self.window) for s, i in zip(streams, indices, strict=True)}):
            first = starts[stream] + block * self.window
            last = min(first + self.window, starts[stream] + lengths[stream]) - 1
            a, b = np.searchsorted(ends, [first, last], side="right")
            found.update(dict.fromkeys(int(g) for g in order[a : b + 1]))
        return list(found)

    def _share_positions(self, step: int, rank: int, world: int) -> tuple[Rows, Rows]:
        """(stream, index inside it) of the share's rows."""
        assert 0 <= rank < world, (rank, world)
        n = self.batch_rows(step)
        first = step % self.steps_per_epoch * self.batch
        positions = np.arange(first, first + n, dtype=np.int64)
        streams, indices = _bit_reversed(self.streams)[positions % self.streams], positions // self.streams
        mine = np.lexsort((indices, streams))[slice(*part(n, rank, world))]
        return streams[mine], indices[mine]


def part(n: int, rank: int, world: int) -> tuple[int, int]:
    """(first, last) of the n things, last excluded, that are worker `rank`'s; sizes are at most 1 apart."""
    return rank * n // world, (rank + 1) * n // world


@lru_cache(maxsize=8)
def _bit_reversed(n: int) -> Rows:
    """0, ..., n - 1 (a power of two) with their bits reversed: any run of them is spread evenly over all."""
    bits = n.bit_length() - 1
    return np.array([int(format(i, f"0{bits}b")[::-1], 2) if bits else 0 for i in range(n)], dtype=np.int64)


@lru_cache(maxsize=8)
def _streams(order: Order) -> tuple[Rows, Rows]:
    """(first place on the line, length) of each stream; lengths are those that the positions of an epoch take."""
    k = order.streams
    lengths = np.empty(k, dtype=np.int64)
    lengths[_bit_reversed(k)] = [(order.rows - j + k - 1) // k for j in range(k)]
    return np.concatenate([[0], np.cumsum(lengths)[:-1]]), lengths


@lru_cache(maxsize=4)
def _line(order: Order, epoch: int) -> tuple[Rows, Rows]:
    """(row groups in this epoch's order, the place on the line where each ends)."""
    permuted = keys.permutation(len(order.group_rows), order.seed, epoch, Purpose.GROUP_ORDER)
    return permuted, np.cumsum(np.asarray(order.group_rows, dtype=np.int64)[permuted])


@lru_cache(maxsize=4)
def _group_starts(order: Order) -> Rows:
    return np.concatenate([[0], np.cumsum(order.group_rows)[:-1]]).astype(np.int64)


@lru_cache(maxsize=2 * _STREAMS_MOST)
def _window(order: Order, epoch: int, stream: int, block: int) -> Rows:
    """Places on the line of one window of a stream, shuffled."""
    starts, lengths = _streams(order)
    first = block * order.window
    n = min(order.window, int(lengths[stream]) - first)
    which = block * _STREAMS_MOST + stream
    return starts[stream] + first + keys.permutation(n, order.seed, epoch, Purpose.WINDOW_ORDER, which)


def _rows_at(order: Order, epoch: int, streams: Rows, indices: Rows) -> Rows:
    places = np.empty(len(streams), dtype=np.int64)
    blocks = indices // order.window
    for stream, block in {(int(s), int(b)) for s, b in zip(streams, blocks, strict=True)}:
        here = (streams == stream) & (blocks == block)
        places[here] = _window(order, epoch, stream, block)[indices[here] % order.window]
    groups, ends = _line(order, epoch)
    k = np.searchsorted(ends, places, side="right")
    begin = ends[k] - np.asarray(order.group_rows, dtype=np.int64)[groups[k]]
    return _group_starts(order)[groups[k]] + (places - begin)
