"""What the net is fed, to look at: crops as the loader delivers them, and where in their images they come from."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from pipelines import augment
from pipelines.augment import Draws, Ints, Recipe
from pipelines.errors import SettingsError
from pipelines.loader import TrainingBatches, ValidationBatches
from pipelines.location import public
from pipelines.order import Order
from pipelines.schema import Statistics
from pipelines.seat import Seat
from pipelines.shards import DataSet
from pipelines.stream import Batch

_SEAT = Seat(0, 1, torch.device("cpu"), 2)
_NO_STATISTICS = Statistics((0.0,) * 3, ((0.0,) * 3,) * 3, (0.0,) * 3)
_IMAGES_MOST = 1000  # they are one batch, which has to fit in memory

Box = tuple[float, float, float, float]  # left, top, right, bottom in source pixels


@dataclass(frozen=True, kw_only=True)
class View:
    """What is looked at: the first rows * columns images of an epoch (counted from 1), treated as in training.

    `scale`: smallest and largest S; `crop`: side in pixels; `origins`: the images that crops come from are shown too.
    Raises SettingsError.
    """

    scale: tuple[int, int]
    crop: int
    flip: bool
    colour_shift: float
    seed: int
    epoch: int
    rows: int
    columns: int
    origins: bool

    def __post_init__(self) -> None:
        low, high = self.scale
        for name, value in (
            ("--scale", low),
            ("--crop", self.crop),
            ("--rows", self.rows),
            ("--columns", self.columns),
        ):
            if value < 1:
                raise SettingsError(f"{name} {value}: has to be 1 or more")
        if low > high:
            raise SettingsError(f"--scale {low} {high}: the smallest S is above the largest")
        if self.crop > low:
            raise SettingsError(f"--crop {self.crop}: is larger than the smallest S, {low}")
        if not 0.0 <= self.colour_shift < float("inf"):
            raise SettingsError(f"--colour-shift {self.colour_shift}: has to be 0 or more")
        if not 0 <= self.seed < 2**64:
            raise SettingsError(f"--seed {self.seed}: has to be 0 or more, and below 2**64")
        if not 1 <= self.epoch <= 2**32:
            raise SettingsError(f"--epoch {self.epoch}: has to be 1 or more, and at most 2**32")
        if self.images > _IMAGES_MOST:
            raise SettingsError(f"--rows {self.rows} --columns {self.columns}: are more than {_IMAGES_MOST} images")

    @property
    def images(self) -> int:
        return self.rows * self.columns


@dataclass(frozen=True)
class Origin:
    """The image that a crop comes from, encoded; its part that is decoded, and the crop's place."""

    encoded: bytes
    width: int
    height: int
    decoded: Box
    crop: Box


@dataclass(frozen=True)
class Cell:
    """One crop. `shorter`: S; `corner`: y and x in the rescaled image; `reason`: why a stand-in is shown, or None."""

    pixels: NDArray[np.uint8]  # (crop, crop, 3) RGB: what is fed, the mean added back
    label: int
    class_name: str
    shorter: int
    corner: tuple[int, int]
    flipped: bool
    reason: str | None
    origin: Origin | None


def cells(data: DataSet, view: View) -> list[Cell]:
    """As many as there are, in the order in which they are fed. Raises DataError."""
    batches = list(_batches(data, view))
    rows = np.concatenate([batch.rows.numpy() for batch in batches])[: view.images]
    labels = np.concatenate([batch.labels.numpy() for batch in batches])
    fed = np.concatenate([batch.images.numpy() for batch in batches])
    reasons = {image.row: image.reason for batch in batches for image in batch.replaced}
    sizes = [data.read_sizes(row, row + 1) for row in rows.tolist()]
    widths, heights = (np.concatenate(each) for each in zip(*sizes, strict=True))
    draws = _draws(data, view, rows, widths, heights)
    origins = _origins(data, view, rows, draws, widths, heights) if view.origins else {}
    mean = np.asarray(_recipe(data, view).statistics.mean_rgb)
    return [
        Cell(
            pixels=np.clip(np.rint(fed[i].transpose(1, 2, 0) + mean), 0, 255).astype(np.uint8),
            label=int(labels[i]),
            class_name=data.manifest.classes[labels[i]],
            shorter=int(draws.sizes[i].min()),
            corner=(int(draws.corners[i, 0]), int(draws.corners[i, 1])),
            flipped=bool(draws.flips[i]),
            reason=reasons.get(row),
            origin=origins.get(row),
        )
        for i, row in enumerate(rows.tolist())
    ]


def header(data: DataSet, view: View, shown: int) -> list[str]:
    """What a sheet of `shown` cells shows, in parts."""
    manifest = data.manifest
    parts = [public(str(data.location)), f"{shown} of {manifest.rows} images, {len(manifest.classes)} classes"]
    low, high = _recipe(data, view).scale
    parts += [f"S {low}" if low == high else f"S {low} to {high}", f"crop {view.crop}"]
    if not _trains(data):
        return [*parts, "middle crops, nothing subtracted: the set has no mean colour, so is not a training set"]
    flip = "flip" if view.flip else "no flip"
    colour = f"colour shift {view.colour_shift:g}" if view.colour_shift else "no colour shift"
    return [*parts, f"epoch {view.epoch}", f"seed {view.seed}", flip, colour]


def _trains(data: DataSet) -> bool:
    return data.manifest.statistics is not None


def _recipe(data: DataSet, view: View) -> Recipe:
    """Of a training set as it is trained on, of another as it is validated with: at the middle of S's range."""
    if data.manifest.statistics is not None:
        return Recipe(view.scale, view.crop, view.flip, view.colour_shift, 1.0, data.manifest.statistics)
    middle = (view.scale[0] + view.scale[1]) // 2
    return Recipe((middle, middle), view.crop, False, 0.0, 1.0, _NO_STATISTICS)


def _batches(data: DataSet, view: View) -> Iterator[Batch]:
    """Which images come first in an epoch does not depend on the size of a batch, so one of all of them is taken."""
    if not _trains(data):
        taken = 0
        with closing(ValidationBatches(data, _recipe(data, view), _SEAT)) as validation:
            for batch in validation:
                yield replace(batch, images=batch.images.clone())
                taken += len(batch.rows)
                if taken >= view.images:
                    return
        return
    order = Order.of(data.manifest, view.images, view.seed)
    step = (view.epoch - 1) * order.steps_per_epoch
    with closing(TrainingBatches(data, order, _recipe(data, view), _SEAT, step, step + 1)) as training:
        for batch in training:
            yield replace(batch, images=batch.images.clone())


def _draws(data: DataSet, view: View, rows: Ints, widths: Ints, heights: Ints) -> Draws:
    recipe = _recipe(data, view)
    if not _trains(data):
        return augment.centre_draws(recipe, widths, heights)
    return augment.training_draws(recipe, view.seed, view.epoch - 1, rows, widths, heights)


def _origins(data: DataSet, view: View, rows: Ints, draws: Draws, widths: Ints, heights: Ints) -> dict[int, Origin]:
    """By rows; one row group is held at a time."""
    windows = augment.source_windows(draws.sizes, draws.corners, view.crop, widths, heights)
    decoded = np.concatenate([windows.starts, windows.starts + windows.extents], axis=1)
    crops = np.concatenate([windows.starts + windows.crop_starts, windows.starts + windows.crop_ends], axis=1)
    groups = data.groups_of(rows)
    found: dict[int, Origin] = {}
    for number in np.unique(groups).tolist():
        group = data.read_group(number)
        for i in np.flatnonzero(groups == number).tolist():
            encoded = bytes(group.encoded[rows[i] - data.group_starts[number]])
            found[int(rows[i])] = Origin(encoded, int(widths[i]), int(heights[i]), _box(decoded[i]), _box(crops[i]))
    return found


def _box(corners: NDArray[np.float64] | Ints) -> Box:
    top, left, bottom, right = (float(v) for v in corners)
    return left, top, right, bottom
