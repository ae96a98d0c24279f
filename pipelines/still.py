"""One encoded image as the net's input in dense tests, by NumPy and Pillow alone: for predictions, and for models that
are served where this program is not installed, which hold a copy of this file. So it imports nothing else.

Its pixels are those of `loader.WholeBatches`: decoded to RGB with EXIF orientation ignored, the shorter side rescaled
by an antialiased linear filter, which is a triangle of one source pixel to each side, or of as many as an output pixel
covers, if that is more (see `resample`), the middle cut out, and the mean subtracted. Of an image that is so elongated
that it would become larger than any memory, such as one of 1 x 8000 pixels, it is a shorter middle.
"""

import io
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

Floats = NDArray[np.float32]

MOST_PIXELS = 1 << 24  # after the rescale; 64 times the area of the paper's largest inputs


class Unreadable(ValueError):
    """Why bytes are no image that can be shown to a net."""


def prepare(encoded: bytes, shorter: int, mean_rgb: Sequence[float], pixel_std: float, stride: int) -> Floats:
    """(3, H, W) float32, RGB: the image's middle, its shorter side rescaled to `shorter` pixels.

    `mean_rgb` is subtracted, the rest divided by `pixel_std`. H and W are multiples of `stride`, that of the net, whose
    pools round down: see `augment.dense_windows`. Raises Unreadable.
    """
    pixels = decode(encoded)
    height, width = pixels.shape[:2]
    rows, columns = (_rescaled(side, min(height, width), shorter) for side in (height, width))
    seen_rows, seen_columns = (min(side, longest(shorter)) // stride * stride for side in (rows, columns))
    if seen_rows * seen_columns > MOST_PIXELS:
        raise Unreadable(f"an image of {width} x {height} pixels would become one of {columns} x {rows}")
    down = _resampled(pixels, rows, seen_rows)
    middle = _resampled(np.ascontiguousarray(down.swapaxes(0, 1)), columns, seen_columns)  # (W, H, 3)
    tensor = (middle.T - np.asarray(mean_rgb, np.float32)[:, None, None]) / np.float32(pixel_std)
    return np.ascontiguousarray(tensor, np.float32)


def decode(encoded: bytes) -> NDArray[np.uint8]:
    """(height, width, 3), RGB, as it is stored: not turned by EXIF. Raises Unreadable."""
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            image.info.pop("transparency", None)  # of no effect, but Pillow would warn of it
            return np.asarray(_of_bytes(image).convert("RGB"))
    except UnidentifiedImageError as error:
        raise Unreadable("not an image" if encoded else "empty") from error
    except Exception as error:  # Pillow's decoders raise whatever their format's code raises; the reason is kept
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise Unreadable(f"cannot be decoded: {reason}") from error


def _of_bytes(image: Image.Image) -> Image.Image:
    """Gray of 16 bits is scaled to 8, as training's decoder does it; Pillow would cut it off at 255."""
    if not image.mode.startswith("I;16"):
        return image
    return Image.fromarray(np.rint(np.asarray(image) / 257).astype(np.uint8))


def longest(shorter: int) -> int:
    """Pixels of an image's longer side that are looked at, if the shorter one has `shorter`; of a square always all."""
    return max(shorter, MOST_PIXELS // shorter)


def _rescaled(side: int, smallest: int, shorter: int) -> int:
    """A half is rounded up."""
    return (2 * side * shorter + smallest) // (2 * smallest)


def _resampled(pixels: NDArray[np.uint8] | Floats, rescaled: int, n: int) -> Floats:
    """(n, ...) of (size, ...): along the first axis, the middle n of `rescaled` output pixels.

    Pixels beyond the border are those at the border.
    """
    size = len(pixels)
    step = size / rescaled
    radius = max(1.0, step)
    centres = ((rescaled - n) // 2 + np.arange(n) + 0.5) * step - 0.5
    taps = np.ceil(centres - radius)[:, None] + np.arange(math.ceil(2 * radius))  # (n, k)
    weights = np.maximum(0.0, 1.0 - np.abs(taps - centres[:, None]) / radius)
    weights /= weights.sum(axis=1, keepdims=True)
    sources = taps.clip(0, size - 1).astype(np.int64)
    out = np.empty((n, *pixels.shape[1:]), np.float32)
    for i in range(n):
        out[i] = np.tensordot(weights[i].astype(np.float32), pixels[sources[i]].astype(np.float32), 1)
    return out
