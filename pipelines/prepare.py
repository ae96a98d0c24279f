"""Sources to data sets: shuffled once over all images, checked, counted, and written as Parquet."""

import csv
import os
import shutil
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from pipelines import audit, keys
from pipelines.errors import DataError
from pipelines.keys import Purpose
from pipelines.schema import COLUMNS, MANIFEST, Manifest, Shard, Statistics, checksum
from pipelines.sources import Source

REPORT = "rejected.csv"
_BATCH = 32  # images that are checked together
_DECODED_PIXELS = 24 << 20  # of them, decoded at once by a thread: 72 MiB


@dataclass(frozen=True)
class Layout:
    """Row groups are what is read at a time, so they are bounded in bytes; shards are what is copied at a time."""

    group_bytes: int = 8 << 20
    shard_bytes: int = 512 << 20


@dataclass(frozen=True)
class Image:
    encoded: bytes
    label: int
    name: str
    verdict: audit.Verdict


def prepare(
    source: Source,
    dest: Path,
    *,
    seed: int = 0,
    statistics: bool = True,
    layout: Layout | None = None,
    threads: int | None = None,
    overwrite: bool = False,
) -> Manifest:
    """Writes `source` to the folder `dest`, in an order that is random but the same for the same seed.

    Files that are not images are left out and listed in `dest`/rejected.csv. The folder appears whole or not at
    all. `statistics` (of a training set) are the mean colour and the principal components of the colours.
    Raises DataError: `dest` is there already, or nothing is left.
    """
    if ":/" in str(dest):  # a URI, of which Path keeps one slash
        raise DataError(f"{dest}: a data set is prepared in a folder; copy it to an object store afterwards")
    dest = Path(os.path.expanduser(dest)).absolute()
    if dest.exists() and not overwrite:
        raise DataError(f"{dest}: is there already; choose another place or give --overwrite")
    aside = dest.with_name(f".{dest.name}.{os.getpid()}.part")
    try:
        dest.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        manifest = _write(source, aside, seed, statistics, layout or Layout(), threads or os.cpu_count() or 1, dest)
        if overwrite and dest.exists():
            shutil.rmtree(dest)
        aside.rename(dest)  # fails if another preparation was quicker
    except OSError as error:
        raise DataError(f"{dest}: cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return manifest


def _write(
    source: Source, folder: Path, seed: int, statistics: bool, layout: Layout, threads: int, dest: Path
) -> Manifest:
    rejected: list[tuple[str, str]] = []
    pixels = _Pixels()
    shards = _Shards(folder, layout)
    class_rows = [0] * len(source.classes)
    with tqdm(total=len(source), desc=f"preparing {dest.name}", unit=" images", disable=None) as bar:
        for image in _checked(source, seed, statistics, threads):
            bar.update()
            if image.verdict.reason is not None:
                rejected.append((image.name, image.verdict.reason))
                continue
            class_rows[image.label] += 1
            pixels.add(image.verdict)
            shards.add(image)
    rows = sum(class_rows)
    if not rows:
        raise DataError(
            f"{source.description}: none of its {len(source)} files is an image; "
            f"the first, {rejected[0][0]}: {rejected[0][1]}"
        )
    if rejected:
        with (folder / REPORT).open("w", newline="") as stream:
            csv.writer(stream).writerows([("file", "reason"), *rejected])
    manifest = Manifest(
        rows=rows,
        classes=source.classes,
        class_rows=tuple(class_rows),
        shards=shards.close(),
        statistics=pixels.statistics() if statistics else None,
        source=source.description,
        seed=seed,
        rejected=len(rejected),
    )
    (folder / MANIFEST).write_text(manifest.to_json())
    return manifest


def _checked(source: Source, seed: int, statistics: bool, threads: int) -> Iterator[Image]:
    """The images in their shuffled order, each with its verdict; a bounded number of batches is under way."""
    order = keys.permutation(len(source), seed, 0, Purpose.PREPARATION_ORDER)
    batches = [order[i : i + _BATCH] for i in range(0, len(order), _BATCH)]

    def check(rows: np.ndarray) -> list[Image]:
        images = [_examined(source, int(i), statistics) for i in rows]
        good = [k for k, image in enumerate(images) if image.verdict.reason is None]
        for part in _by_pixels(images, good):
            for k in audit.refused_by_dali([images[g].encoded for g in part], threads=1):
                verdict = audit.Verdict("DALI's decoder does not take it")
                images[part[k]] = replace(images[part[k]], verdict=verdict)
        return images

    with ThreadPoolExecutor(threads) as pool:
        under_way: deque[Future[list[Image]]] = deque()
        for rows in batches:
            under_way.append(pool.submit(check, rows))
            if len(under_way) > 2 * threads:
                yield from under_way.popleft().result()
        while under_way:
            yield from under_way.popleft().result()


def _by_pixels(images: list[Image], good: list[int]) -> Iterator[list[int]]:
    """`good` in parts that a thread can decode at once: bounded in pixels, or one larger image."""
    part: list[int] = []
    pixels = 0
    for g in good:
        size = images[g].verdict.width * images[g].verdict.height
        if part and pixels + size > _DECODED_PIXELS:
            yield part
            part, pixels = [], 0
        part.append(g)
        pixels += size
    if part:
        yield part


def _examined(source: Source, i: int, statistics: bool) -> Image:
    try:
        encoded = source.read(i)
    except OSError as error:
        verdict = audit.Verdict(f"cannot be read: {error.strerror or error}")
        return Image(b"", int(source.labels[i]), source.names[i], verdict)
    return Image(encoded, int(source.labels[i]), source.names[i], audit.examine(encoded, statistics))


@dataclass
class _Pixels:
    """Mean and second moment of the colours, each image with the same weight, as it has in training."""

    images: int = 0
    mean: np.ndarray = field(default_factory=lambda: np.zeros(3))
    second: np.ndarray = field(default_factory=lambda: np.zeros((3, 3)))

    def add(self, verdict: audit.Verdict) -> None:
        if verdict.mean is None or verdict.second_moment is None:
            return
        self.images += 1
        self.mean += verdict.mean
        self.second += verdict.second_moment

    def statistics(self) -> Statistics:
        mean = self.mean / self.images
        covariance = self.second / self.images - np.outer(mean, mean)
        values, vectors = np.linalg.eigh(covariance)
        largest_first = [2, 1, 0]
        directions = vectors.T[largest_first]
        # The sign of an eigenvector is arbitrary: fix it, so that the same images give the same statistics.
        directions *= np.sign(directions[np.arange(3), np.abs(directions).argmax(axis=1)])[:, None]
        deviations = np.sqrt(np.maximum(values[largest_first], 0.0))
        first, second, third = directions
        return Statistics(_three(mean), (_three(first), _three(second), _three(third)), _three(deviations))


def _three(values: np.ndarray) -> tuple[float, float, float]:
    a, b, c = values.tolist()
    return a, b, c


class _Shards:
    """Rows to row groups of at most `group_bytes` (or one larger image), row groups to files."""

    def __init__(self, folder: Path, layout: Layout) -> None:
        self._folder, self._layout = folder, layout
        self._group: list[Image] = []
        self._group_bytes = 0
        self._writer: pq.ParquetWriter | None = None
        self._group_rows: list[int] = []
        self._group_xxh3: list[str] = []
        self._shard_bytes = 0
        self._done: list[Shard] = []

    def add(self, image: Image) -> None:
        if self._group and self._group_bytes + len(image.encoded) > self._layout.group_bytes:
            self._end_group()
        self._group.append(image)
        self._group_bytes += len(image.encoded)

    def close(self) -> tuple[Shard, ...]:
        self._end_group()
        self._end_shard()
        return tuple(self._done)

    @property
    def _path(self) -> Path:
        return self._folder / f"part-{len(self._done):05d}.parquet"

    def _end_group(self) -> None:
        if not self._group:
            return
        if self._writer is not None and self._shard_bytes + self._group_bytes > self._layout.shard_bytes:
            self._end_shard()
        if self._writer is None:
            # Encoded images do not compress, and statistics of them are of no use.
            self._writer = pq.ParquetWriter(
                self._path, COLUMNS, compression="none", use_dictionary=False, write_statistics=False
            )
        labels = np.array([image.label for image in self._group], np.int64)
        columns = [
            pa.array([image.encoded for image in self._group], pa.large_binary()),
            pa.array(labels, pa.int32()),
            pa.array([image.verdict.width for image in self._group], pa.int32()),
            pa.array([image.verdict.height for image in self._group], pa.int32()),
            pa.array([image.name for image in self._group], pa.string()),
        ]
        self._writer.write_table(pa.Table.from_arrays(columns, schema=COLUMNS), row_group_size=len(self._group))
        self._group_rows.append(len(self._group))
        self._group_xxh3.append(checksum((image.encoded for image in self._group), labels))
        self._shard_bytes += self._group_bytes
        self._group, self._group_bytes = [], 0

    def _end_shard(self) -> None:
        if self._writer is None:
            return
        self._writer.close()
        rows, digests = tuple(self._group_rows), tuple(self._group_xxh3)
        self._done.append(Shard(self._path.name, self._path.stat().st_size, rows, digests))
        self._writer, self._group_rows, self._group_xxh3, self._shard_bytes = None, [], [], 0
