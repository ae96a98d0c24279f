"""Large originals made smaller, once, when a data set is made: decoding them would cost more than training on them.

The result is JPEG as cameras and ImageNet have it, colours at half resolution (4:2:0), by default of quality 90: at 512
pixels it then decodes as fast as ImageNet's own images. Quality 95 takes 15 % more of the input's time, 4:4:4 another
20 % (LOG.md, 2026-11-25).
"""

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from pipelines.audit import opened
from pipelines.augment import rescaled

_ORIENTATION = 0x0112  # EXIF and TIFF
_DRAFT = 2  # JPEG is decoded at a half, a quarter or an eighth where that leaves this many times the pixels needed


@dataclass(frozen=True)
class Shrink:
    """`shorter_side`: in pixels; of larger images it becomes this. `quality`: of JPEG, 1 to 100."""

    shorter_side: int
    quality: int = 90


def shrunk(encoded: bytes, to: Shrink) -> bytes:
    """The file itself where it is small already, else a smaller one, upright or not as its pixels are stored.

    Raises Refusal: not a whole image.
    """
    with opened(encoded) as file:
        width, height = file.size
        if min(width, height) <= to.shorter_side or (file.format == "TIFF" and _ORIENTATION in file.getexif()):
            return encoded  # Pillow turns TIFF's pixels, which nothing else here does
        ((new_height, new_width),) = rescaled(np.array([width]), np.array([height]), to.shorter_side).tolist()
        draft = file.draft("RGB", (_DRAFT * new_width, _DRAFT * new_height))
        box = draft[1] if draft else (0, 0, width, height)
        small = _rgb(file).resize((new_width, new_height), Image.Resampling.LANCZOS, box)
    small.info.clear()
    out = io.BytesIO()
    small.save(out, "JPEG", quality=to.quality, subsampling="4:2:0")
    return out.getvalue()


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits, which Pillow would cut off at 255
        return Image.fromarray(((np.asarray(image, np.int64) + 128) // 257).astype(np.uint8)).convert("RGB")
    return image.convert("RGB")
