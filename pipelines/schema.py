"""What a data set is on disk: a folder of Parquet files and `manifest.json`, which is written last.

image   large_binary  the encoded file, as it was found
label   int32         index into the manifest's classes
width   int32         pixels, as stored (EXIF orientation is not applied)
height  int32
name    string        where the image came from, relative to its source

Or else the Parquet files are somebody else's and lie elsewhere (see `parquet`); what they lack is in an index:
label, width, height and name as above, group and row (int32): the row group in the file, and the row in that.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from hashlib import sha256
from struct import Struct
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from xxhash import xxh3_64

from pipelines.errors import DataError

VERSION = 2
MANIFEST = "manifest.json"
INDEX = "index.parquet"  # of somebody else's files
REPORT = "rejected.csv"  # files that were left out, and why
_NUMBERS = Struct("<4q")

COLUMNS = pa.schema(
    [
        pa.field("image", pa.large_binary(), nullable=False),
        pa.field("label", pa.int32(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("name", pa.string(), nullable=False),
    ]
)

INDEX_COLUMNS = pa.schema(
    [
        *(COLUMNS.field(name) for name in ("label", "width", "height")),
        pa.field("group", pa.int32(), nullable=False),
        pa.field("row", pa.int32(), nullable=False),
        COLUMNS.field("name"),
    ]
)


@dataclass(frozen=True)
class Shard:
    """One Parquet file: its name (a path from the data set's folder, or an absolute one), its length in bytes, and of
    each of its row groups the number of rows and the checksum."""

    file: str
    bytes: int
    group_rows: tuple[int, ...]
    group_xxh3: tuple[str, ...]

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> "Shard":
        if not isinstance(raw["file"], str):
            raise TypeError(f"a shard cannot be named {raw['file']!r}")
        return cls(raw["file"], raw["bytes"], tuple(raw["group_rows"]), tuple(raw["group_xxh3"]))


def checksum(
    encoded: Iterable[bytes | memoryview],
    labels: Iterable[int],
    widths: Iterable[int],
    heights: Iterable[int],
    names: Iterable[str],
) -> str:
    """Of a row group: xxh3_64, in hex, of its images one after another; of each its length in bytes, label, width and
    height, each as little-endian int64, its bytes, its name in UTF-8, and a zero."""
    digest = xxh3_64()
    for image, label, width, height, name in zip(encoded, labels, widths, heights, names, strict=False):
        digest.update(_NUMBERS.pack(len(image), label, width, height))
        digest.update(image)
        digest.update(name.encode() + b"\0")
    return digest.hexdigest()


@dataclass(frozen=True)
class Statistics:
    """Of a training set's pixels, in grey levels 0 to 255, every image with the same weight.

    `rgb_components[i]` is the i-th principal direction (unit length), `rgb_deviations[i]` the standard deviation
    along it.
    """

    mean_rgb: tuple[float, float, float]
    rgb_components: tuple[tuple[float, float, float], ...]
    rgb_deviations: tuple[float, float, float]


@dataclass(frozen=True)
class References:
    """Of a data set in somebody else's Parquet files: our index of their rows, and their column of encoded images."""

    index: str
    image: str


def first_rows(group_rows: Sequence[int]) -> NDArray[np.int64]:
    """(groups + 1,): the first row of each row group, then the number of rows."""
    return np.concatenate([[0], np.cumsum(group_rows)]).astype(np.int64)


@dataclass(frozen=True)
class Manifest:
    """`identity`: a hash of what the data set was made from, and how; the same preparation is not made again."""

    rows: int
    classes: tuple[str, ...]
    class_rows: tuple[int, ...]
    shards: tuple[Shard, ...]
    statistics: Statistics | None
    source: str
    seed: int
    rejected: int
    identity: str
    references: References | None = None
    version: int = VERSION

    @cached_property
    def group_rows(self) -> tuple[int, ...]:
        return tuple(n for shard in self.shards for n in shard.group_rows)

    @property
    def total_bytes(self) -> int:
        """Of all shards."""
        return sum(shard.bytes for shard in self.shards)

    @property
    def group_bytes(self) -> float:
        """The mean size of a row group in its file."""
        return self.total_bytes / len(self.group_rows)

    @property
    def group_xxh3(self) -> tuple[str, ...]:
        return tuple(digest for shard in self.shards for digest in shard.group_xxh3)

    @property
    def fingerprint(self) -> str:
        """The identity of the content: what the rows are, not where they lie."""
        content = {
            "version": self.version,
            "classes": self.classes,
            "groups": list(zip(self.group_rows, self.group_xxh3, strict=True)),
            "statistics": asdict(self.statistics) if self.statistics else None,
        }
        return sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1) + "\n"

    @classmethod
    def from_json(cls, text: bytes, where: str) -> "Manifest":
        """Raises DataError, naming `where`."""
        try:
            raw = json.loads(text)
            if raw["version"] != VERSION:
                raise DataError(
                    f"{where}: written as version {raw['version']}, this is version {VERSION}: prepare it again"
                )
            shards = tuple(map(Shard.from_json, raw.pop("shards")))
            statistics = raw.pop("statistics")
            if statistics is not None:
                mean, directions, deviations = (statistics[k] for k in ("mean_rgb", "rgb_components", "rgb_deviations"))
                statistics = Statistics(tuple(mean), tuple(tuple(d) for d in directions), tuple(deviations))
            references = raw.pop("references")
            raw |= {name: tuple(raw[name]) for name in ("classes", "class_rows")}
            manifest = cls(
                shards=shards, statistics=statistics, references=references and References(**references), **raw
            )
            manifest._check(where)
        except DataError:
            raise
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{where}: not a manifest of this program: {error}") from error
        return manifest

    def _check(self, where: str) -> None:
        if (rows := sum(self.group_rows)) != self.rows:
            raise DataError(f"{where}: its row groups hold {rows} rows, not {self.rows}")
        if len(self.group_xxh3) != len(self.group_rows):
            raise DataError(f"{where}: has {len(self.group_xxh3)} checksums of {len(self.group_rows)} row groups")
