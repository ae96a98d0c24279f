"""Which Q a test looks at."""

import pytest

from cluster.views import View, scales_of, views


def test_scales_are_the_papers() -> None:
    """Sections 4.1 and 4.2."""
    assert scales_of("single", (256, 256), 224) == (256,)
    assert scales_of("single", (256, 512), 224) == (384,)
    assert scales_of("several", (256, 256), 224) == (224, 256, 288)
    assert scales_of("several", (384, 384), 224) == (352, 384, 416)
    assert scales_of("several", (256, 512), 224) == (256, 384, 512)


def test_scales_of_small_nets_are_in_proportion_and_never_below_the_crop() -> None:
    assert scales_of("several", (74, 74), 64) == (65, 74, 83)
    assert scales_of("several", (34, 34), 32) == (32, 34, 38)
    assert scales_of("several", (32, 32), 32) == (32, 36)


def test_scales_that_are_named_are_taken_each_once() -> None:
    assert scales_of([512, 256, 512], (256, 256), 224) == (256, 512)


@pytest.mark.parametrize("mode", ["dense", "multi-crop"])
def test_one_mode_is_a_view_for_each_scale(mode: str) -> None:
    assert views(mode, (256, 384), True) == (View(mode, 256, True), View(mode, 384, True))  # type: ignore[arg-type]


def test_both_modes_are_the_views_of_each() -> None:
    assert set(views("both", (256,), False)) == {View("dense", 256, False), View("multi-crop", 256, False)}
