"""Decoding only a crop's window gives what decoding the whole image, rescaling it and cropping gives."""

import io
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from nvidia.dali import fn, pipeline_def, types
from PIL import Image

from pipelines import augment, graphs, reference, resample
from pipelines.augment import Draws, Ints
from pipelines.decoding import Decoding
from tests.conftest import encoded

CROP = 48


@pipeline_def(num_threads=1, device_id=None, prefetch_queue_depth=1)
def wholes(images: graphs.Encoded, sizes: Ints):  # type: ignore[no-untyped-def]
    files = fn.external_source(source=lambda: images, batch=True, dtype=types.UINT8)
    size = fn.external_source(source=lambda: list(sizes.astype(np.float32)), batch=True, dtype=types.FLOAT)
    decoded = fn.decoders.image(files, output_type=types.RGB, adjust_orientation=False)
    return fn.resize(decoded, size=size, interp_type=types.INTERP_LINEAR, antialias=True)


def by_whole_images(images: graphs.Encoded, sizes: Ints, corners: Ints, crop: int) -> list[NDArray[np.uint8]]:
    """(crop, crop, 3) each: decoded and rescaled as a whole, by DALI's own operators."""
    (output,) = wholes(images, sizes, batch_size=len(images)).run()
    return [np.array(output[i])[y : y + crop, x : x + crop] for i, (y, x) in enumerate(corners.tolist())]


def by_windows(
    images: graphs.Encoded, sizes: Ints, corners: Ints, crop: int, widths: Ints, heights: Ints
) -> list[NDArray[np.float32]]:
    n = len(images)
    draws = Draws(sizes, corners, np.zeros(n, bool), np.zeros((n, 3), np.float32))
    feed = graphs.feed(images, draws, augment.source_windows(sizes, corners, crop, widths, heights))
    (output,) = graphs.crops(lambda: feed, crop, 1.0, n, 1, None).run()
    return [np.array(output[i]).transpose(1, 2, 0) for i in range(n)]


def in_format(picture: Image.Image, kind: str) -> bytes:
    out = io.BytesIO()
    options = {
        "4:2:0": {"format": "JPEG", "subsampling": "4:2:0", "quality": 90},
        "4:4:4": {"format": "JPEG", "subsampling": "4:4:4", "quality": 90},
        "progressive": {"format": "JPEG", "progressive": True, "quality": 90},
        "PNG": {"format": "PNG"},
    }
    gray = kind == "gray"
    (picture.convert("L") if gray else picture).save(out, **(options["4:2:0"] if gray else options[kind]))
    return out.getvalue()


@pytest.mark.parametrize("kind", ["4:2:0", "gray", "PNG"])
def test_whole_images_give_the_same_crops_as_windows(kind: str) -> None:
    """To a grey level; and whole images are what is decoded, so that a window that lies is not found out."""
    n, shorter = len(SHAPES), CROP
    sides = np.array(SHAPES)
    images = [np.frombuffer(in_format(Image.open(io.BytesIO(encoded(w, h, w + h))), kind), np.uint8) for w, h in SHAPES]
    sizes = augment.rescaled(sides[:, 0], sides[:, 1], shorter)
    corners = sizes - CROP
    flips, subtract = np.arange(n) % 2 == 0, np.linspace(0.0, 99.0, 3 * n, dtype=np.float32).reshape(n, 3)
    draws = Draws(sizes, corners, flips, subtract)
    windows = augment.source_windows(sizes, corners, CROP, sides[:, 0], sides[:, 1])
    whole = windows.whole(sides[:, 0], sides[:, 1])

    def pixels(seen: augment.Windows, decoding: Decoding) -> NDArray[np.float32]:
        feed = graphs.feed(images, draws, seen)
        (output,) = graphs.crops(lambda: feed, CROP, 1.0, n, 2, None, decoding).run()
        return np.stack([np.array(output[i]) for i in range(n)])

    by_whole_images = pixels(whole, Decoding(regions=False, depth=3))
    assert np.abs(by_whole_images - pixels(windows, Decoding())).max() <= 1.0
    lying = replace(whole, extents=np.ones_like(whole.extents))
    assert np.array_equal(pixels(lying, Decoding(regions=False)), by_whole_images)


SHAPES = [(500, 375), (333, 500), (60, 60), (20, 400), (301, 15), (3, 2), (1, 1), (1, 30), (1200, 900)]


@pytest.mark.parametrize("kind", ["4:2:0", "4:4:4", "progressive", "gray", "PNG"])
@pytest.mark.parametrize("shorter", [CROP, 72, (CROP, 96)])
def test_windows_are_the_same_to_a_grey_level(kind: str, shorter: int | tuple[int, int]) -> None:
    rng = np.random.default_rng(7)
    images, sides, corners, sizes = [], [], [], []
    for width, height in SHAPES:
        picture = Image.open(io.BytesIO(encoded(width, height, width + height)))
        image = np.frombuffer(in_format(picture, kind), np.uint8)
        for place in ((0.0, 0.0), (1.0, 1.0), (0.0, 1.0), rng.random(2)):
            low, high = (shorter, shorter) if isinstance(shorter, int) else shorter
            (size,) = augment.rescaled(np.array([width]), np.array([height]), int(rng.integers(low, high + 1)))
            images.append(image)
            sides.append((width, height))
            sizes.append(size)
            corners.append(np.rint((size - CROP) * np.asarray(place)).astype(np.int64))
    where = np.array(sizes), np.array(corners), CROP
    widths, heights = np.array(sides).T
    expected = by_whole_images(images, *where)
    for side, a, b in zip(sides, by_windows(images, *where, widths, heights), expected, strict=True):
        assert np.abs(np.rint(a) - b).max() <= 1, side


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_windows_hold_all_that_the_filter_reaches(data: st.DataObject) -> None:
    """A window resampled alone is the same part of the image resampled as a whole, by the same kernel."""
    width, height = data.draw(st.integers(1, 90)), data.draw(st.integers(1, 90))
    crop = data.draw(st.integers(1, 24))
    shorter = data.draw(st.integers(crop, 60))
    sizes = augment.rescaled(np.array([width]), np.array([height]), shorter)
    free = sizes[0] - crop
    corners = np.array([[data.draw(st.integers(0, int(f))) for f in free]])
    windows = augment.source_windows(sizes, corners, crop, np.array([width]), np.array([height]))
    (y, x), (h, w) = windows.starts[0], windows.extents[0]
    assert 0 <= y <= y + h <= height
    assert 0 <= x <= x + w <= width
    image = np.random.default_rng(crop).integers(0, 256, (height, width, 3), dtype=np.uint8)
    zeros, floats = np.zeros(1, np.int32), np.float32
    alone, whole = np.empty((3, crop, crop), floats), np.empty((3, *sizes[0]), floats)
    start, end = windows.crop_starts[0].astype(floats), windows.crop_ends[0].astype(floats)
    resample.crop(alone, image[y : y + h, x : x + w].copy(), start, end, zeros, np.zeros(3, floats), 1.0)
    resample.crop(whole, image, np.zeros(2, floats), floats([height, width]), zeros, np.zeros(3, floats), 1.0)
    (v, u), same = corners[0], alone
    assert np.abs(whole[:, v : v + crop, u : u + crop] - same).max() < 0.02


@given(st.integers(40, 300), st.integers(40, 300), st.integers(32, 64), st.integers(0, 2**32 - 1))
def test_nothing_outside_a_crops_window_matters_to_pillow_either(
    width: int, height: int, shorter: int, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    pixels, other = generator.integers(0, 256, (2, height, width, 3), dtype=np.uint8)
    sizes = augment.rescaled(np.array([width]), np.array([height]), shorter)
    corners = generator.integers(0, sizes - 32 + 1)
    windows = augment.source_windows(sizes, corners, 32, np.array([width]), np.array([height]))
    (y, x), (h, w) = windows.starts[0], windows.extents[0]
    assert 0 <= y < y + h <= height
    assert 0 <= x < x + w <= width
    other[y : y + h, x : x + w] = pixels[y : y + h, x : x + w]
    first, second = (by_pillow(image, sizes[0], corners[0]) for image in (pixels, other))
    assert np.array_equal(first, second)


def by_pillow(
    pixels: NDArray[np.integer], size: NDArray[np.integer], corner: NDArray[np.integer]
) -> NDArray[np.integer]:
    y, x = corner
    image = Image.fromarray(pixels).resize((int(size[1]), int(size[0])), Image.Resampling.BILINEAR)
    return np.asarray(image)[y : y + 32, x : x + 32]


def weights(n: int, size: int) -> NDArray[np.float64]:
    """(n, size): an antialiased linear filter as a matrix, written down as it is defined."""
    step = size / n
    radius = max(1.0, step)
    matrix = np.zeros((n, size))
    for i in range(n):
        centre = (i + 0.5) * step - 0.5
        for j in range(-size, 2 * size):
            matrix[i, min(max(j, 0), size - 1)] += max(0.0, 1.0 - abs(j - centre) / radius)
    return matrix / matrix.sum(axis=1, keepdims=True)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 30), st.integers(1, 30), st.booleans())
def test_the_kernel_is_the_filter_as_a_matrix(width: int, height: int, columns: int, rows: int, flip: bool) -> None:
    image = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    mean, factor = np.array([100.0, 110.0, 120.0], np.float32), 1 / 58.0
    out = np.empty((3, rows, columns), np.float32)
    end = np.array([height, width], np.float32)
    resample.crop(out, image, np.zeros(2, np.float32), end, np.array([flip], np.int32), mean, factor)
    expected = np.einsum("yi,ijc,xj->cyx", weights(rows, height), image, weights(columns, width), optimize=True)
    expected = (expected - mean[:, None, None]) * factor
    assert np.abs(out - (expected[:, :, ::-1] if flip else expected)).max() < 1e-3


@pipeline_def(batch_size=6, num_threads=1, device_id=None)
def as_on_a_gpu(feed: graphs.Feed, crop: int, pixel_std: float):  # type: ignore[no-untyped-def]
    ints, floats = types.INT32, types.FLOAT
    dtypes = [types.UINT8, ints, ints, floats, floats, ints, floats]
    encoded, starts, extents, start, end, flip, subtract = graphs._inputs(lambda: feed, dtypes, False)
    images = graphs._rescaled(graphs._decoded(encoded, starts, extents, False, Decoding()), [crop, crop], start, end)
    return graphs._tensor(images, subtract, pixel_std, mirror=flip)


def test_the_operators_that_a_gpu_uses_give_what_the_kernel_gives() -> None:
    sides = [(300 + 40 * i, 200 + 30 * i) for i in range(6)]
    images = [np.frombuffer(encoded(w, h, w, "JPEG"), np.uint8) for w, h in sides]
    widths, heights = np.array(sides).T
    sizes = augment.rescaled(widths, heights, np.arange(100, 220, 20))
    corners = (sizes - 64) // 3
    subtract = np.arange(18, dtype=np.float32).reshape(6, 3) + 100
    draws = Draws(sizes, corners, np.array([0, 1, 0, 1, 1, 0], bool), subtract)
    feed = graphs.feed(images, draws, augment.source_windows(sizes, corners, 64, widths, heights))
    (expected,) = as_on_a_gpu(feed, 64, 58.0).run()
    (output,) = graphs.crops(lambda: feed, 64, 58.0, 6, 1, None).run()
    for i in range(6):
        assert np.abs(np.array(output[i]) - np.array(expected[i])).max() * 58.0 < 0.01


@pipeline_def(batch_size=1, num_threads=1, device_id=None, prefetch_queue_depth=1)
def wholes_as_on_a_gpu(feed: graphs.WholeFeed, mean: list[float], pixel_std: float):  # type: ignore[no-untyped-def]
    ints, floats = types.INT32, types.FLOAT
    dtypes = [types.UINT8, ints, ints, floats, floats, floats]
    encoded, starts, extents, start, end, sizes = graphs._inputs(lambda: feed, dtypes, False)
    images = graphs._rescaled(graphs._decoded(encoded, starts, extents, False, Decoding()), sizes, start, end)
    return graphs._tensor(images, mean, pixel_std)


MEAN, PIXEL_STD = (104.0, 117.0, 123.0), 58.0


@pytest.mark.parametrize("stride", [1, 16])
def test_whole_images_are_those_of_a_gpus_operators_and_of_pillow(stride: int) -> None:
    rng = np.random.default_rng(stride)
    for width, height in [*SHAPES, *rng.integers(1, 500, (12, 2)).tolist(), (1500, 12), (2, 90)]:
        image, shorter = encoded(width, height, width + height), int(rng.integers(16, 120))
        sides = np.array([width]), np.array([height])
        sizes = augment.rescaled(*sides, shorter)
        seen = augment.dense_windows(sizes, stride)
        (y, x), (h, w) = (sizes - seen)[0] // 2, seen[0]
        windows = augment.source_windows(sizes, np.array([[y, x]]), seen, *sides)
        found, expected = both_wholes(graphs.feed_wholes([np.frombuffer(image, np.uint8)], seen, windows))
        assert found.shape == (3, h, w)
        assert np.abs(found - expected).max() * PIXEL_STD < 0.02, (width, height, shorter)
        slow = np.asarray(reference.rescale(image, shorter))
        difference = np.abs(found.transpose(1, 2, 0) * PIXEL_STD + MEAN - slow[y : y + h, x : x + w])
        difference = np.pad(difference, ((y, sizes[0, 0] - h - y), (x, sizes[0, 1] - w - x), (0, 0)))
        inside = difference[1:-1, 1:-1]  # at the border Pillow leaves out what lies beyond, instead of repeating pixels
        assert inside.max() <= 1.01, (width, height, shorter)  # grey levels: it rounds, in each direction


def both_wholes(feed: graphs.WholeFeed) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(3, H, W) each: by the kernel, and by the operators that a GPU uses."""
    (ours,) = graphs.wholes(lambda: feed, MEAN, PIXEL_STD, 1, 1, None).run()
    (theirs,) = wholes_as_on_a_gpu(feed, list(MEAN), PIXEL_STD).run()
    return np.array(ours[0]), np.array(theirs[0])
