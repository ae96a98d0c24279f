"""Sources to data sets: shuffled once over all images, checked, counted, and written as Parquet."""

import csv
import json
import os
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from tqdm import tqdm

from pipelines import audit, keys
from pipelines.aside import Aside, check_apart, finished, making, place, whole
from pipelines.audit import Image
from pipelines.errors import DataError
from pipelines.keys import Purpose
from pipelines.schema import COLUMNS, MANIFEST, REPORT, VERSION, Manifest, Shard, checksum
from pipelines.shrink import Shrink, shrunk
from pipelines.sources import OF_THE_FILE, Source
from pipelines.tally import Tally

_BATCH_IMAGES, _BATCH_BYTES = 32, 8 << 20  # that a thread reads and checks at a time


@dataclass(frozen=True)
class Layout:
    """Row groups are what is read at a time, so they are bounded in bytes; shards are what is copied at a time."""

    group_bytes: int = 8 << 20
    shard_bytes: int = 512 << 20


@dataclass(frozen=True, kw_only=True)
class Options:
    """What determines a data set, beside its source. `seed`: of the order. `statistics` (of a training set): the mean
    colour and the principal components of the colours. `shrink`: what is done to large images."""

    seed: int = 0
    statistics: bool = True
    layout: Layout = Layout()
    shrink: Shrink | None = None


def prepare(
    source: Source,
    dest: Path,
    *,
    seed: int = 0,
    statistics: bool = True,
    layout: Layout | None = None,
    shrink: Shrink | None = None,
    strict: bool = False,
    threads: int | None = None,
    overwrite: bool = False,
) -> Manifest:
    """Writes `source` to the folder `dest`, in an order that is random but the same for the same seed.

    The folder appears whole or not at all. Interrupted and called again, it goes on after the last finished shard,
    with the same result; when the same data set is there already, nothing is done. Files that are not images are
    left out and listed in `dest`/rejected.csv, or end the preparation if `strict`; it can then go on without.
    Raises DataError: `dest` is there already and something else, or lies in the source or holds it; another process is
    at it; a file cannot be read for a reason that may pass; or nothing is left.
    """
    options = Options(seed=seed, statistics=statistics, layout=layout or Layout(), shrink=shrink)
    dest = place(dest)
    if manifest := existing(source, dest, options, overwrite):
        return done(manifest, dest, strict)
    with making(dest, identity(source, options), overwrite) as aside:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, on images that are odd but good
            manifest, rejected = _write(source, aside, options, strict, threads or os.cpu_count() or 1, dest.name)
        finish(aside, manifest, rejected)
    return manifest


def existing(source: Source, dest: Path, options: Options, overwrite: bool) -> Manifest | None:
    """What `prepare` would make, if it is there already and stays. Raises DataError: it cannot go there."""
    dest = place(dest)
    check_apart(dest, source.places)
    return finished(dest, identity(source, options), overwrite)


def done(manifest: Manifest, dest: Path, strict: bool) -> Manifest:
    """Raises DataError: files were left out of the data set that is there, and `strict`."""
    if strict and manifest.rejected:
        raise DataError(f"{dest}: is there already, without {manifest.rejected} files, see {dest / REPORT}")
    return manifest


def identity(source: Source, options: Options) -> str:
    """A hash of all that determines the data set."""
    settings = {"version": VERSION, "classes": source.classes, "options": asdict(options)}
    digest = sha256(json.dumps(settings, sort_keys=True).encode())
    for name in source.names:
        digest.update(name.encode() + b"\0")
    for numbers in (source.labels, source.sizes):
        digest.update(numbers.astype("<i8").tobytes())
    return digest.hexdigest()


def finish(aside: Aside, manifest: Manifest, rejected: Sequence[tuple[str, str]]) -> None:
    """Writes what is not shards. Raises DataError, and leaves nothing: no image is good."""
    if not manifest.rows:
        aside.discard()
        raise DataError(
            f"{manifest.source}: none of its {len(rejected)} files is an image; "
            f"the first, {rejected[0][0]}: {rejected[0][1]}"
        )
    if rejected:
        with (aside.data / REPORT).open("w", newline="") as stream:
            csv.writer(stream).writerows([("file", "reason"), *rejected])
    whole(aside.data / MANIFEST, manifest.to_json())


_LENIENT = "the same command without --strict leaves it out and goes on from here"


def strictly(images: Iterable[Image], description: str) -> Iterator[Image]:
    """The images, up to the first that is refused. Raises DataError, naming it."""
    for image in images:
        if image.reason is not None:
            raise DataError(f"{description}: {image.name} cannot be trained on: {image.reason}; {_LENIENT}")
        yield image


def check_resumed(tally: Tally, aside: Aside, description: str) -> None:
    """Raises DataError, naming the first file that was left out of what is finished."""
    for name, reason in tally.rejected:
        raise DataError(
            f"{description}: {name} cannot be trained on: {reason}; {_LENIENT}; "
            f"if it is mended by now, remove {aside.folder} and begin anew"
        )


def _write(
    source: Source, aside: Aside, options: Options, strict: bool, threads: int, title: str
) -> tuple[Manifest, Sequence[tuple[str, str]]]:
    """Returns the manifest and the files that were left out."""
    shards, tally = _resumed(aside, len(source.classes))
    if tally.seen:
        print(f"{title}: goes on after {tally.seen} of {len(source)} images", file=sys.stderr)
    writer: _ShardWriter | None = None

    def end_shard() -> None:
        nonlocal writer
        if writer is not None:
            shards.append(writer.close())
            aside.save({"shards": [asdict(shard) for shard in shards], "tally": tally.to_json()})
            writer = None

    order = keys.permutation(len(source), options.seed, 0, Purpose.PREPARATION_ORDER)[tally.seen :]
    examined = _examined(source, order, options, threads)
    if strict:
        check_resumed(tally, aside, source.description)
        examined = strictly(examined, source.description)
    with tqdm(total=len(source), initial=tally.seen, desc=f"preparing {title}", unit=" images", disable=None) as bar:
        for images in _groups(examined, options.layout.group_bytes):
            good = [image for image in images if image.reason is None]
            size = sum(len(image.encoded) for image in good)
            if writer is not None and writer.bytes + size > options.layout.shard_bytes:
                end_shard()
            if good:
                writer = writer or _ShardWriter(aside.data / f"part-{len(shards):05d}.parquet")
                writer.add(good)
            tally.add(images)
            bar.update(len(images))
        end_shard()
    return _manifest(source, options, shards, tally, aside.identity), tally.rejected


def _manifest(source: Source, options: Options, shards: Sequence[Shard], tally: Tally, identity: str) -> Manifest:
    return Manifest(
        rows=tally.rows,
        classes=source.classes,
        class_rows=tuple(tally.class_rows),
        shards=tuple(shards),
        statistics=tally.statistics() if options.statistics and tally.rows else None,
        source=source.description,
        seed=options.seed,
        rejected=len(tally.rejected),
        identity=identity,
    )


def _resumed(aside: Aside, classes: int) -> tuple[list[Shard], Tally]:
    """The shards that are finished, and what was counted when the last of them was."""
    state = aside.state()
    if state is not None:
        shards = [Shard.from_json(raw) for raw in state["shards"]]
        sizes = {file.name: file.stat().st_size for file in aside.data.iterdir()}
        if all(sizes.get(shard.file) == shard.bytes for shard in shards):
            return shards, Tally.from_json(state["tally"])
    return [], Tally([0] * classes)


def _examined(source: Source, order: NDArray[np.int64], options: Options, threads: int) -> Iterator[Image]:
    def examine(rows: Sequence[int]) -> list[Image]:
        return audit.examine([_read(source, i, options.shrink) for i in rows], options.statistics)

    for images in audit.in_order(examine, _batches(order, source.sizes), threads):
        yield from images


def _batches(order: NDArray[np.int64], sizes: NDArray[np.int64]) -> Iterator[list[int]]:
    batch: list[int] = []
    total = 0
    for i in order.tolist():
        if batch and (len(batch) == _BATCH_IMAGES or total + sizes[i] > _BATCH_BYTES):
            yield batch
            batch, total = [], 0
        batch.append(i)
        total += int(sizes[i])
    if batch:
        yield batch


def _read(source: Source, i: int, shrink: Shrink | None) -> Image:
    image = Image(b"", int(source.labels[i]), source.names[i])
    try:
        encoded = source.read(i)
        return replace(image, encoded=encoded if shrink is None else shrunk(encoded, shrink))
    except audit.Refusal as refusal:
        return image.refused(str(refusal))
    except OSError as error:
        why = f"cannot be read: {error.strerror or error}"
        if error.errno in OF_THE_FILE:
            return image.refused(why)
        raise DataError(f"{source.description}: {image.name} {why}; the same command goes on from here") from error


def _groups(images: Iterable[Image], most_bytes: int) -> Iterator[list[Image]]:
    """Images, refused ones among them, whose bytes make a row group: at most `most_bytes`, or one larger image."""
    group: list[Image] = []
    size = 0
    for image in images:
        if size and size + len(image.encoded) > most_bytes:
            yield group
            group, size = [], 0
        group.append(image)
        size += len(image.encoded)
    if group:
        yield group


def columns(images: Sequence[Image]) -> tuple[list[bytes], list[int], list[int], list[int], list[str]]:
    """Encoded, labels, widths, heights and names."""
    return (
        [image.encoded for image in images],
        [image.label for image in images],
        [image.width for image in images],
        [image.height for image in images],
        [image.name for image in images],
    )


class _ShardWriter:
    """One Parquet file, row group by row group."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._rows: list[int] = []
        self._digests: list[str] = []
        # Encoded images do not compress, and statistics of them are of no use.
        self._writer = pq.ParquetWriter(path, COLUMNS, compression="none", use_dictionary=False, write_statistics=False)
        self.bytes = 0  # of encoded images

    def add(self, images: Sequence[Image]) -> None:
        fields = columns(images)
        table = pa.Table.from_arrays(
            [pa.array(*column) for column in zip(fields, COLUMNS.types, strict=True)], schema=COLUMNS
        )
        self._writer.write_table(table, row_group_size=len(images))
        self._rows.append(len(images))
        self._digests.append(checksum(*fields))
        self.bytes += sum(len(image.encoded) for image in images)

    def close(self) -> Shard:
        self._writer.close()
        return Shard(self._path.name, self._path.stat().st_size, tuple(self._rows), tuple(self._digests))
