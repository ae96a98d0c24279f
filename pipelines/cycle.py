"""A data set of as many rows as one likes, for measurements: the row groups of another one, over and over."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import cycle
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.errors import DataError
from pipelines.schema import MANIFEST, Shard
from pipelines.shards import DataSet


def write(data: DataSet, rows: int, folder: Path) -> DataSet:
    """At least `rows` rows, to the end of a row group, in `folder`, where only the manifest lies (and the index of
    somebody else's files): the images stay where they are. Raises DataError.

    `class_rows` and `identity` stay those of `data`; nothing that trains looks at them.
    """
    root = Path(data.location.absolute)
    if not root.is_dir():
        raise DataError(f"{data.location}: is not on a local disk; copy a part of it here to measure with")
    manifest = data.manifest
    shards = tuple(_shards([replace(s, file=str((root / s.file).resolve())) for s in manifest.shards], rows))
    found = sum(n for shard in shards for n in shard.group_rows)
    folder.mkdir(parents=True)
    if manifest.references is not None:
        index = pq.read_table(root / manifest.references.index)
        pq.write_table(pa.concat_tables([index] * -(-found // data.rows))[:found], folder / manifest.references.index)
    (folder / MANIFEST).write_text(replace(manifest, rows=found, shards=shards).to_json())
    return DataSet.open(str(folder))


def _shards(shards: list[Shard], rows: int) -> Iterator[Shard]:
    """These again and again, the last one cut after the row group that completes `rows`."""
    for shard in cycle(shards):
        groups = 0
        while groups < len(shard.group_rows) and rows > 0:
            rows -= shard.group_rows[groups]
            groups += 1
        yield replace(shard, group_rows=shard.group_rows[:groups], group_xxh3=shard.group_xxh3[:groups])
        if rows <= 0:
            return
