"""Probabilities of whole images and of crops, against slow ways to the same."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cluster import init
from cluster.passes import Passes, Scores, dense_scores, of_crops, of_wholes, plain_scores, precisely, regrouped
from cluster.stopwatch import Stopwatch
from cluster.vgg import VGG
from pipelines.errors import TrainingError
from tests.pipelines.test_grid import one_by_one

CPU = torch.device("cpu")


def net(name: str = "A", input_size: int = 32, width: float = 0.1, batch_norm: bool = False) -> VGG:
    """Of random weights, with scores that differ from place to place."""
    model = VGG(name, 7, input_size, width, batch_norm=batch_norm)
    init.randomise(model, "kaiming", 0.01, seed=1)
    with torch.no_grad():
        for own, parameter in model.named_parameters():
            if own.endswith("bias"):
                parameter.normal_(0.0, 0.1, generator=torch.Generator().manual_seed(len(own)))
        model.fc3.weight *= 3
    return model.eval()


def passes(scores: object, pixels: int = 1 << 19) -> Passes:
    return Passes(scores, Stopwatch(CPU, parts=("net",)), pixels)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def the_same_each_time() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.mark.parametrize(("name", "batch_norm"), [("A", False), ("A-LRN", False), ("C", True), ("E", False)])
def test_on_an_image_of_the_input_size_dense_equals_plain(name: str, batch_norm: bool) -> None:
    model, images = net(name, 64, batch_norm=batch_norm), torch.randn(3, 3, 64, 64)
    with torch.inference_mode():
        dense, plain = (passes(scores(model)).probabilities(images, True) for scores in (dense_scores, plain_scores))
    torch.testing.assert_close(dense, plain)


def test_at_full_size_256_gives_a_map_of_2_by_2_of_the_four_places_scores() -> None:
    model = net(input_size=224, width=0.05)
    with torch.inference_mode():
        features = model.features(images := torch.randn(1, 3, 256, 256))
        places = [features[:, :, i : i + 7, j : j + 7].flatten(1) for i in (0, 1) for j in (0, 1)]
        expected = torch.stack([model.fc3(F.relu(model.fc2(F.relu(model.fc1(x))))) for x in places], 2)
        found = model.dense()(images)
    assert found.shape == (1, 7, 2, 2)
    torch.testing.assert_close(found.flatten(2), expected)


@pytest.mark.parametrize(("name", "cells"), [("A", 2), ("E", 4)])
@pytest.mark.parametrize("side", [1, 2])
def test_the_dense_map_is_the_net_slid_over_the_image(name: str, cells: int, side: int) -> None:
    """Where both see the same. What a cell of the last map sees reaches `cells` cells of 32 pixels further to all sides
    at most: (150 - 32) / 2 pixels in A, (252 - 32) / 2 in E. A window that has them, too, has the same in its middle,
    though zeros lie around it where the image goes on."""
    model = net(name, 32 * side)
    window = 2 * cells + side
    images = torch.randn(1, 3, 32 * (window + 1), 32 * (window + 2)) * 2
    with torch.inference_mode():
        found = model.dense()(images)[0]
        for i in range(2):
            for j in range(3):
                alone = images[:, :, 32 * i : 32 * (i + window), 32 * j : 32 * (j + window)]
                x = model.features(alone)[:, :, cells : cells + side, cells : cells + side].flatten(1)
                slid = model.fc3(F.relu(model.fc2(F.relu(model.fc1(x)))))[0]
                torch.testing.assert_close(found[:, i + cells, j + cells], slid, rtol=1e-4, atol=1e-5)


def test_scores_are_averaged_over_space_before_the_soft_max_and_mirror_images_after_it() -> None:
    model, images = net(), torch.randn(2, 3, 96, 128) * 3
    with torch.inference_mode():
        maps = [model.dense()(view) for view in (images, images.flip(3))]
        expected = sum(F.softmax(scores.flatten(2).double().mean(2), 1) for scores in maps) / 2
        other = sum(F.softmax(scores.flatten(2), 1).mean(2) for scores in maps) / 2
        (found,) = of_wholes(passes(dense_scores(model)), [images], True)
    torch.testing.assert_close(found, expected.float())
    assert (found - other).abs().max() > 1e-2, "the order makes a difference here"


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("pixels", [1, 7 * 32 * 32, 40 * 32 * 32, 1 << 20])
def test_crops_are_averaged_after_the_soft_max_however_they_are_grouped(pixels: int, mirror: bool) -> None:
    model = net()
    shapes = [(3, 32, 32), (1, 40, 55), (2, 32, 500), (1, 71, 33)]
    batches = [torch.randn(n, 3, height, width) * 3 for n, height, width in shapes]

    def slowly(image: Tensor) -> Tensor:
        crops = [image[:, y : y + 32, x : x + 32] for y, x in one_by_one(image.shape[1], image.shape[2], 32, 5)]
        looks = [*crops, *([crop.flip(2) for crop in crops] if mirror else [])]
        return torch.stack([F.softmax(model(look[None])[0].double(), 0) for look in looks]).mean(0)

    with torch.inference_mode():
        expected = torch.stack([slowly(image) for batch in batches for image in batch]).float()
        found = torch.cat(list(of_crops(passes(plain_scores(model), pixels), batches, 32, mirror)))
    torch.testing.assert_close(found, expected)


def test_the_net_gets_full_passes_of_crops_whichever_images_they_are_of() -> None:
    seen: list[int] = []

    def scores(images: Tensor) -> Tensor:
        seen.append(len(images))
        return images.mean(dim=(2, 3))

    images = [torch.randn(1, 3, 32 + i, 40) for i in range(12)]
    assert len(list(of_crops(passes(scores, 64 * 32 * 32), images, 32, True))) == 12
    assert seen == [64] * (12 * 50 // 64) + [12 * 50 % 64]


class Small:
    """A device that has no memory for more than `most` images of a pass."""

    def __init__(self, most: int) -> None:
        self.most, self.passes = most, list[int]()

    def __call__(self, images: Tensor) -> Tensor:
        self.passes.append(len(images))
        if len(images) > self.most:
            raise torch.cuda.OutOfMemoryError
        return images.mean(dim=(2, 3))


def test_passes_that_do_not_fit_the_memory_are_halved_once_and_for_all() -> None:
    images, device = torch.randn(40, 3, 32, 32), Small(6)
    apply = passes(device, 24 * 32 * 32)
    torch.testing.assert_close(apply(images), images.mean(dim=(2, 3)))
    assert max(device.passes) == 20
    device.passes.clear()
    torch.testing.assert_close(apply(images), images.mean(dim=(2, 3)))
    assert max(device.passes) <= 6


def test_an_image_that_does_not_fit_by_itself_is_a_line() -> None:
    with pytest.raises(TrainingError, match=r"^an image of 70 x 32 pixels does not fit"):
        passes(Small(0))(torch.randn(2, 3, 32, 70))


@settings(max_examples=50)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=9), st.integers(1, 12))
def test_regrouped_rows_are_the_same_in_full_groups(lengths: list[int], n: int) -> None:
    rows = torch.arange(sum(lengths))
    groups = list(regrouped(rows.split(lengths), n))
    assert [len(group) for group in groups[:-1]] == [n] * (len(groups) - 1)
    assert torch.equal(torch.cat([rows[:0], *groups]), rows)
    assert all(0 < len(group) <= n for group in groups)


@pytest.mark.parametrize("scores", [dense_scores, plain_scores])
def test_bf16_is_near_and_leaves_what_comes_after_to_float32(scores: Callable[[VGG], Scores]) -> None:
    model, images = net(input_size=32), torch.randn(4, 3, 32, 32)
    with torch.inference_mode():
        exact = passes(scores(model)).probabilities(images, True)
        with precisely("bf16", CPU):
            found = passes(scores(model)).probabilities(images, True)
        with precisely("tf32", CPU):
            assert torch.equal(passes(scores(model)).probabilities(images, True), exact)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.sum(1), torch.ones(4))  # which a soft-max in bf16 would miss in the third digit
    assert 0 < (found - exact).abs().max() < 0.01


def test_the_process_is_left_as_it_was() -> None:
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32
    for precision, tf32 in (("float32", False), ("tf32", True), ("bf16", False)):
        with precisely(precision, CPU):  # type: ignore[arg-type]
            assert (cudnn.allow_tf32, matmul.allow_tf32) == (tf32, tf32)
            assert torch.is_autocast_enabled("cpu") == (precision == "bf16")
        assert (cudnn.allow_tf32, matmul.allow_tf32) == before
    assert not torch.is_autocast_enabled("cpu")
