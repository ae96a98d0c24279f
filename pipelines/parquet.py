"""Sets of images that lie in Parquet files already, as the Hugging Face hub serves them: looked at once, not copied.

A file has a column of encoded images, `image: struct<bytes: binary, path: string>` or plain binary, and one of whole
numbers, the labels; its metadata may name the classes. Files are named after their split: train-00000-of-00294.parquet,
or train/0000.parquet. What is made is a small folder for each split: a manifest that names the files, and an index with
label, size, place and name of each good row.
"""

import json
import os
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from itertools import groupby
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from tqdm import tqdm

from pipelines import audit
from pipelines.aside import Aside, check_apart, finished, making, place
from pipelines.audit import Image
from pipelines.errors import DataError, first_line
from pipelines.prepare import check_resumed, columns, done, finish, strictly
from pipelines.schema import INDEX, INDEX_COLUMNS, MANIFEST, VERSION, Manifest, References, Shard, checksum
from pipelines.tally import Tally

_SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_BATCH_IMAGES = 32  # that a thread checks at a time


@dataclass(frozen=True)
class Columns:
    """`image` and `path` are leaves, such as "image.bytes" and "image.path"."""

    image: str
    path: str | None
    label: str
    classes: tuple[str, ...] | None  # None: not named


@dataclass(frozen=True)
class Split:
    """The files of one split, in order; all rows of them have labels that are places in `classes`."""

    root: Path
    files: tuple[Path, ...]
    columns: Columns
    classes: tuple[str, ...]
    labels: NDArray[np.int64]  # (rows,)


def splits(source: str | os.PathLike[str], validation: str | None = None, label: str | None = None) -> dict[str, Split]:
    """`train`, and `val` if there is one: the split `validation`, by default "validation" or else "test".

    `label`: the column of labels, if there are several. Raises DataError.
    """
    root = Path(os.path.expanduser(source)).absolute()
    if not root.is_dir():
        raise DataError(f"{root}: {'not a folder' if root.exists() else 'no such folder'}")
    found = _files(root)
    if "train" not in found:
        others = f", only of {', '.join(found)}" if found else ""
        raise DataError(
            f"{root}: holds no Parquet files of training images, such as train-00000-of-00001.parquet{others}"
        )
    if validation is not None and validation not in found:
        raise DataError(f"{root}: holds no Parquet files of a split {validation!r}, but of {', '.join(found)}")
    chosen = validation or next((name for name in ("validation", "test") if name in found), None)
    train = _split(root, found["train"], label, None)
    if chosen is None:
        return {"train": train}
    return {"train": train, "val": _split(root, found[chosen], label, train.classes)}


def existing(split: Split, dest: Path, statistics: bool, overwrite: bool) -> Manifest | None:
    """What `refer` would make, if it is there already and stays. Raises DataError: it cannot go there."""
    dest = place(dest)
    check_apart(dest, split.files)
    return finished(dest, identity(split, statistics), overwrite)


def refer(
    split: Split,
    dest: Path,
    *,
    statistics: bool = True,
    strict: bool = False,
    threads: int | None = None,
    overwrite: bool = False,
) -> Manifest:
    """Makes `dest` a data set of the good rows of the split's files, which stay where they are, in their order.

    As with `prepare.prepare`, the folder appears whole or not at all, what was interrupted goes on after the last
    finished file, and rows that are not images are listed in `dest`/rejected.csv, or end it if `strict`.
    Files below which `dest` lies are named relative to it, so that both can be moved or copied together.
    """
    dest = place(dest)
    if manifest := existing(split, dest, statistics, overwrite):
        return done(manifest, dest, strict)
    with making(dest, identity(split, statistics), overwrite) as aside:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, on images that are odd but good
            manifest, rejected = _write(split, aside, dest, statistics, strict, threads or os.cpu_count() or 1)
        finish(aside, manifest, rejected)
    return manifest


def identity(split: Split, statistics: bool) -> str:
    """A hash of all that determines the data set."""
    content = {
        "version": VERSION,
        "files": [(str(file.relative_to(split.root)), file.stat().st_size) for file in split.files],
        "columns": asdict(split.columns),
        "classes": split.classes,
        "statistics": statistics,
        "labels": sha256(split.labels.astype("<i8").tobytes()).hexdigest(),
    }
    return sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _files(root: Path) -> dict[str, list[Path]]:
    """By split. Data sets of our own below the folder are passed over."""
    found: dict[str, list[Path]] = {}
    for file in sorted(root.rglob("*.parquet")):
        hidden = any(part.startswith(".") for part in file.relative_to(root).parts)
        name = _split_name(file)
        if name is not None and not hidden and not (file.parent / MANIFEST).exists():
            found.setdefault(name, []).append(file)
    return found


def _split_name(file: Path) -> str | None:
    for word in (re.split(r"[-.]", file.name)[0], file.parent.name):
        for name, words in _SPLITS.items():
            if word.lower() in words:
                return name
    return None


def _split(root: Path, files: Sequence[Path], label: str | None, classes: tuple[str, ...] | None) -> Split:
    """`classes`: the training set's."""
    folders = sorted({file.parent for file in files})
    if len(folders) > 1:
        raise DataError(f"{root}: holds several sets, in {folders[0]} and {folders[1]}: name the folder of one of them")
    _check_complete(files)
    columns = _columns(files[0], label)
    labels = np.concatenate([_labels(file, columns, label) for file in files])
    if not len(labels):
        raise DataError(f"{files[0]}: its split has no rows")
    if labels.max() < 0:
        raise DataError(
            f"{files[0]}: all labels of its split are {labels.max()}: it is unlabelled, and nothing can be tested on it"
        )
    if classes and columns.classes and classes != columns.classes:
        raise DataError(f"{files[0]}: its split has other classes than the training set")
    if not (classes or columns.classes) and labels.max() >= len(labels):
        raise DataError(
            f"{files[0]}: {columns.label!r} goes up to {labels.max()} in {len(labels)} rows, so numbers no classes; "
            "name another column with --label"
        )
    classes = classes or columns.classes or tuple(str(i) for i in range(int(labels.max()) + 1))
    if not 0 <= labels.min() <= labels.max() < len(classes):
        wrong = labels.min() if labels.min() < 0 else labels.max()
        raise DataError(f"{files[0]}: label {wrong} of its split is not among the {len(classes)} classes")
    return Split(root, tuple(files), columns, classes, labels)


def _check_complete(files: Sequence[Path]) -> None:
    """Raises DataError if files say of how many they are, and there are others."""
    numbers = [re.search(r"-(\d+)-of-(\d+)\.parquet$", file.name) for file in files]
    totals = {int(m[2]) for m in numbers if m}
    if totals and ({int(m[1]) for m in numbers if m} != set(range(max(totals))) or len(files) != max(totals)):
        raise DataError(f"{files[0].parent}: {len(files)} of {max(totals)} files are there, see {files[0].name}")


def _schema(file: Path) -> pa.Schema:
    try:
        return pq.read_schema(file)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{file}: not a whole Parquet file: {first_line(error)}") from error


def _columns(file: Path, label: str | None) -> Columns:
    schema = _schema(file)
    images: list[tuple[str, str | None]] = []
    for field in schema:
        if pa.types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0:
            path = f"{field.name}.path" if field.type.get_field_index("path") >= 0 else None
            images.append((f"{field.name}.bytes", path))
        elif pa.types.is_binary(field.type) or pa.types.is_large_binary(field.type):
            images.append((field.name, None))
    if len(images) != 1:
        raise DataError(f"{file}: has {len(images)} columns of encoded images among {schema.names}, expected one")
    named = _class_names(schema)
    labels = [field.name for field in schema if pa.types.is_integer(field.type)]
    if label is not None and label not in labels:
        raise DataError(f"{file}: {label!r} is not a column of whole numbers; such are: {', '.join(labels) or 'none'}")
    candidates = [label] if label else [name for name in labels if name in named] or labels
    if len(candidates) > 1 and "label" in candidates:
        candidates = ["label"]
    if len(candidates) != 1:
        found = (
            f"several: {', '.join(candidates)}; name one with --label" if candidates else f"none among {schema.names}"
        )
        raise DataError(f"{file}: expected a column of labels, whole numbers, found {found}")
    image, path = images[0]
    return Columns(image, path, candidates[0], named.get(candidates[0]))


def _class_names(schema: pa.Schema) -> dict[str, tuple[str, ...]]:
    """By column, from what the `datasets` library writes into the metadata; where it is something else, nothing."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {name: tuple(map(str, f["names"])) for name, f in features.items() if f.get("_type") == "ClassLabel"}
    except (KeyError, TypeError, AttributeError, ValueError):
        return {}


def _labels(file: Path, columns: Columns, label: str | None) -> NDArray[np.int64]:
    if _columns(file, label) != columns:
        raise DataError(f"{file}: has other columns or classes than the first file of its split")
    try:
        column = pq.ParquetFile(file).read(columns=[columns.label])[columns.label]
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{file}: cannot be read: {first_line(error)}") from error
    if column.null_count:
        raise DataError(f"{file}: {column.null_count} of its {len(column)} rows have no label")
    try:
        return pc.cast(column, pa.int64()).to_numpy()
    except pa.ArrowException as error:
        raise DataError(f"{file}: {columns.label!r} are not labels: {first_line(error)}") from error


@dataclass(frozen=True)
class _Batch:
    """Neighbouring rows of one row group."""

    file: int
    group: int
    first: int  # row of the file
    images: list[Image]


def _write(
    split: Split, aside: Aside, dest: Path, statistics: bool, strict: bool, threads: int
) -> tuple[Manifest, Sequence[tuple[str, str]]]:
    """Returns the manifest and the rows that were left out."""
    pieces = aside.folder / "pieces"  # of the index, one for each file
    pieces.mkdir(exist_ok=True)
    state = aside.state() or {"shards": [], "tally": asdict(Tally([0] * len(split.classes)))}
    shards, tally = [Shard.from_json(raw) for raw in state["shards"]], Tally.from_json(state["tally"])
    total = len(split.labels)
    if tally.seen:
        print(f"{dest.name}: goes on after {tally.seen} of {total} images", file=sys.stderr)
    if strict:
        check_resumed(tally, aside, str(split.root))
    examined = _examined(split, len(shards), tally.seen, statistics, threads)
    with tqdm(total=total, initial=tally.seen, desc=f"preparing {dest.name}", unit=" images", disable=None) as bar:
        for number, batches in groupby(examined, key=lambda batch: batch.file):
            index, digests, counts = [], [], []
            for group, parts in groupby(batches, key=lambda batch: batch.group):
                every = (image for part in parts for image in part.images)
                images = list(strictly(every, str(split.root)) if strict else every)
                good = [row for row, image in enumerate(images) if image.reason is None]
                if good:
                    index.append(_index([images[row] for row in good], group, good))
                    digests.append(checksum(*columns([images[row] for row in good])))
                    counts.append(len(good))
                tally.add(images)
                bar.update(len(images))
            pq.write_table(pa.concat_tables([INDEX_COLUMNS.empty_table(), *index]), pieces / f"{number}.parquet")
            shards.append(_shard(split, number, dest, counts, digests))
            aside.save({"shards": [asdict(shard) for shard in shards], "tally": tally.to_json()})
    whole = pa.concat_tables(pq.read_table(pieces / f"{number}.parquet") for number in range(len(shards)))
    pq.write_table(whole, aside.data / INDEX, compression="zstd")
    return _manifest(split, statistics, shards, tally, aside.identity), tally.rejected


def _examined(split: Split, first: int, seen: int, statistics: bool, threads: int) -> Iterator[_Batch]:
    """From file number `first` on, before which there are `seen` rows. What is refused is named by its place."""

    def examine(batch: _Batch) -> _Batch:
        images = audit.examine(batch.images, statistics)
        file = split.files[batch.file].relative_to(split.root)
        for i, image in enumerate(images):
            if image.reason is not None:
                images[i] = replace(image, name=f"{file}, row {batch.first + i}: {image.name}")
        return replace(batch, images=images)

    return audit.in_order(examine, _batches(split, first, seen), threads)


def _shard(split: Split, number: int, dest: Path, counts: Sequence[int], digests: Sequence[str]) -> Shard:
    file = split.files[number]
    name = os.path.relpath(file, dest) if dest.is_relative_to(split.root) else str(file)
    return Shard(name, file.stat().st_size, tuple(counts), tuple(digests))


def _manifest(split: Split, statistics: bool, shards: Sequence[Shard], tally: Tally, identity: str) -> Manifest:
    return Manifest(
        rows=tally.rows,
        classes=split.classes,
        class_rows=tuple(tally.class_rows),
        shards=tuple(shards),
        statistics=tally.statistics() if statistics and tally.rows else None,
        source=str(split.root),
        seed=0,
        rejected=len(tally.rejected),
        identity=identity,
        references=References(INDEX, split.columns.image),
    )


def _index(images: Sequence[Image], group: int, rows: Sequence[int]) -> pa.Table:
    """Of images of a row group; `rows`: where they lie in it."""
    _, labels, widths, heights, names = columns(images)
    fields = (labels, widths, heights, [group] * len(images), rows, names)
    arrays = [pa.array(*column) for column in zip(fields, INDEX_COLUMNS.types, strict=True)]
    return pa.Table.from_arrays(arrays, schema=INDEX_COLUMNS)


def _batches(split: Split, first: int, seen: int) -> Iterator[_Batch]:
    """From file number `first` on, before which there are `seen` rows."""
    leaves = [name for name in (split.columns.image, split.columns.path) if name is not None]
    for number, file in enumerate(split.files[first:], first):
        row = 0
        try:
            parquet = pq.ParquetFile(file)
            if parquet.metadata.num_rows == 0:
                yield _Batch(number, 0, 0, [])
            for group in range(parquet.num_row_groups):
                table = parquet.read_row_group(group, columns=leaves).flatten()
                for part in table.to_batches(_BATCH_IMAGES):
                    labels = split.labels[seen + row : seen + row + len(part)]
                    yield _Batch(number, group, row, _images(part, split.columns, labels, file.stem, row))
                    row += len(part)
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"{file}: cannot be read: {first_line(error)}") from error
        seen += row


def _images(rows: pa.RecordBatch, of: Columns, labels: NDArray[np.int64], stem: str, first: int) -> list[Image]:
    """Images that have no path are named by `stem`, the file's, and their row, of which `first` is the first."""
    contents = rows.column(of.image).to_pylist()
    paths = rows.column(of.path).to_pylist() if of.path else [None] * len(contents)
    images = [
        Image(encoded or b"", int(label), path or f"{stem}:{row}")
        for row, (encoded, path, label) in enumerate(zip(contents, paths, labels, strict=True), first)
    ]
    return [
        image.refused("it has no bytes") if encoded is None else image
        for image, encoded in zip(images, contents, strict=True)
    ]
