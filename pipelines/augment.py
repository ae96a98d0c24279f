"""What is done to an image on its way to the net: scale, crop, flip, colour. Pure functions of (seed, epoch, row).

S     the shorter side after the rescale, whole, uniform on {smallest, ..., largest} (VGG paper, section 3.1)
crop  one window of the net's input size, uniform over all places, both ends included
flip  left and right exchanged, one time in two
shift a colour added to the whole image: each principal component of the training set's colours times its
      standard deviation times a normal variate (Krizhevsky et al. 2012, section 4.1)
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipelines import keys, still
from pipelines.keys import Purpose
from pipelines.schema import Statistics

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Recipe:
    """`scale`: smallest and largest S in pixels; `crop`: side of the square that is cut out; `colour_shift`: the
    standard deviation of the normal variates, 0 for none; `pixel_std`: pixels are divided by it at the end."""

    scale: tuple[int, int]
    crop: int
    flip: bool
    colour_shift: float
    pixel_std: float
    statistics: Statistics

    def __post_init__(self) -> None:
        assert self.crop <= self.scale[0] <= self.scale[1], self


@dataclass(frozen=True)
class Draws:
    """For n images: the size after the rescale, the crop's upper left corner in it, the flip, what is subtracted."""

    sizes: Ints  # (n, 2) height, width
    corners: Ints  # (n, 2) y, x
    flips: NDArray[np.bool_]  # (n,)
    subtract: NDArray[np.float32]  # (n, 3) RGB: mean minus colour shift


def rescaled(widths: Ints, heights: Ints, shorter: Ints | int) -> Ints:
    """(n, 2) heights and widths after an isotropic rescale to the given shorter side, halves rounded up."""
    smallest = np.minimum(widths, heights)
    sides = np.stack([heights, widths], axis=1)
    target = np.broadcast_to(np.asarray(shorter, dtype=np.int64), smallest.shape)[:, None]
    return (2 * sides * target + smallest[:, None]) // (2 * smallest[:, None])


def training_draws(recipe: Recipe, seed: int, epoch: int, rows: Ints, widths: Ints, heights: Ints) -> Draws:
    """`rows`, `widths`, `heights`: (n,)."""
    low, high = recipe.scale
    place = keys.words(seed, epoch, rows, Purpose.SCALE_AND_CROP)
    look = keys.words(seed, epoch, rows, Purpose.FLIP_AND_COLOUR)
    sizes = rescaled(widths, heights, low + keys.below(place[:, 0], high - low + 1))
    free = sizes - recipe.crop + 1
    corners = np.stack([keys.below(place[:, 1], free[:, 0]), keys.below(place[:, 2], free[:, 1])], axis=1)
    flips = (look[:, 0] >> np.uint32(31)).astype(bool) & recipe.flip
    return Draws(sizes, corners, flips, _subtract(recipe, colour_shifts(recipe, place, look)))


def colour_shifts(recipe: Recipe, place: keys.Words, look: keys.Words) -> NDArray[np.float64]:
    """(n, 3) grey levels that are added to R, G and B."""
    a, b = keys.normal(look[:, 1], look[:, 2])
    c, _ = keys.normal(look[:, 3], place[:, 3])
    variates = np.stack([a, b, c], axis=1) * recipe.colour_shift
    s = recipe.statistics
    return variates * np.asarray(s.rgb_deviations) @ np.asarray(s.rgb_components)


def centre_draws(recipe: Recipe, widths: Ints, heights: Ints) -> Draws:
    """The middle crop, unflipped, at the smallest S: what validation during training looks at."""
    sizes = rescaled(widths, heights, recipe.scale[0])
    n = len(sizes)
    return Draws(sizes, (sizes - recipe.crop) // 2, np.zeros(n, bool), _subtract(recipe, np.zeros((n, 3))))


@dataclass(frozen=True)
class Windows:
    """For n images: the part of each that has to be decoded for its crop, and where in that part the crop lies."""

    starts: Ints  # (n, 2) y, x in source pixels
    extents: Ints  # (n, 2) height, width
    crop_starts: NDArray[np.float64]  # (n, 2) y, x in source pixels, counted from `starts`
    crop_ends: NDArray[np.float64]  # (n, 2)

    def __getitem__(self, which: slice | list[int]) -> "Windows":
        return Windows(self.starts[which], self.extents[which], self.crop_starts[which], self.crop_ends[which])

    def whole(self, widths: Ints, heights: Ints) -> "Windows":
        """The same crops in all of their images, of these sizes."""
        sides = np.stack([heights, widths], axis=1)
        return Windows(np.zeros_like(self.starts), sides, self.starts + self.crop_starts, self.starts + self.crop_ends)


def source_windows(sizes: Ints, corners: Ints, crop: Ints | int, widths: Ints, heights: Ints) -> Windows:
    """Crops' places in the source images, and around them the pixels that the resampling filter reaches to.

    `sizes`: (n, 2) after the rescale; `corners`: (n, 2) of the crops in that, and `crop` their sides, one for all or
    (n, 2). `widths`, `heights`: (n,) of the source images.

    The filter is a triangle of one source pixel to each side, or of as many as a pixel of the crop covers if that is
    more: see `resample`.
    """
    sides = np.stack([heights, widths], axis=1)
    step = sides / sizes
    starts, ends = corners * step, (corners + crop) * step
    reach = np.maximum(step, 1.0) + 0.5 - step / 2  # from the crop's border, whose first pixel's centre lies inside
    first = np.clip(np.floor(starts - reach), 0, sides - 1).astype(np.int64)
    last = np.clip(np.ceil(ends + reach), 1, sides).astype(np.int64)
    return Windows(first, last - first, starts - first, ends - first)


def dense_windows(sizes: Ints, stride: int) -> Ints:
    """(n, 2) heights and widths of the middle of rescaled images that a net of total stride `stride` sees.

    Its pools round down, so up to `stride` - 1 pixels at the right and the bottom would go unseen; cutting as much
    from all sides instead keeps the middle in the middle, and an image's mirror image its mirror image. Of an elongated
    image the longer side is cut to what memory is meant for, see `still.longest`.
    """
    most = np.array([still.longest(shorter) for shorter in sizes.min(axis=1).tolist()], np.int64)
    return np.minimum(sizes, most[:, None]) // stride * stride


def grid_corners(sizes: Ints, crop: int, per_side: int = 5) -> Ints:
    """(n, per_side ** 2, 2) y, x: upper left corners of crops that lie in a grid over each of n rescaled images, row by
    row. `sizes`: (n, 2), of at least `crop` pixels.

    The outer ones touch the image's borders, the corner ones its corners; those between are as evenly spaced as whole
    pixels allow: each at its exact place rounded to the nearest pixel, halves up. Crops that coincide, as all do in an
    image of just the crop's size, are all counted.
    """
    gaps = per_side - 1
    places = (2 * np.arange(per_side) * (sizes - crop)[:, :, None] + gaps) // (2 * gaps)  # (n, 2, per_side)
    y, x = np.broadcast_arrays(places[:, 0, :, None], places[:, 1, None, :])
    return np.stack([y, x], axis=3).reshape(len(sizes), -1, 2)


def _subtract(recipe: Recipe, shifts: NDArray[np.float64]) -> NDArray[np.float32]:
    return (np.asarray(recipe.statistics.mean_rgb) - shifts).astype(np.float32)
