"""One file's verdict, before it enters a data set: can it be trained on, and what are its pixels' statistics?

A file is decoded twice. Pillow tells damaged files from whole ones (DALI decodes flipped bits without complaint);
DALI's own decoder then has to take it too, since one image that it refuses costs a whole batch in training.
"""

import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from nvidia.dali import fn, pipeline_def, types
from PIL import Image, UnidentifiedImageError

# Pillow's names of the formats that are shown to DALI's decoder, which has the last word on each file.
FORMATS = (
    "JPEG",
    "PNG",
    "BMP",
    "WEBP",
    "TIFF",
    "PPM",
    "JPEG2000",
    "MPO",
)  # MPO: JPEG of several pictures, as many cameras write it


@dataclass(frozen=True)
class Verdict:
    """`reason` is None for a good image; its pixel sums are then in grey levels over `width * height` pixels."""

    reason: str | None
    width: int = 0
    height: int = 0
    mean: NDArray[np.float64] | None = None  # (3,)
    second_moment: NDArray[np.float64] | None = None  # (3, 3), the mean of x x^T


def examine(encoded: bytes, statistics: bool) -> Verdict:
    """Pillow's verdict on one file."""
    if not encoded:
        return Verdict("the file is empty")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(encoded)) as image:
                if image.format not in FORMATS:
                    return Verdict(f"{image.format} is not among the formats {', '.join(FORMATS)}")
                width, height = image.size
                rgb = image.convert("RGB")
    except UnidentifiedImageError:
        return Verdict("not an image")
    except Exception as error:  # Pillow's decoders raise whatever their format's code raises; the reason is kept
        return Verdict(f"cannot be decoded: {error}")
    if not statistics:
        return Verdict(None, width, height)
    pixels = np.asarray(rgb).reshape(-1, 3).astype(np.float64)
    return Verdict(None, width, height, pixels.mean(axis=0), pixels.T @ pixels / len(pixels))


def refused_by_dali(encoded: Sequence[bytes], threads: int) -> list[int]:
    """The positions of the images that DALI's CPU decoder does not take."""
    if not encoded or _decodes(encoded, threads):
        return []
    if len(encoded) == 1:
        return [0]
    half = len(encoded) // 2
    second = refused_by_dali(encoded[half:], threads)
    return refused_by_dali(encoded[:half], threads) + [half + i for i in second]


@pipeline_def
def _decoder(encoded: list[NDArray[np.uint8]]):  # type: ignore[no-untyped-def]
    files = fn.external_source(source=lambda: encoded, batch=True, dtype=types.UINT8)
    return fn.decoders.image(files, device="cpu", output_type=types.RGB, adjust_orientation=False)


def _decodes(encoded: Sequence[bytes], threads: int) -> bool:
    arrays = [np.frombuffer(image, np.uint8) for image in encoded]
    pipeline = _decoder(arrays, batch_size=len(arrays), num_threads=threads, device_id=None, prefetch_queue_depth=1)
    try:
        pipeline.build()
        pipeline.run()
    except RuntimeError:  # a failed pipeline cannot be used again: hence one for each try
        return False
    return True
