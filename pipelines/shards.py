"""Opening a data set, and reading its row groups ahead of their use."""

from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipelines.errors import DataError
from pipelines.location import Location
from pipelines.schema import COLUMNS, MANIFEST, Manifest, Shard, checksum


@dataclass(frozen=True)
class RowGroup:
    """Some neighbouring rows. `encoded[i]` is a view of Arrow's memory, not a copy."""

    encoded: list[NDArray[np.uint8]]
    labels: NDArray[np.int64]  # (n,)
    widths: NDArray[np.int64]  # (n,) pixels
    heights: NDArray[np.int64]  # (n,)
    names: list[str]


@dataclass(frozen=True)
class DataSet:
    """A prepared data set. Row r is a number from 0 to `rows` - 1, in the order in which the rows lie in the files."""

    location: Location
    manifest: Manifest

    @classmethod
    def open(cls, place: str) -> "DataSet":
        """`place`: a local folder or a URI. Raises DataError: nothing there, not a data set, or empty."""
        location = Location.of(place)
        manifest = location / MANIFEST
        if not location.exists():
            raise DataError(f"{place}: no such data set; `verydeep prepare` makes one")
        if not manifest.exists():
            raise DataError(f"{place}: not a data set (it has no {MANIFEST}); `verydeep prepare` makes one")
        data = cls(location, Manifest.from_json(manifest.read_bytes(), str(manifest)))
        if data.rows == 0:
            raise DataError(f"{place}: the data set is empty")
        data._check_shards()
        return data

    def _check_shards(self) -> None:
        """Raises DataError if a shard is missing or has another length than the manifest says."""
        shards = self.manifest.shards
        try:
            found = self.location.filesystem.get_file_info([(self.location / s.file).path for s in shards])
        except OSError as error:
            raise DataError(f"{self.location}: cannot be reached: {error}") from error
        for shard, info in zip(shards, found, strict=True):
            if info.size != shard.bytes:
                what = "lacks" if info.size is None else f"has {info.size} bytes instead of {shard.bytes} in"
                raise DataError(f"{self.location}: the data set {what} {shard.file}: copy it again or prepare it again")

    @property
    def rows(self) -> int:
        return self.manifest.rows

    @cached_property
    def group_starts(self) -> NDArray[np.int64]:
        """(groups + 1,): the first row of each row group, then the number of rows."""
        return np.concatenate([[0], np.cumsum(self.manifest.group_rows)]).astype(np.int64)

    def groups_of(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """The row group that each row lies in."""
        return np.searchsorted(self.group_starts, rows, side="right") - 1

    def read_group(self, group: int) -> RowGroup:
        """Raises DataError, naming the file."""
        shard, within = self._place(group)
        where = self.location / shard.file
        try:
            with where.filesystem.open_input_file(where.path) as stream:
                table = pq.ParquetFile(stream).read_row_group(within, use_threads=True)
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"{where}: row group {within} cannot be read: {error}") from error
        return _row_group(table, f"{where}: row group {within}", shard.group_xxh3[within])

    def read_sizes(self, first: int, last: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(widths, heights) of the rows first <= r < last, without reading the images."""
        if first >= last:
            return np.empty(0, np.int64), np.empty(0, np.int64)
        groups = range(int(self.groups_of(np.array([first]))[0]), int(self.groups_of(np.array([last - 1]))[0]) + 1)
        tables = []
        for group in groups:
            shard, within = self._place(group)
            where = self.location / shard.file
            with where.filesystem.open_input_file(where.path) as stream:
                tables.append(pq.ParquetFile(stream).read_row_group(within, columns=["width", "height"]))
        table = pa.concat_tables(tables).slice(first - int(self.group_starts[groups[0]]), last - first)
        return table["width"].to_numpy().astype(np.int64), table["height"].to_numpy().astype(np.int64)

    def _place(self, group: int) -> tuple[Shard, int]:
        for shard in self.manifest.shards:
            if group < len(shard.group_rows):
                return shard, group
            group -= len(shard.group_rows)
        raise AssertionError(f"no row group {group}")


def _row_group(table: pa.Table, where: str, expected: str) -> RowGroup:
    """`expected`: the row group's checksum in the manifest. Raises DataError."""
    if table.schema.names != COLUMNS.names:
        raise DataError(f"{where} has the columns {table.schema.names}, expected {COLUMNS.names}")
    group = RowGroup(
        encoded=_views(table["image"]),
        labels=table["label"].to_numpy().astype(np.int64),
        widths=table["width"].to_numpy().astype(np.int64),
        heights=table["height"].to_numpy().astype(np.int64),
        names=table["name"].to_pylist(),
    )
    found = checksum((image.data for image in group.encoded), group.labels)  # microseconds an image
    if found != expected:
        raise DataError(f"{where} changed since it was prepared: its checksum is {found}, the manifest says {expected}")
    return group


def _views(column: pa.ChunkedArray) -> list[NDArray[np.uint8]]:
    """The bytes of each row, without a copy."""
    views: list[NDArray[np.uint8]] = []
    for chunk in column.chunks:
        _, offsets, data = chunk.buffers()
        width = np.int64 if pa.types.is_large_binary(chunk.type) else np.int32
        ends = np.frombuffer(offsets, width)[chunk.offset : chunk.offset + len(chunk) + 1]
        content = np.frombuffer(data, np.uint8)
        views += [content[a:b] for a, b in pairwise(ends)]
    return views


class ReadAhead:
    """Keeps just the row groups that are wanted, reading them on threads of its own."""

    def __init__(self, data: DataSet, threads: int = 2) -> None:
        self._data = data
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="read-ahead")
        self._groups: dict[int, Future[RowGroup]] = {}

    def want(self, groups: Iterable[int]) -> None:
        """Starts to read the groups that are not there yet, and forgets all others."""
        wanted = list(dict.fromkeys(int(g) for g in groups))
        for group in set(self._groups) - set(wanted):
            self._groups.pop(group).cancel()
        for group in wanted:
            if group not in self._groups:
                self._groups[group] = self._pool.submit(self._data.read_group, group)

    def get(self, group: int) -> RowGroup:
        """Waits for a group that is wanted."""
        return self._groups[group].result()

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._groups.clear()
