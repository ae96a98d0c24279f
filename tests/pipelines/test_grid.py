"""The places of the 5 x 5 crops of a multi-crop test."""

from fractions import Fraction
from math import floor

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipelines.augment import grid_corners


def one_by_one(height: int, width: int, crop: int, per_side: int) -> list[tuple[int, int]]:
    """As it is said: evenly spaced from border to border, each rounded to the nearest pixel, halves up."""

    def along(side: int) -> list[int]:
        return [floor(Fraction((side - crop) * i, per_side - 1) + Fraction(1, 2)) for i in range(per_side)]

    return [(y, x) for y in along(height) for x in along(width)]


@given(st.data())
def test_crops_lie_where_they_should(data: st.DataObject) -> None:
    crop, per_side = data.draw(st.integers(1, 300)), data.draw(st.integers(2, 7))
    side = st.integers(crop, crop + 700)
    sizes = data.draw(st.lists(st.tuples(side, side), min_size=1, max_size=5))
    found = grid_corners(np.array(sizes), crop, per_side)
    assert found.shape == (len(sizes), per_side**2, 2)
    for (height, width), corners in zip(sizes, found.tolist(), strict=True):
        assert list(map(tuple, corners)) == one_by_one(height, width, crop, per_side)


def test_corner_crops_touch_the_corners_and_gaps_are_even() -> None:
    for height in range(224, 300):
        for width in (224, 225, 226, 227, 228, 299, 341, 1023, 5000):
            (corners,) = grid_corners(np.array([[height, width]]), 224)
            grid = corners.reshape(5, 5, 2)
            assert grid[0, 0].tolist() == [0, 0]
            assert (grid[-1, -1] + 224).tolist() == [height, width]
            assert (grid[0, -1] + [0, 224]).tolist() == [0, width]
            for gaps in (np.diff(grid[:, :, 0], axis=0), np.diff(grid[:, :, 1], axis=1)):
                assert gaps.max() - gaps.min() <= 1


def test_an_image_of_the_crops_size_is_seen_25_times() -> None:
    assert not grid_corners(np.array([[224, 224]]), 224).any()
    assert grid_corners(np.array([[224, 224]]), 224).shape == (1, 25, 2)
