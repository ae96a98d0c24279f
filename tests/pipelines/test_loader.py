"""Images that cannot be decoded, found only when they are fed: replaced, named, and of no harm to others."""

import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from pipelines.augment import Recipe
from pipelines.decoding import Decoding
from pipelines.errors import DataError
from pipelines.loader import TrainingBatches, ValidationBatches, WholeBatches
from pipelines.order import Order
from pipelines.schema import COLUMNS, MANIFEST, checksum
from pipelines.seat import Seat
from pipelines.shards import DataSet
from pipelines.stream import Batch
from tests.conftest import kept

CPU = torch.device("cpu")


def damage(data: DataSet, folder: Path, damaged: dict[int, bytes]) -> DataSet:
    """A copy in which the images of some rows are others, and whose manifest does not know."""
    shutil.copytree(data.location.path, folder)
    shards, first = [], 0
    for shard in data.manifest.shards:
        table = pq.read_table(folder / shard.file)
        images = table["image"].to_pylist()
        for row, content in damaged.items():
            if first <= row < first + len(images):
                images[row - first] = content
        table = table.set_column(0, COLUMNS.field("image"), pa.array(images, pa.large_binary()))
        digests, at = [], 0
        with pq.ParquetWriter(folder / shard.file, COLUMNS) as writer:
            for n in shard.group_rows:
                writer.write_table(table.slice(at, n), row_group_size=n)
                digests.append(checksum(*table.slice(at, n).to_pydict().values()))
                at += n
        shards.append(replace(shard, bytes=(folder / shard.file).stat().st_size, group_xxh3=tuple(digests)))
        first += len(images)
    (folder / MANIFEST).write_text(replace(data.manifest, shards=tuple(shards)).to_json())
    return DataSet.open(str(folder))


def recipe(data: DataSet) -> Recipe:
    assert data.manifest.statistics is not None
    return Recipe((32, 64), 32, True, 0.0, 2.0, data.manifest.statistics)


@pytest.fixture
def damaged(picture_set: DataSet, tmp_path: Path) -> tuple[DataSet, dict[int, str]]:
    """Rows 7 and 30 are no images any more; their names."""
    names = [name for g in range(len(picture_set.manifest.group_rows)) for name in picture_set.read_group(g).names]
    data = damage(picture_set, tmp_path / "train", {7: b"not an image", 30: b"\xff\xd8\xff\xe0 nor this"})
    return data, {row: names[row] for row in (7, 30)}


def training(data: DataSet, world: int = 1, first: int = 0) -> list[Batch]:
    order = Order.of(data.manifest, 16, 4)
    last = 2 * order.steps_per_epoch
    parts = [
        kept(TrainingBatches(data, order, recipe(data), Seat(r, world, CPU, 1), first, last)) for r in range(world)
    ]
    return [
        replace(
            same[0],
            images=torch.cat([b.images for b in same]),
            rows=torch.cat([b.rows for b in same]),
            replaced=tuple(r for b in same for r in b.replaced),
        )
        for same in zip(*parts, strict=True)
    ]


def test_a_bad_image_is_replaced_by_the_mean_and_the_rest_of_its_batch_is_kept(
    picture_set: DataSet, damaged: tuple[DataSet, dict[int, str]]
) -> None:
    data, names = damaged
    rows, found = [], []
    for good, bad in zip(training(picture_set), training(data), strict=True):
        assert torch.equal(good.rows, bad.rows)
        for i, row in enumerate(bad.rows.tolist()):
            rows.append(row)
            if row in names:
                assert bad.images[i].abs().max() <= 0.5 / 2.0, "the mean colour, to the next whole number"
            else:
                assert torch.equal(good.images[i], bad.images[i])
        found += [(r.row, r.name) for r in bad.replaced]
        assert all(r.reason for r in bad.replaced)
    assert sorted(rows) == sorted(2 * list(range(data.rows)))
    assert sorted(found) == sorted(2 * list(names.items()))


@pytest.mark.parametrize(("world", "first"), [(1, 3), (3, 0), (3, 5)])
def test_what_stands_in_does_not_depend_on_workers_or_the_first_step(
    damaged: tuple[DataSet, dict[int, str]], world: int, first: int
) -> None:
    whole = training(damaged[0])
    for a, b in zip(whole[first:], training(damaged[0], world, first), strict=True):
        assert torch.equal(a.images, b.images)
        assert {(r.row, r.name) for r in a.replaced} == {(r.row, r.name) for r in b.replaced}


def test_validation_and_dense_tests_count_a_bad_image_once(damaged: tuple[DataSet, dict[int, str]]) -> None:
    data, names = damaged
    seat = Seat(0, 1, CPU, 1)
    for batches in (
        ValidationBatches(data, recipe(data), seat),
        WholeBatches(data, 70, (9.0, 8.0, 7.0), 1.0, 32, seat),
    ):
        for _ in range(2):
            seen = list(batches)
            assert sorted(torch.cat([b.rows for b in seen]).tolist()) == list(range(data.rows))
            assert {r.row: r.name for b in seen for r in b.replaced} == names


def test_bad_images_are_found_where_whole_images_are_decoded(damaged: tuple[DataSet, dict[int, str]]) -> None:
    data, names = damaged
    order, decoding = Order.of(data.manifest, 16, 4), Decoding(regions=False, depth=3, threads=2)
    loader = TrainingBatches(data, order, recipe(data), Seat(0, 1, CPU, 1), 0, order.steps_per_epoch, decoding)
    batches = kept(loader)
    loader.close()
    assert {r.row: r.name for batch in batches for r in batch.replaced} == names
    for whole, windows in zip(batches, training(data), strict=False):
        assert torch.equal(whole.rows, windows.rows)
        assert (whole.images - windows.images).abs().max() <= 1.0 / 2.0, "a grey level"


def test_a_set_of_bad_images_alone_comes_to_its_end(picture_set: DataSet, tmp_path: Path) -> None:
    data = damage(picture_set, tmp_path / "bad", dict.fromkeys(range(picture_set.rows), b"GIF89a"))
    batches = training(data)
    assert sum(len(b.replaced) for b in batches) == 2 * data.rows


def test_a_pass_that_is_left_leaves_nothing_for_the_next(picture_set: DataSet) -> None:
    seat = Seat(0, 1, CPU, 1)
    for batches in (
        ValidationBatches(picture_set, recipe(picture_set), seat),
        WholeBatches(picture_set, 70, (9.0, 8.0, 7.0), 1.0, 32, seat),
    ):
        for _ in batches:
            break
        rows = [row for batch in batches for row in batch.rows.tolist()]
        assert sorted(rows) == list(range(picture_set.rows))
        batches.close()


def test_an_error_in_reading_comes_out_once_and_as_it_is(picture_set: DataSet, tmp_path: Path) -> None:
    shutil.copytree(picture_set.location.path, tmp_path / "train")
    data = DataSet.open(str(tmp_path / "train"))
    shard = tmp_path / "train" / "part-00001.parquet"
    content = bytearray(shard.read_bytes())
    content[content.index(b"PNG") + 200] ^= 1
    shard.write_bytes(content)
    order = Order.of(data.manifest, 4, 4)
    loader = TrainingBatches(data, order, recipe(data), Seat(0, 1, CPU, 1), 0, order.steps_per_epoch)
    with pytest.raises(DataError, match=r"part-00001\.parquet: row group \d+ changed since it was prepared"):
        list(loader)
    assert list(loader._stream._fed) == []
    loader.close()
