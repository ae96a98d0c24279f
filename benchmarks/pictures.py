"""Data sets to measure with, made in seconds: JPEGs of ImageNet's sizes and weight, prepared as any other data set.

Decoders take their time by pixels and by bytes, so these have both: most are 500 x 375, with about 110 KB. They are
sums of octaves of noise, as strong in each as photographs are, rough in some places and smooth in others; or
photographs, with as much grain as brings them to that weight. The same ones in each run.
"""

import io
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.setting import Setting
from pipelines import sources
from pipelines.prepare import Layout, prepare
from pipelines.sources import Source

_SIZES = ((500, 375),) * 6 + ((375, 500),) * 2 + ((500, 333), (640, 480))  # width, height; drawn from, evenly
_SMALL = 5  # a rehearsal's pictures are so many times smaller
_QUALITY = 92
_GRAIN, _PHOTO_GRAIN = 8.7, 13.0  # grey levels, deviation; what 110 KB take
_CLASSES, _SMALL_CLASSES = 1000, 10  # as ImageNet has, for the nets' last layers


def training_set(setting: Setting, pictures: int) -> Path:
    """The folder of a data set of so many different pictures, of 1,000 classes; made once for all parts."""
    dest = setting.folder / "sets" / str(pictures)
    shrink, classes = (_SMALL, _SMALL_CLASSES) if setting.small else (1, _CLASSES)
    if not dest.exists():
        source = _source(pictures, classes, shrink, _photographs(setting))
        group = min(75, -(-pictures // 16))  # pictures; of a small set still some row groups, to shuffle
        layout = Layout(group_bytes=group * (4_000 if setting.small else 110_000))
        prepare(source, dest, layout=layout, threads=setting.threads)
    return dest


def _source(pictures: int, classes: int, shrink: int, photographs: Sequence[Callable[[], bytes]]) -> Source:
    def read(i: int) -> bytes:
        rng = np.random.default_rng(i)
        width, height = (side // shrink for side in _SIZES[rng.integers(len(_SIZES))])
        if photographs:
            photograph = photographs[int(rng.integers(len(photographs)))]()
            return encoded(_grained(rng, photograph, width, height))
        return encoded(_octaves(rng, width, height))

    labels = np.arange(pictures, dtype=np.int64) % classes
    names = tuple(f"{label:04d}/{i:06d}.jpg" for i, label in enumerate(labels))
    what = f"{pictures} {'grained photographs' if photographs else 'pictures made of noise'}"
    return Source(what, tuple(f"{c:04d}" for c in range(classes)), names, labels, np.zeros(pictures, np.int64), read)


def _photographs(setting: Setting) -> list[Callable[[], bytes]]:
    """To read photographs with, if there are any."""
    if setting.photos is None:
        return []
    source = sources.folder(setting.photos)
    return [lambda i=i: source.read(i) for i in range(len(source))]  # type: ignore[misc]


def encoded(pixels: NDArray[np.float32], kind: str = "JPEG", **options: object) -> bytes:
    """`pixels`: (H, W, 3), grey levels of RGB."""
    out = io.BytesIO()
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(out, kind, quality=_QUALITY, **options)
    return out.getvalue()


def picture(number: int, width: int, height: int) -> NDArray[np.float32]:
    """(height, width, 3) grey levels of RGB, by its number."""
    return _octaves(np.random.default_rng(number), width, height)


def _octaves(rng: np.random.Generator, width: int, height: int) -> NDArray[np.float32]:
    """Each octave is as strong as the one before, as in photographs, but the last two, of which there is less."""
    doublings = max(1, min(width, height).bit_length() - 2)
    pixels = np.full((1, 1, 3), 115.0, np.float32)
    for k in range(doublings, 1, -1):
        size = -(-width >> k), -(-height >> k)
        colour = rng.standard_normal((size[1], size[0], 3), np.float32)
        pixels = _resized(pixels, *size) + _grain(rng, *size, 22.0) + 7.0 * colour
    fine = _grain(rng, -(-width >> 1), -(-height >> 1), 2 * _GRAIN)
    return _resized(pixels, width, height) + _resized(fine, width, height) + _grain(rng, width, height, _GRAIN)


def _grained(rng: np.random.Generator, photograph: bytes, width: int, height: int) -> NDArray[np.float32]:
    """The middle of a photograph of the wanted shape, in the wanted size."""
    image = Image.open(io.BytesIO(photograph)).convert("RGB")
    scale = min(image.width / width, image.height / height)
    left, top = (image.width - scale * width) / 2, (image.height - scale * height) / 2
    box = (left, top, left + scale * width, top + scale * height)
    pixels = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC, box), np.float32)
    return pixels + _grain(rng, width, height, _PHOTO_GRAIN)


def _grain(rng: np.random.Generator, width: int, height: int, deviation: float) -> NDArray[np.float32]:
    """(height, width, 1), three times as strong in some places as in others."""
    place = _resized(rng.uniform(0.5, 1.5, (4, 4, 1)).astype(np.float32), width, height)
    return deviation * place * rng.standard_normal((height, width, 1), np.float32)


def _resized(planes: NDArray[np.float32], width: int, height: int) -> NDArray[np.float32]:
    """(H, W, C) to (height, width, C)."""
    images = (Image.fromarray(planes[:, :, c]) for c in range(planes.shape[2]))
    return np.stack([np.asarray(i.resize((width, height), Image.Resampling.BICUBIC)) for i in images], axis=2)
