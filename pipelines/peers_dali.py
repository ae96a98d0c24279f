"""Contenders that run on DALI: ours, a plain pipeline as users write it, and two limits, which only decode."""

from collections.abc import Iterator
from itertools import count
from typing import Any

import numpy as np
import torch
import torch.utils.dlpack
from numpy.typing import NDArray
from nvidia.dali import fn, pipeline_def, types

from pipelines import augment
from pipelines.augment import Ints, Recipe
from pipelines.loader import TrainingBatches
from pipelines.order import Order
from pipelines.peers import Batches, Task
from pipelines.seat import Seat
from pipelines.shards import DataSet

_COLOUR_SHIFT = 0.1  # Krizhevsky et al. 2012, section 4.1
_LAST_STEP = 1 << 40  # far beyond any run

Encoded = list[NDArray[np.uint8]]


def ours(task: Task, batch: int, threads: int) -> Batches:
    data = DataSet.open(task.place)
    order = Order(first_groups(data.manifest.group_rows, task.images), batch, task.seed)
    seat = Seat(0, 1, torch.device("cpu"), threads)
    batches = TrainingBatches(data, order, _recipe(task, data), seat, 0, _LAST_STEP)
    try:
        for each in batches:
            yield each.images
    finally:
        batches.close()


def first_groups(group_rows: tuple[int, ...], rows: int) -> tuple[int, ...]:
    """The row groups that hold the first `rows` rows, the last one shortened."""
    starts = np.cumsum([0, *group_rows[:-1]])
    return tuple(min(n, rows - int(start)) for n, start in zip(group_rows, starts, strict=True) if start < rows)


def plain_dali(task: Task, batch: int, threads: int, depth: int, feed: str) -> Batches:
    """`feed`: DALI's own "readers.file", or "external_source" with files read in Python."""
    files = task.files
    batches = ([np.fromfile(files[i], np.uint8) for i in rows] for _, rows in _passes(task, batch))
    source = None if feed == "readers.file" else batches
    graph = _plain(task, source, **_options(task, batch, threads, depth))
    while True:
        (output,) = graph.run()
        yield torch.utils.dlpack.from_dlpack(output.as_tensor())


def decoder(task: Task, batch: int, threads: int, depth: int) -> Batches:
    """The limit of all that decode whole images: nothing else, from memory."""
    encoded = _encoded(task)
    graph = _whole(
        ([encoded[i] for i in rows] for _, rows in _passes(task, batch)), **_options(task, batch, threads, depth)
    )
    while True:
        yield graph.run()[0]


def region_decoder(task: Task, batch: int, threads: int, depth: int) -> Batches:
    """The limit of ours: the windows that it needs, from memory."""
    data = DataSet.open(task.place)
    recipe, encoded = _recipe(task, data), _encoded(task)
    widths, heights = data.read_sizes(0, task.images)

    def batches() -> Iterator[tuple[Encoded, Ints, Ints]]:
        for epoch, rows in _passes(task, batch):
            w, h = widths[rows], heights[rows]
            draws = augment.training_draws(recipe, task.seed, epoch, rows, w, h)
            windows = augment.source_windows(draws.sizes, draws.corners, task.crop, w, h)
            yield [encoded[i] for i in rows], windows.starts.astype(np.int32), windows.extents.astype(np.int32)

    graph = _regions(batches(), **_options(task, batch, threads, depth))
    while True:
        yield graph.run()[0]


def _recipe(task: Task, data: DataSet) -> Recipe:
    assert data.manifest.statistics is not None
    return Recipe(task.scale, task.crop, True, _COLOUR_SHIFT, task.pixel_std, data.manifest.statistics)


def _encoded(task: Task) -> Encoded:
    return [np.fromfile(file, np.uint8) for file in task.files]


def _passes(task: Task, batch: int) -> Iterator[tuple[int, Ints]]:
    """(epoch, rows of a batch), without end."""
    for epoch in count():
        for rows in np.random.default_rng(epoch).permutation(task.images).reshape(-1, batch):
            yield epoch, rows


def _options(task: Task, batch: int, threads: int, depth: int) -> dict[str, Any]:
    return {
        "batch_size": batch,
        "num_threads": threads,
        "device_id": None,
        "prefetch_queue_depth": depth,
        "seed": task.seed,
        "exec_dynamic": True,
    }


def _decoded(encoded: Any) -> Any:
    return fn.decoders.image(encoded, device="cpu", output_type=types.RGB, adjust_orientation=False)


@pipeline_def
def _plain(task: Task, source: Iterator[Encoded] | None) -> Any:
    if source is None:
        encoded, _ = fn.readers.file(files=task.files, shuffle_after_epoch=True)
    else:
        encoded = fn.external_source(source=source, batch=True, dtype=types.UINT8)
    low, high = task.scale
    shorter = fn.random.uniform(values=[float(s) for s in range(low, high + 1)])
    images = fn.resize(_decoded(encoded), resize_shorter=shorter, interp_type=types.INTERP_LINEAR, antialias=True)
    return fn.crop_mirror_normalize(
        images,
        crop=(task.crop, task.crop),
        crop_pos_x=fn.random.uniform(range=(0.0, 1.0)),
        crop_pos_y=fn.random.uniform(range=(0.0, 1.0)),
        mirror=fn.random.coin_flip(),
        mean=list(task.mean),
        std=[task.pixel_std] * 3,
        dtype=types.FLOAT,
        output_layout="CHW",
    )


@pipeline_def
def _whole(source: Iterator[Encoded]) -> Any:
    return _decoded(fn.external_source(source=source, batch=True, dtype=types.UINT8))


@pipeline_def
def _regions(source: Iterator[tuple[Encoded, Ints, Ints]]) -> Any:
    encoded, starts, shapes = fn.external_source(
        source=source, num_outputs=3, batch=True, dtype=[types.UINT8, types.INT32, types.INT32]
    )
    return fn.decoders.image_slice(
        encoded, device="cpu", start=starts, shape=shapes, axes=(0, 1), output_type=types.RGB, adjust_orientation=False
    )
