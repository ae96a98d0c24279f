"""The DALI graphs: encoded images to tensors. Nothing in them draws.

`crops` feeds training and validation, `wholes` dense tests. Windows, sizes, flips and colours come in with the images
(see `augment`), so a graph has no state and the same input gives the same pixels. On a GPU all is done by DALI's own
operators; on the CPU the resampling is `resample`'s.
"""

from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar

import numpy as np
import torch
import torch.utils.dlpack
from numpy.typing import NDArray
from nvidia.dali import fn, math, pipeline_def, types
from nvidia.dali.ops import python_op_factory  # type: ignore[attr-defined]
from nvidia.dali.pipeline import Pipeline
from torch import Tensor

from pipelines import resample
from pipelines.augment import Draws, Ints, Windows
from pipelines.decoding import Decoding
from pipelines.errors import first_line

_LARGEST_SIDE = 1 << 24  # pixels; beyond what any format has
_SAFE = Decoding()

Graph: TypeAlias = Pipeline
R = TypeVar("R")
Encoded = list[NDArray[np.uint8]]
Floats = NDArray[np.float32]
Places = NDArray[np.int32]
Feed = tuple[
    Encoded,  # n encoded images
    Places,  # (n, 2) the window to decode: its y and x,
    Places,  # (n, 2) its height and width
    Floats,  # (n, 2) the crop in the window, in source pixels: from y, x
    Floats,  # (n, 2) to y, x
    Places,  # (n, 1) 1 for a flip
    Floats,  # (n, 3) RGB to subtract
]
WholeFeed = tuple[Encoded, Places, Places, Floats, Floats, Floats]  # as above, and (n, 2) the output's height, width


def feed(encoded: Encoded, draws: Draws, windows: Windows) -> Feed:
    """What the source of `crops` returns for a batch."""
    return *_places(encoded, windows), draws.flips.astype(np.int32)[:, None], draws.subtract


def feed_wholes(encoded: Encoded, sizes: Ints, windows: Windows) -> WholeFeed:
    """What the source of `wholes` returns for a batch. `sizes`: (n, 2) height, width of the output."""
    return *_places(encoded, windows), sizes.astype(np.float32)


def _places(encoded: Encoded, windows: Windows) -> tuple[Encoded, Places, Places, Floats, Floats]:
    return (
        encoded,
        windows.starts.astype(np.int32),
        windows.extents.astype(np.int32),
        windows.crop_starts.astype(np.float32),
        windows.crop_ends.astype(np.float32),
    )


def crops(
    source: Callable[[], Feed],
    crop: int,
    pixel_std: float,
    batch: int,
    threads: int,
    device_id: int | None,
    decoding: Decoding = _SAFE,
) -> Graph:
    """Output: (n, 3, crop, crop) float32, RGB, n <= batch. `device_id`: the GPU, or None for the CPU.

    Where `decoding` is of whole images, so have the windows to be: see `Windows.whole`. The arrays that `source`
    returns are not copied: they have to live until their batch is out.
    """
    options = _options(batch, threads, device_id, decoding)
    return _crops(source, crop, pixel_std, device_id is not None, decoding, **options)


def wholes(
    source: Callable[[], WholeFeed],
    mean: tuple[float, float, float],
    pixel_std: float,
    batch: int,
    threads: int,
    device_id: int | None,
    decoding: Decoding = _SAFE,
) -> Graph:
    """Output: (n, 3, H, W) float32, RGB, the middle of the rescaled image; one size for all images of a batch.

    For the windows, and the arrays that `source` returns, see `crops`.
    """
    options = _options(batch, threads, device_id, decoding)
    return _wholes(source, list(mean), pixel_std, device_id is not None, decoding, **options)


def run(graph: Graph, device: torch.device) -> Tensor:
    """The next batch. On the CPU it lies in memory of the graph's, which the call after this one uses again. On a GPU
    it is for the current stream, and has to be held until that has read it: DALI gives memory that nobody holds to the
    next batches, which it makes on a stream of its own.

    Raises StopIteration at the end, and RuntimeError: see `is_refusal`.
    """
    stream = torch.cuda.current_stream(device) if device.type == "cuda" else None
    (output,) = graph.run(stream)
    return torch.utils.dlpack.from_dlpack(output.as_tensor())


class Refused(Exception):
    """Why the decoder does not take an image of a batch."""


def pixels(encoded: Encoded) -> list[NDArray[np.uint8]]:
    """The images as they are decoded on the CPU, (height, width, 3) each. Raises Refused."""
    n = len(encoded)
    whole = np.zeros((n, 2), np.int32), np.full((n, 2), _LARGEST_SIDE, np.int32)
    return _run_decoder(encoded, *whole, 1, None, lambda output: [np.array(output[i]) for i in range(n)])


def refused(encoded: Encoded, windows: Windows, threads: int, device_id: int | None) -> dict[int, str]:
    """The positions of the images whose windows the decoder does not take, and why."""
    n = len(encoded)
    if not n:
        return {}
    try:
        _run_decoder(*_places(encoded, windows)[:3], threads, device_id, lambda output: None)
    except Refused as refusal:
        if n == 1:
            return {0: str(refusal)}
    else:
        return {}
    found: dict[int, str] = {}
    for half in (slice(None, n // 2), slice(n // 2, None)):
        for i, why in refused(encoded[half], windows[half], threads, device_id).items():
            found[(half.start or 0) + i] = why
    return found


def is_refusal(error: RuntimeError) -> bool:
    """Whether a graph has failed since it could not decode an image; it cannot be used again."""
    operator = str(error).partition("encountered:")[0]
    return "decoders" in operator or "peek_image_shape" in operator


def reason(error: RuntimeError) -> str:
    """Of a graph's failure, in one line: what its operator says, and not where that is."""
    said = str(error).partition("encountered:")[2] or str(error)
    return first_line(RuntimeError(said)).rstrip(" :")


def stop(graph: Graph) -> None:
    """Waits for what the graph is doing, after which it does not read its input any more, and cannot be used."""
    graph._shutdown()


def _run_decoder(
    encoded: Encoded,
    starts: Places,
    extents: Places,
    threads: int,
    device_id: int | None,
    use: Callable[[Any], R],
) -> R:
    """What `use` makes of the decoded windows of one batch. Raises Refused."""
    options = {**_options(len(encoded), threads, device_id, _SAFE), "prefetch_queue_depth": 1}
    graph = _decoder(lambda: (encoded, starts, extents), device_id is not None, **options)
    try:
        (output,) = graph.run()
        return use(output)
    except RuntimeError as error:
        if not is_refusal(error):
            raise
        raise Refused(reason(error)) from error
    finally:
        stop(graph)


def _options(batch: int, threads: int, device_id: int | None, decoding: Decoding) -> dict[str, Any]:
    return {
        "batch_size": batch,
        "num_threads": threads if decoding.threads is None else decoding.threads,
        "device_id": device_id,
        "prefetch_queue_depth": decoding.depth,
        "seed": 0,  # nothing is drawn, but DALI would take one from the clock
        # On the CPU the dynamic executor allocates for each batch anew, and fragments the heap: 26 % more in 60 epochs.
        "exec_dynamic": device_id is not None,
    }


def _inputs(source: Callable[[], Any], dtypes: list[Any], mixed: bool) -> Any:
    """Not copied on the CPU. A GPU may still be reading when a batch is out, so for it they are."""
    return fn.external_source(source=source, num_outputs=len(dtypes), batch=True, dtype=dtypes, no_copy=not mixed)


def _decoded(encoded: Any, starts: Any, extents: Any, mixed: bool, decoding: Decoding) -> Any:
    """Windows of images, or whole images, decoded to RGB; EXIF orientation is ignored.

    Sizes are peeked at first, so that a file that is no image is refused there: the decoder may crash on it, since of
    its own threads it leaves some at work when it gives up (DALI 2.4, image_decoder.h).
    """
    sizes = fn.peek_image_shape(encoded, adjust_orientation=False, dtype=types.INT32)[:2]
    options: dict[str, Any] = {"device": "cpu", "output_type": types.RGB, "adjust_orientation": False}
    if mixed:
        options |= {"device": "mixed", "hw_decoder_load": decoding.hardware, "jpeg_fancy_upsampling": decoding.smooth}
    if not decoding.regions:  # by an operator that knows no windows, since engines may not know them either
        # 1.0, but not before the size is known; of windows, too, or DALI would warn of inputs without a use.
        same = fn.cast((sizes[:1] + starts[:1] + extents[:1]) * 0 + 1, dtype=types.FLOAT)
        return fn.decoders.image(fn.reinterpret(encoded, rel_shape=same), **options)
    return fn.decoders.image_slice(encoded, starts, math.min(extents, sizes - starts), axis_names="HW", **options)


@pipeline_def
def _decoder(source: Callable[[], Any], mixed: bool) -> Any:
    encoded, starts, extents = _inputs(source, [types.UINT8, types.INT32, types.INT32], mixed)
    return _decoded(encoded, starts, extents, mixed, _SAFE)


@pipeline_def
def _crops(source: Callable[[], Feed], crop: int, pixel_std: float, mixed: bool, decoding: Decoding) -> Any:
    ints, floats = types.INT32, types.FLOAT
    encoded, starts, extents, start, end, flip, subtract = _inputs(
        source, [types.UINT8, ints, ints, floats, floats, ints, floats], mixed
    )
    images = _decoded(encoded, starts, extents, mixed, decoding)
    if not mixed:
        return _resampled(
            images, start, end, flip, subtract, pixel_std, types.Constant(np.zeros((crop, crop), np.uint8))
        )
    images = _rescaled(images, [crop, crop], start, end)
    return _tensor(images, subtract, pixel_std, mirror=flip)


def _resampled(images: Any, start: Any, end: Any, flip: Any, subtract: Any, pixel_std: float, frame: Any) -> Any:
    """By `resample.crop`, in the operator beneath DALI's NumbaFunction, which would compile its own calls anew in each
    process. `python_op_factory` and NumbaFuncImpl are not documented; DALI is pinned. `frame`: see `callbacks` there.
    """
    run, setup = resample.callbacks()
    floats = types.FLOAT
    call = python_op_factory("Resample", "NumbaFuncImpl")(
        run_fn=run.address,
        setup_fn=setup.address,
        out_types=[floats],
        in_types=[types.UINT8, floats, types.INT32, floats, floats, types.UINT8],
        outs_ndim=[3],
        ins_ndim=[3, 1, 1, 1, 1, 2],
    )
    return call(images, fn.cat(start, end), flip, subtract, _constant([1.0 / pixel_std]), frame)


def _constant(values: list[float]) -> Any:
    return types.Constant(np.array(values, np.float32))


@pipeline_def
def _wholes(
    source: Callable[[], WholeFeed], mean: list[float], pixel_std: float, mixed: bool, decoding: Decoding
) -> Any:
    ints, floats = types.INT32, types.FLOAT
    encoded, starts, extents, start, end, sizes = _inputs(
        source, [types.UINT8, ints, ints, floats, floats, floats], mixed
    )
    images = _decoded(encoded, starts, extents, mixed, decoding)
    if not mixed:
        frame = fn.zeros(shape=fn.cast(sizes, dtype=ints), dtype=types.UINT8)
        return _resampled(images, start, end, types.Constant(np.zeros(1, np.int32)), _constant(mean), pixel_std, frame)
    return _tensor(_rescaled(images, sizes, start, end), mean, pixel_std)


def _rescaled(images: Any, size: Any, start: Any, end: Any) -> Any:
    """By an antialiased linear filter, in training and testing alike; not rounded to bytes."""
    return fn.resize(
        images,
        size=size,
        roi_start=start,
        roi_end=end,
        interp_type=types.INTERP_LINEAR,
        antialias=True,
        dtype=types.FLOAT,
    )


def _tensor(images: Any, subtract: Any, pixel_std: float, **options: Any) -> Any:
    return fn.crop_mirror_normalize(
        images, mean=subtract, std=[pixel_std] * 3, dtype=types.FLOAT, output_layout="CHW", **options
    )
