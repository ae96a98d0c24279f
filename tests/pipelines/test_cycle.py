"""A data set repeated, row by row."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipelines import cycle, parquet
from pipelines.errors import DataError
from pipelines.location import Location
from pipelines.shards import DataSet
from tests.pipelines import test_parquet


def contents(data: DataSet) -> list[tuple[bytes, int, int, int, str]]:
    groups = [data.read_group(k) for k in range(len(data.manifest.group_rows))]
    return [
        (image.tobytes(), int(label), int(width), int(height), name)
        for g in groups
        for image, label, width, height, name in zip(g.encoded, g.labels, g.widths, g.heights, g.names, strict=True)
    ]


@pytest.mark.parametrize("rows", [1, 60, 61, 200])
def test_rows_come_over_and_over_to_the_end_of_the_row_group_that_completes_them(
    picture_set: DataSet, tmp_path: Path, rows: int
) -> None:
    assert len(picture_set.manifest.shards) > 1
    made = cycle.write(picture_set, rows, tmp_path / "set")
    assert rows <= made.rows < rows + max(picture_set.manifest.group_rows)
    once = contents(picture_set)
    assert contents(made) == [once[i % len(once)] for i in range(made.rows)]
    widths, heights = made.read_sizes(0, made.rows)
    assert np.array_equal(widths, [row[2] for row in contents(made)])
    assert np.array_equal(heights, [row[3] for row in contents(made)])
    assert len(list((tmp_path / "set").iterdir())) == 1


def test_so_do_the_rows_of_somebody_else_s_files(tmp_path: Path) -> None:
    rows = test_parquet.tiny(50)
    test_parquet.write(tmp_path / "hub" / "train-00000-of-00001.parquet", [rows[:20], rows[20:40], rows[40:]])
    split = parquet.splits(str(tmp_path / "hub"), None, None)["train"]
    parquet.refer(split, tmp_path / "set", statistics=True, strict=False, overwrite=False)
    made = cycle.write(DataSet.open(str(tmp_path / "set")), 65, tmp_path / "repeated")
    assert made.manifest.group_rows == (20, 20, 10, 20)
    assert [image for image, *_ in contents(made)] == [rows[i % 50][0] for i in range(70)]


def test_a_set_that_is_not_on_a_disk_is_refused(picture_set: DataSet, tmp_path: Path) -> None:
    far = replace(picture_set, location=Location(picture_set.location.filesystem, "bucket/set", "s3://bucket/set"))
    with pytest.raises(DataError, match=r"^s3://bucket/set: is not on a local disk"):
        cycle.write(far, 10, tmp_path / "set")
