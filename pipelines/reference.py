"""A slow pipeline of Pillow and NumPy, written independently of the DALI graphs: the oracle that they are tested by."""

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def rescale(encoded: bytes, shorter: int) -> Image.Image:
    """Decoded as RGB and rescaled, with an antialiased linear filter, so that the shorter side has `shorter` pixels."""
    image = Image.open(io.BytesIO(encoded)).convert("RGB")
    width, height = image.size
    new = [int(side * shorter / min(width, height) + 0.5) for side in (width, height)]
    return image.resize((new[0], new[1]), Image.Resampling.BILINEAR)


def crop(
    encoded: bytes, shorter: int, corner: tuple[int, int], side: int, flip: bool, subtract: NDArray[np.float32]
) -> NDArray[np.float32]:
    """(3, side, side), RGB. `corner`: y and x of the upper left corner in the rescaled image."""
    y, x = corner
    pixels = np.asarray(rescale(encoded, shorter).crop((x, y, x + side, y + side)), dtype=np.float32)
    if flip:
        pixels = pixels[:, ::-1]
    return (pixels - subtract).transpose(2, 0, 1)
