"""Opening a data set, and reading its row groups ahead of their use."""

import posixpath
import threading
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pyarrow import fs as arrow_fs

from pipelines.errors import DataError, first_line
from pipelines.location import Location, persistently
from pipelines.schema import COLUMNS, INDEX_COLUMNS, MANIFEST, Manifest, Shard, checksum, first_rows

_AHEAD_BYTES = 128 << 20
_READ_THREADS = 4  # they wait for Arrow's, or for the network


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
        if not manifest.exists() and _holds_parquet(location):
            raise DataError(f"{place}: not a data set yet; `verydeep prepare parquet {place}` makes one of its files")
        if not manifest.exists():
            raise DataError(f"{place}: not a data set (it has no {MANIFEST}); `verydeep prepare` makes one")
        data = cls(location, Manifest.from_json(manifest.read_bytes(), str(manifest)))
        if data.rows == 0:
            raise DataError(f"{place}: the data set is empty")
        data._check_shards()
        _ = data._index  # a broken one is told of now
        return data

    def _check_shards(self) -> None:
        """Raises DataError if a shard is missing or has another length than the manifest says."""
        shards = self.manifest.shards
        try:
            files = [self._file(shard) for shard in shards]  # all of them in one file system
            found = persistently(
                lambda: files[0].filesystem.get_file_info([file.path for file in files]), self.location
            )
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
        return first_rows(self.manifest.group_rows)

    def groups_of(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """The row group that each row lies in."""
        return np.searchsorted(self.group_starts, rows, side="right") - 1

    def read_group(self, group: int, given_up: threading.Event | None = None) -> RowGroup:
        """Raises DataError, naming the file; see `location.persistently` for `given_up`."""
        place = self._place(group)
        return _row_group(place.read(given_up), place)

    def read_sizes(self, first: int, last: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(widths, heights) of the rows first <= r < last, without reading the images. Raises DataError."""
        if first >= last:
            return np.empty(0, np.int64), np.empty(0, np.int64)
        if self._index is not None:
            table = self._index.slice(first, last - first)
        else:
            groups = range(int(self.groups_of(np.array([first]))[0]), int(self.groups_of(np.array([last - 1]))[0]) + 1)
            places = [replace(self._place(group), columns=["width", "height"]) for group in groups]
            with ThreadPoolExecutor(_READ_THREADS) as pool:
                tables = list(pool.map(_Place.read, places))
            table = pa.concat_tables(tables).slice(first - int(self.group_starts[groups[0]]), last - first)
        return table["width"].to_numpy().astype(np.int64), table["height"].to_numpy().astype(np.int64)

    def _place(self, group: int) -> "_Place":
        within = group
        for shard in self.manifest.shards:
            if within < len(shard.group_rows):
                break
            within -= len(shard.group_rows)
        else:
            raise AssertionError(f"no row group {group}")
        where, digest = self._file(shard), shard.group_xxh3[within]
        if self._index is None or self.manifest.references is None:
            return _Place(where, within, digest, COLUMNS.names, None, self._footers)
        first, last = self.group_starts[group : group + 2].tolist()
        index = self._index.slice(first, last - first)
        return _Place(where, index["group"][0].as_py(), digest, [self.manifest.references.image], index, self._footers)

    def _file(self, shard: Shard) -> Location:
        if shard.file.startswith("/"):
            return Location.of(shard.file)
        file = self.location / shard.file
        return replace(file, path=posixpath.normpath(file.path))  # object stores know no ".."

    @cached_property
    def _footers(self) -> dict[str, pq.FileMetaData]:
        return {}

    @cached_property
    def _index(self) -> pa.Table | None:
        """Of a data set in somebody else's Parquet files: what these lack, row by row. Raises DataError."""
        if self.manifest.references is None:
            return None
        where = self.location / self.manifest.references.index
        try:
            index = pq.read_table(pa.BufferReader(where.read_bytes()))
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"{where}: cannot be read: {first_line(error)}") from error
        if index.schema.names != INDEX_COLUMNS.names or len(index) != self.rows:
            raise DataError(f"{where}: not the index of this data set: copy it again or prepare it again")
        return index.combine_chunks()


def _holds_parquet(folder: Location) -> bool:
    """As sets of the Hugging Face hub do, themselves or in a folder `data`."""
    selectors = [arrow_fs.FileSelector(f.path, allow_not_found=True) for f in (folder, folder / "data")]
    try:
        return any(info.extension == "parquet" for s in selectors for info in folder.filesystem.get_file_info(s))
    except OSError:  # not a folder
        return False


@dataclass(frozen=True)
class _Place:
    """Where a row group lies; `index`: of its good rows, if the file is somebody else's."""

    file: Location
    group: int
    xxh3: str
    columns: list[str]
    index: pa.Table | None
    footers: dict[str, pq.FileMetaData]  # of files that were read from before

    def __str__(self) -> str:
        return f"{self.file}: row group {self.group}"

    def read(self, given_up: threading.Event | None = None) -> pa.Table:
        """Raises DataError."""
        try:
            return persistently(self._read, self, given_up)
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"{self} cannot be read: {first_line(error)}") from error

    def _read(self) -> pa.Table:
        with self.file.filesystem.open_input_file(self.file.path) as stream:
            file = pq.ParquetFile(stream, metadata=self.footers.get(self.file.path), pre_buffer=True)
            self.footers[self.file.path] = file.metadata
            return file.read_row_group(self.group, columns=self.columns, use_threads=True).flatten()


def _row_group(table: pa.Table, place: _Place) -> RowGroup:
    """Raises DataError."""
    if table.schema.names != place.columns:
        raise DataError(f"{place} has the columns {table.schema.names}, expected {place.columns}")
    encoded, rows = _views(table[place.columns[0]]), table
    if place.index is not None:
        rows = place.index
        encoded = [encoded[row] for row in rows["row"].to_numpy() if row < len(encoded)]
    labels, widths, heights = (rows[name].to_numpy().astype(np.int64) for name in ("label", "width", "height"))
    names = rows["name"].to_pylist()
    found = checksum((image.data for image in encoded), labels, widths, heights, names)  # microseconds an image
    if found != place.xxh3:
        raise DataError(
            f"{place} changed since it was prepared: its checksum is {found}, the manifest says {place.xxh3}"
        )
    return RowGroup(encoded, labels, widths, heights, names)


def _views(column: pa.ChunkedArray) -> list[NDArray[np.uint8]]:
    """The bytes of each row, without a copy."""
    views: list[NDArray[np.uint8]] = []
    for chunk in column.chunks:
        _, offsets, data = chunk.buffers()
        width = np.int64 if pa.types.is_large_binary(chunk.type) else np.int32
        ends = np.frombuffer(offsets, width)[chunk.offset : chunk.offset + len(chunk) + 1]
        content = np.frombuffer(data or b"", np.uint8)
        views += [content[a:b] for a, b in pairwise(ends)]
    return views


class ReadAhead:
    """Keeps the row groups that are needed, and reads some that will be, on threads of its own.

    Bound: the groups of `needed` and 128 MiB of others, or one if groups are larger.
    """

    def __init__(self, data: DataSet, threads: int = _READ_THREADS) -> None:
        self._data = data
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="read-ahead")
        self._closed = threading.Event()
        self._groups: dict[int, Future[RowGroup]] = {}
        self._ahead = max(1, int(_AHEAD_BYTES / data.manifest.group_bytes))
        self.rows_read = 0

    def want(self, needed: Iterable[int], ahead: Iterable[int]) -> None:
        """Starts to read the groups that are not there yet, and forgets all others. `ahead`: the next ones first."""
        wanted = dict.fromkeys(needed)
        most = len(wanted) + self._ahead
        for group in ahead:
            if len(wanted) == most:
                break
            wanted[group] = None
        for group in self._groups.keys() - wanted.keys():
            self._groups.pop(group).cancel()
        for group in wanted:
            if group not in self._groups:
                self._groups[group] = self._pool.submit(self._data.read_group, group, self._closed)
                self.rows_read += self._data.manifest.group_rows[group]

    def get(self, group: int) -> RowGroup:
        """Waits for a group that is wanted."""
        return self._groups[group].result()

    def __len__(self) -> int:
        """Row groups that are held or being read."""
        return len(self._groups)

    def close(self) -> None:
        """Gives up what is being read."""
        self._closed.set()
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._groups.clear()
