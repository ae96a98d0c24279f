"""The CPU's resampling: a part of a rescaled image straight from the decoded window, compiled for this processor.

DALI's own CPU operators do the same in two steps with a byte image between them, at three to four times the time
(LOG.md, 2026-11-25); on a GPU they are the ones that are used. The filter is theirs: antialiased linear, which is a
triangle of one source pixel to each side, or of as many as an output pixel covers, if that is more; pixels beyond
the border are those at the border.
"""

import math
import pickle
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numba
import numpy as np
from numba import carray  # type: ignore[attr-defined]

# The C functions that DALI's operator calls (DALI 2.4, numba_func.cc): `_setup` once a batch, `_run` for each image, in
# DALI's threads. Both have what concerns the outputs first, then the same of the inputs.
_SHAPES = "CPointer(CPointer(int64)), CPointer(int32), int32"  # shapes, their lengths, how many
_TENSORS = f"CPointer(voidptr), {_SHAPES}"
_SETUP = f"void({_SHAPES}, {_SHAPES}, int32)"  # a shape for each tensor and image; the number of images
_RUN = f"void({_TENSORS}, {_TENSORS})"

_NO_CACHE = (RuntimeError, OSError, EOFError, pickle.UnpicklingError)  # no folder, or not to be written; spoilt files


@lru_cache
def callbacks() -> tuple[Any, Any]:
    """`_run` and `_setup`, compiled, for a DALI operator, which takes their `address`.

    Its inputs, of which it may have six: image; start and end (4,), flip, subtract, factor (1,) as `crop` has them; and
    a frame (H, W), whose shape is all that matters, since shapes of outputs follow from shapes alone. Its output:
    (3, H, W). As they close over nothing, one compilation is for all graphs and processes. Numba keeps it on disk, by
    processor and this file's content, so that nothing in it may come from another file.
    """
    return _compiled(_run, _RUN), _compiled(_setup, _SETUP)


def _compiled(function: Callable[..., None], signature: str) -> Any:
    try:
        return numba.cfunc(signature, cache=True)(function)
    except _NO_CACHE:
        return numba.cfunc(signature)(function)


def _setup(out_shapes, out_ndims, outs, in_shapes, in_ndims, ins, samples):  # type: ignore[no-untyped-def]
    for i in range(samples):
        shape, frame = out_shapes[i], in_shapes[5 * samples + i]
        shape[0], shape[1], shape[2] = 3, frame[0], frame[1]


def _run(outs, out_shapes, out_ndims, n_outs, ins, in_shapes, in_ndims, n_ins):  # type: ignore[no-untyped-def]
    shape, frame = in_shapes[0], in_shapes[5]
    out = carray(outs[0], (3, frame[0], frame[1]), np.float32)
    image = carray(ins[0], (shape[0], shape[1], 3), np.uint8)
    place, flip = carray(ins[1], 4, np.float32), carray(ins[2], 1, np.int32)
    subtract, factor = carray(ins[3], 3, np.float32), carray(ins[4], 1, np.float32)
    crop(out, image, place[:2], place[2:], flip, subtract, factor[0])


@numba.njit(nogil=True)  # type: ignore[untyped-decorator]
def _taps(first, weights, start, step, support, size, flip):  # type: ignore[no-untyped-def]
    """For each of n output pixels: the first of the source pixels that it is made of, and their (k, n) weights."""
    radius = max(1.0, step)
    k, n = weights.shape
    for i in range(n):
        centre = start + (i + 0.5) * step - 0.5
        nearest = math.ceil(centre - radius)
        lowest = min(max(nearest, 0), size - k)
        o = n - 1 - i if flip else i
        first[o] = lowest
        weights[:, o] = 0.0
        total = 0.0
        for t in range(nearest, nearest + support):
            weight = max(0.0, 1.0 - abs(t - centre) / radius)
            weights[min(max(t, 0), size - 1) - lowest, o] += weight
            total += weight
        for j in range(k):
            weights[j, o] /= total


@numba.njit(nogil=True, fastmath=True)  # type: ignore[untyped-decorator]
def crop(out, image, start, end, flip, subtract, factor):  # type: ignore[no-untyped-def]
    """Fills `out` (3, H, W) float32 with (resampled - subtract) * factor.

    `image` (h, w, 3) uint8; the part of it that becomes `out` lies between `start` and `end` (y, x), in source pixels
    and fractions of them. `flip` (1,): not 0 to exchange left and right. `subtract` (3,).
    """
    height, width, _ = image.shape
    rows, columns = out.shape[1], out.shape[2]
    step_y, step_x = (end[0] - start[0]) / rows, (end[1] - start[1]) / columns
    support_y, support_x = math.ceil(2.0 * max(1.0, step_y)), math.ceil(2.0 * max(1.0, step_x))
    taps_y, taps_x = min(support_y, height), min(support_x, width)
    first_y, first_x = np.empty(rows, np.int32), np.empty(columns, np.int32)
    weights_y, weights_x = np.empty((taps_y, rows), np.float32), np.empty((taps_x, columns), np.float32)
    _taps(first_y, weights_y, start[0], step_y, support_y, height, False)
    _taps(first_x, weights_x, start[1], step_x, support_x, width, flip[0] != 0)
    weights_x *= np.float32(factor)
    pixels = image.reshape(height, width * 3)
    mixed = np.empty(width * 3, np.float32)  # source rows, weighted
    planes = np.empty((3, width), np.float32)  # the same, by colour
    for y in range(rows):
        source = first_y[y]
        weight = weights_y[0, y]
        for j in range(width * 3):
            mixed[j] = weight * pixels[source, j]
        for k in range(1, taps_y):
            weight = weights_y[k, y]
            if weight != 0.0:
                for j in range(width * 3):
                    mixed[j] += weight * pixels[source + k, j]
        for x in range(width):
            planes[0, x] = mixed[3 * x]
            planes[1, x] = mixed[3 * x + 1]
            planes[2, x] = mixed[3 * x + 2]
        for c in range(3):
            plane, row = planes[c], out[c, y]
            offset = -subtract[c] * np.float32(factor)
            if taps_x == 2:  # fixed numbers of taps are what the compiler makes the most of
                for x in range(columns):
                    i = first_x[x]
                    row[x] = offset + weights_x[0, x] * plane[i] + weights_x[1, x] * plane[i + 1]
            elif taps_x == 3:
                for x in range(columns):
                    i = first_x[x]
                    row[x] = (
                        offset
                        + weights_x[0, x] * plane[i]
                        + weights_x[1, x] * plane[i + 1]
                        + weights_x[2, x] * plane[i + 2]
                    )
            else:
                row[:] = offset
                for k in range(taps_x):
                    for x in range(columns):
                        row[x] += weights_x[k, x] * plane[first_x[x] + k]
