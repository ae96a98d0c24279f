"""The DALI graphs: encoded images to tensors. One definition for GPU and CPU; nothing in them draws.

`crops` feeds training and validation, `wholes` dense tests. Sizes, corners, flips and colours come in with the
images (see `augment`), so a graph has no state and the same input gives the same pixels.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from nvidia.dali import fn, pipeline_def, types
from nvidia.dali.pipeline import Pipeline

from pipelines.augment import Draws, Ints

Encoded = list[NDArray[np.uint8]]
Floats = NDArray[np.float32]
Feed = tuple[
    Encoded,  # n encoded images
    Floats,  # (n, 2) height, width after the rescale
    Floats,  # (n,) the crop's y and
    Floats,  # (n,) x, each as a share of the free space
    NDArray[np.int32],  # (n,) 1 for a flip
    Floats,  # (n, 3) RGB to subtract
]
WholeFeed = tuple[Encoded, Floats, Floats, Floats, Floats]  # as above up to x, and (n, 2) height, width of the crop


def feed(encoded: Encoded, draws: Draws, crop: int) -> Feed:
    """What the source of `crops` returns for a batch. `crop`: the side that is cut out."""
    y, x = _shares(draws.corners, draws.sizes - crop)
    return encoded, draws.sizes.astype(np.float32), y, x, draws.flips.astype(np.int32), draws.subtract


def feed_wholes(encoded: Encoded, sizes: Ints, windows: Ints) -> WholeFeed:
    """What the source of `wholes` returns for a batch. `windows`: (n, 2) height, width to cut from the middle."""
    y, x = _shares((sizes - windows) // 2, sizes - windows)
    return encoded, sizes.astype(np.float32), y, x, windows.astype(np.float32)


def _shares(corners: Ints, free: Ints) -> Floats:
    """(2, n) y and x of crops as shares of the free space: DALI takes them so, and rounds back to whole pixels."""
    return np.ascontiguousarray((corners / np.maximum(free, 1)).T, dtype=np.float32)


def crops(
    source: Callable[[], Feed], crop: int, pixel_std: float, batch: int, threads: int, device_id: int | None
) -> Pipeline:
    """Output: (n, 3, crop, crop) float32, RGB, n <= batch. `device_id`: the GPU, or None for the CPU."""
    return _crops(source, crop, pixel_std, device_id is not None, **_options(batch, threads, device_id))


def wholes(
    source: Callable[[], WholeFeed],
    mean: tuple[float, float, float],
    pixel_std: float,
    batch: int,
    threads: int,
    device_id: int | None,
) -> Pipeline:
    """Output: (n, 3, H, W) float32, RGB, the middle of the rescaled image; one size for all images of a batch."""
    return _wholes(source, list(mean), pixel_std, device_id is not None, **_options(batch, threads, device_id))


def _options(batch: int, threads: int, device_id: int | None) -> dict[str, Any]:
    return {
        "batch_size": batch,
        "num_threads": threads,
        "device_id": device_id,
        # Depth 3 beat 2 on the CPU in a trial of the bare graph; the seed is given lest DALI takes one from the clock.
        "prefetch_queue_depth": 3 if device_id is None else 2,
        "seed": 0,
        "exec_dynamic": True,  # outputs live as long as somebody holds them, so they need no copy
    }


def rescaled(encoded: Any, sizes: Any, mixed: bool) -> Any:
    """Decoded to RGB (EXIF orientation ignored) and rescaled: antialiased linear, in training and testing alike."""
    images = fn.decoders.image(
        encoded, device="mixed" if mixed else "cpu", output_type=types.RGB, adjust_orientation=False
    )
    return fn.resize(images, size=sizes, interp_type=types.INTERP_LINEAR, antialias=True)


@pipeline_def
def _crops(source: Callable[[], Feed], crop: int, pixel_std: float, mixed: bool) -> Any:
    floats = types.FLOAT
    encoded, sizes, y, x, flips, subtract = fn.external_source(
        source=source, num_outputs=6, batch=True, dtype=[types.UINT8, floats, floats, floats, types.INT32, floats]
    )
    window = {"crop": (crop, crop), "crop_pos_y": y, "crop_pos_x": x, "mirror": flips}
    return _tensor(rescaled(encoded, sizes, mixed), subtract, pixel_std, **window)


@pipeline_def
def _wholes(source: Callable[[], WholeFeed], mean: list[float], pixel_std: float, mixed: bool) -> Any:
    encoded, sizes, y, x, windows = fn.external_source(
        source=source, num_outputs=5, batch=True, dtype=[types.UINT8, *[types.FLOAT] * 4]
    )
    return _tensor(rescaled(encoded, sizes, mixed), mean, pixel_std, crop=windows, crop_pos_y=y, crop_pos_x=x)


def _tensor(images: Any, subtract: Any, pixel_std: float, **window: Any) -> Any:
    return fn.crop_mirror_normalize(
        images, mean=subtract, std=[pixel_std] * 3, dtype=types.FLOAT, output_layout="CHW", **window
    )
