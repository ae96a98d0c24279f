"""Data sets of ImageNet's size in which every number is right but the images', which are holes in files."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.schema import COLUMNS, MANIFEST, Manifest, Shard, Statistics

TRAINING_ROWS, TRAINING_BYTES = 1_281_167, 138_000_000_000
VALIDATION_ROWS = 50_000
_GROUP = 1000
_STATISTICS = Statistics((124.0, 117.0, 104.0), ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)), (70.0, 10.0, 5.0))


def made(folder: Path, width: int = 500, height: int = 375) -> tuple[str, str]:
    """The folders of a training set and of a validation set, all of whose images are of one size."""
    folder.mkdir()
    for name in ("train", "val"):
        (folder / name).mkdir()
    hole = folder / "train" / "00.parquet"
    hole.touch()
    with hole.open("r+b") as file:
        file.truncate(TRAINING_BYTES)
    _describe(folder / "train", hole, TRAINING_ROWS, _STATISTICS)
    shard = folder / "val" / "00.parquet"
    n = VALIDATION_ROWS
    columns = [[b""] * n, np.arange(n) % 1000, np.full(n, width), np.full(n, height), [""] * n]
    pq.write_table(pa.table(columns, schema=COLUMNS), shard, row_group_size=_GROUP)
    _describe(folder / "val", shard, n, None)
    return str(folder / "train"), str(folder / "val")


def _describe(folder: Path, shard: Path, rows: int, statistics: Statistics | None) -> None:
    groups = [*[_GROUP] * (rows // _GROUP), *[rows % _GROUP] * (rows % _GROUP > 0)]
    classes = tuple(f"n{i:08d}" for i in range(1000))
    each = tuple(rows // 1000 + (i < rows % 1000) for i in range(1000))
    shards = (Shard(shard.name, shard.stat().st_size, tuple(groups), ("0" * 16,) * len(groups)),)
    manifest = Manifest(rows, classes, each, shards, statistics, "imagenet", 0, 0, "")
    assert json.loads(manifest.to_json())
    (folder / MANIFEST).write_text(manifest.to_json())
