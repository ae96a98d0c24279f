"""What a net makes of a data set: for each image a probability for each class, kept so that averages over scales, modes
and nets need no second pass.

    name    string                    the image's, as in the data set
    label   int32                     index into the classes
    scores  fixed_size_list<float>    one for each class; their sum is 1

Rows lie in the data set's order. The schema's metadata has, as JSON under the key `verydeep`, the classes' names, the
rows that a plain picture stood in for, the data set's fingerprint, what the scores were made from, and their totals.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from cluster.metrics import Totals, label_ranks
from pipelines.errors import DataError, first_line
from pipelines.location import Location

_VERSION = 1
_KEY = b"verydeep"
_GROUP_ROWS = 8192


@dataclass(frozen=True)
class Posteriors:
    """Of n images, in the data set's order.

    `data`: the fingerprint of the data set. `unreadable`: positions of images that could not be decoded. `origin`: what
    the scores were made from, for people and programs that find the file later.
    """

    names: list[str]
    labels: NDArray[np.int64]  # (n,)
    scores: NDArray[np.float32]  # (n, classes)
    classes: tuple[str, ...]
    data: str
    unreadable: tuple[int, ...] = ()
    origin: dict[str, Any] = field(default_factory=dict)

    @property
    def totals(self) -> Totals:
        """A tie counts against the net. The loss is the mean negative logarithm of the right class's score."""
        scores, labels = torch.from_numpy(self.scores), torch.from_numpy(self.labels)
        ranks = label_ranks(scores, labels)
        losses = -scores.gather(1, labels[:, None]).double().clamp_min(1e-30).log()
        top = [int((ranks < k).sum()) for k in (1, 5)]
        return Totals(len(labels), float(losses.sum()), top[0], top[1], len(self.unreadable))


def average(parts: Iterable[Posteriors]) -> Posteriors:
    """The mean of the scores, each part with the same weight; the same whatever their order. Holds one at a time.

    Raises DataError if they are not of the same images and classes.
    """
    rest = iter(parts)
    first = next(rest)
    total, count = (
        first.scores.astype(np.float64),
        1,
    )  # has room for any order of float32 summands but for its last bits
    unreadable, origins = set(first.unreadable), [first.origin]
    for part in rest:
        _check_alike(first, part)
        total += part.scores
        count += 1
        unreadable |= set(part.unreadable)
        origins.append(part.origin)
    origin = {"average": origins} if count > 1 else first.origin
    mean = (total / count).astype(np.float32)
    return replace(first, scores=mean, unreadable=tuple(sorted(unreadable)), origin=origin)


def _check_alike(a: Posteriors, b: Posteriors) -> None:
    """Raises DataError."""
    if a.data != b.data or a.names != b.names or not np.array_equal(a.labels, b.labels):
        raise DataError("posteriors of different data sets cannot be averaged")
    if a.classes != b.classes:
        raise DataError(f"posteriors for different classes cannot be averaged: {len(a.classes)} and {len(b.classes)}")


def write(place: Location, posteriors: Posteriors) -> None:
    """Whole or not at all. Raises OSError."""
    p = posteriors
    content = {"classes": p.classes, "data": p.data, "unreadable": p.unreadable, "origin": p.origin}
    content["totals"] = asdict(p.totals)
    flat = pa.array(np.ascontiguousarray(p.scores, np.float32).reshape(-1))
    table = pa.table(
        {
            "name": pa.array(p.names, pa.string()),
            "label": pa.array(p.labels, pa.int32()),
            "scores": pa.FixedSizeListArray.from_arrays(flat, len(p.classes)),
        }
    ).replace_schema_metadata({_KEY: json.dumps({"version": _VERSION, **content})})
    out = pa.BufferOutputStream()
    pq.write_table(table, out, row_group_size=_GROUP_ROWS, compression="zstd", use_dictionary=["name"])
    place.write(memoryview(out.getvalue()))


def look(place: Location) -> tuple[dict[str, Any], Totals]:
    """Origin and totals of a file, without reading its scores. Raises DataError, naming the file."""
    try:
        with place.filesystem.open_input_file(place.path) as stream:
            notes = json.loads((pq.read_schema(stream).metadata or {})[_KEY])
        return notes["origin"], Totals(**notes["totals"])
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{place}: cannot be read: {first_line(error)}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{place}: holds no posteriors of this program") from error


def read(place: Location) -> Posteriors:
    """Raises DataError, naming the file: not there, damaged, or not such a file."""
    try:
        table = pq.read_table(pa.BufferReader(place.read()))
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{place}: cannot be read: {first_line(error)}") from error
    try:
        notes = json.loads((table.schema.metadata or {})[_KEY])
        if notes["version"] != _VERSION:
            raise DataError(f"{place}: written by another version of the program")
        classes = tuple(notes["classes"])
        scores = table["scores"].combine_chunks().flatten().to_numpy().reshape(len(table), len(classes))
        labels = table["label"].to_numpy().astype(np.int64)
        unreadable = tuple(notes["unreadable"])
        names = table["name"].to_pylist()
        return Posteriors(names, labels, scores, classes, notes["data"], unreadable, notes["origin"])
    except DataError:
        raise
    except (KeyError, TypeError, ValueError, pa.ArrowException) as error:
        raise DataError(f"{place}: holds no posteriors of this program") from error
