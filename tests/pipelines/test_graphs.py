"""The DALI graphs against a slow pipeline of Pillow and NumPy."""

import io

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipelines import augment, reference
from pipelines.augment import Recipe, rescaled
from pipelines.loader import Seat, TrainingBatches, ValidationBatches, WholeBatches
from pipelines.order import Order
from pipelines.shards import DataSet

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


def test_batches_are_the_same_for_any_number_of_workers_and_from_any_step(picture_set: DataSet) -> None:
    r = recipe(picture_set, (32, 64))
    order = Order(picture_set.manifest.group_rows, 14, 3)
    last = 2 * order.steps_per_epoch

    def images(rank: int, world: int, first: int) -> list[torch.Tensor]:
        return [
            b.images.clone() for b in TrainingBatches(picture_set, order, r, Seat(rank, world, CPU, 1), first, last)
        ]

    alone = images(0, 1, 0)
    shared = [images(rank, 3, 0) for rank in range(3)]
    later = images(0, 1, 5)
    for step in range(last):
        assert torch.equal(torch.cat([s[step] for s in shared]), alone[step])
    assert all(torch.equal(a, b) for a, b in zip(later, alone[5:], strict=True))


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
