"""The DALI graphs against a slow pipeline of Pillow and NumPy."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipelines import augment, reference, sources
from pipelines.augment import Recipe, rescaled
from pipelines.loader import TrainingBatches, ValidationBatches, WholeBatches
from pipelines.order import Order
from pipelines.prepare import Layout, prepare
from pipelines.schema import Statistics
from pipelines.seat import Seat
from pipelines.shards import DataSet
from tests.conftest import kept

CPU = torch.device("cpu")


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(1, 1024))
def test_the_shorter_side_becomes_s_and_the_aspect_ratio_is_kept(width: int, height: int, s: int) -> None:
    (h, w), *_ = rescaled(np.array([width]), np.array([height]), s)
    assert min(h, w) == s
    assert abs(max(h, w) - s * max(width, height) / min(width, height)) <= 0.5


def recipe(data: DataSet, scale: tuple[int, int]) -> Recipe:
    assert data.manifest.statistics is not None
    return Recipe(scale, 32, True, 0.1, 2.0, data.manifest.statistics)


def source_bytes(data: DataSet) -> list[bytes]:
    return [bytes(e) for g in range(len(data.manifest.group_rows)) for e in data.read_group(g).encoded]


@pytest.mark.parametrize("scale", [(36, 36), (32, 64)])
def test_training_crops_are_those_of_the_reference(picture_set: DataSet, scale: tuple[int, int]) -> None:
    r = recipe(picture_set, scale)
    order = Order(picture_set.manifest.group_rows, 16, 9)
    sources = source_bytes(picture_set)
    widths, heights = picture_set.read_sizes(0, picture_set.rows)
    batches = TrainingBatches(picture_set, order, r, Seat(0, 1, CPU, 2), 0, 2 * order.steps_per_epoch)
    seen, flipped = 0, 0
    for step, batch in enumerate(batches):
        rows = batch.rows.numpy()
        draws = augment.training_draws(r, 9, step // order.steps_per_epoch, rows, widths[rows], heights[rows])
        for i, row in enumerate(rows):
            shorter = int(draws.sizes[i].min())
            assert scale[0] <= shorter <= scale[1]
            corner = (int(draws.corners[i, 0]), int(draws.corners[i, 1]))
            expected = reference.crop(sources[row], shorter, corner, 32, bool(draws.flips[i]), draws.subtract[i]) / 2.0
            difference = np.abs(batch.images[i].numpy() - expected) * 2.0
            assert np.quantile(difference, 0.99) <= 2.0, (row, np.quantile(difference, 0.99))
            seen, flipped = seen + 1, flipped + int(draws.flips[i])
    assert seen == 2 * picture_set.rows
    assert 0.3 < flipped / seen < 0.7


@pytest.fixture(scope="module")
def scattered(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    """The pictures, each in a row group of its own: several streams, many windows."""
    dest = tmp_path_factory.mktemp("scattered") / "train"
    prepare(sources.folder(pictures), dest, layout=Layout(group_bytes=1))
    data = DataSet.open(str(dest))
    assert Order(data.manifest.group_rows, 14, 3, held=8).streams == 4
    return data


def steps(data: DataSet, world: int, threads: int, first: int, last: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(rows, images) of each step's global batch."""
    order = Order(data.manifest.group_rows, 14, 3, held=8)
    seats = [Seat(rank, world, CPU, threads) for rank in range(world)]
    parts = [kept(TrainingBatches(data, order, recipe(data, (32, 64)), seat, first, last)) for seat in seats]
    return [(torch.cat([b.rows for b in s]), torch.cat([b.images for b in s])) for s in zip(*parts, strict=True)]


@pytest.mark.parametrize(("world", "threads", "first"), [(2, 1, 0), (3, 2, 0), (8, 1, 0), (1, 2, 7), (3, 1, 4)])
def test_batches_are_the_same_bit_for_bit_on_any_number_of_workers_and_from_any_step(
    scattered: DataSet, world: int, threads: int, first: int
) -> None:
    last = 2 * -(-scattered.rows // 14)
    alone = steps(scattered, 1, 1, 0, last)
    for (rows, images), (same_rows, same) in zip(
        alone[first:], steps(scattered, world, threads, first, last), strict=True
    ):
        assert torch.equal(rows, same_rows)
        assert torch.equal(images, same)


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1), st.lists(st.integers(0, 2**40), min_size=1, max_size=40))
def test_a_rows_draws_depend_on_nothing_but_seed_epoch_and_row(seed: int, epoch: int, rows: list[int]) -> None:
    statistics = Statistics((1.0, 2.0, 3.0), ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)), (3.0, 2.0, 1.0))
    r = Recipe((256, 512), 224, True, 0.1, 1.0, statistics)
    sides = np.array(rows) % 700 + 1, np.array(rows) % 500 + 1
    together = augment.training_draws(r, seed, epoch, np.array(rows), *sides)
    for i in range(len(rows)):
        one = slice(i, i + 1)
        alone = augment.training_draws(r, seed, epoch, np.array(rows[one]), sides[0][one], sides[1][one])
        for name in ("sizes", "corners", "flips", "subtract"):
            assert np.array_equal(getattr(alone, name)[0], getattr(together, name)[i])


def test_validation_sees_each_middle_crop_once_in_each_pass(picture_set: DataSet) -> None:
    r = recipe(picture_set, (40, 40))
    parts = [ValidationBatches(picture_set, r, Seat(rank, 3, CPU, 1)) for rank in range(3)]
    for _ in range(2):
        rows = torch.cat([b.rows for part in parts for b in part])
        assert sorted(rows.tolist()) == list(range(picture_set.rows))
    batch = next(iter(ValidationBatches(picture_set, r, Seat(0, 1, CPU, 1))))
    whole = reference.rescale(source_bytes(picture_set)[0], 40)
    corner = ((whole.height - 32) // 2, (whole.width - 32) // 2)
    mean = np.asarray(r.statistics.mean_rgb, np.float32)
    expected = reference.crop(source_bytes(picture_set)[0], 40, corner, 32, False, mean) / 2.0
    assert np.quantile(np.abs(batch.images[0].numpy() - expected), 0.99) <= 1.0


def test_whole_images_come_once_in_batches_of_one_shape(picture_set: DataSet) -> None:
    mean = (100.0, 110.0, 120.0)
    sources = source_bytes(picture_set)
    rows = []
    for rank in range(2):
        for batch in WholeBatches(picture_set, 70, mean, 1.0, 32, Seat(rank, 2, CPU, 1)):
            rows += batch.rows.tolist()
            for i, row in enumerate(batch.rows.tolist()):
                whole = np.asarray(reference.rescale(sources[row], 70), np.float32)
                h, w = (side // 32 * 32 for side in whole.shape[:2])
                y, x = (whole.shape[0] - h) // 2, (whole.shape[1] - w) // 2
                expected = (whole[y : y + h, x : x + w] - np.asarray(mean, np.float32)).transpose(2, 0, 1)
                assert batch.images[i].shape == expected.shape
                assert np.quantile(np.abs(batch.images[i].numpy() - expected), 0.99) <= 2.0
    assert sorted(rows) == list(range(picture_set.rows))


def test_the_reference_itself_keeps_a_plain_image() -> None:
    out = io.BytesIO()
    Image.new("RGB", (64, 48), (10, 20, 30)).save(out, "PNG")
    crop = reference.crop(out.getvalue(), 40, (3, 5), 32, True, np.zeros(3, np.float32))
    assert crop.shape == (3, 32, 32)
    assert np.allclose(crop, np.array([10, 20, 30])[:, None, None])
