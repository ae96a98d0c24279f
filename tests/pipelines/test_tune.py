"""The choice of a way of decoding, by real graphs."""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pipelines import graphs, tune
from pipelines.augment import Recipe
from pipelines.decoding import Decoding
from pipelines.loader import TrainingBatches
from pipelines.order import Order
from pipelines.seat import Seat
from pipelines.shards import DataSet
from pipelines.tune import Trial
from tests.conftest import kept
from tests.pipelines.test_loader import damage

WAYS = [Decoding(), Decoding(depth=3), Decoding(regions=False), Decoding(threads=2)]


def batches_of(data: DataSet, first: int = 0, decoding: Decoding = WAYS[0]) -> TrainingBatches:
    assert data.manifest.statistics is not None
    recipe = Recipe((32, 64), 32, True, 0.1, 2.0, data.manifest.statistics)
    order = Order.of(data.manifest, 16, 4)
    return TrainingBatches(data, order, recipe, Seat(0, 1, torch.device("cpu"), 1), first, 4, decoding)


@pytest.fixture
def batches(picture_set: DataSet) -> Iterator[TrainingBatches]:
    made = batches_of(picture_set)
    yield made
    made.close()


def test_the_fastest_way_is_taken(batches: TrainingBatches) -> None:
    choice = tune.choose(batches, WAYS, seconds=60)
    assert [trial.decoding for trial in choice.trials[:4]] == WAYS
    speeds = {trial.decoding: trial.images_per_second for trial in choice.trials}
    assert min(speeds.values()) > 0
    assert speeds[choice.decoding] == choice.images_per_second >= max(speeds.values()) / 1.05


def test_a_way_that_fails_is_left_out_with_its_reason(
    batches: TrainingBatches, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if a GPU had no memory for whole images: graphs for them take one at a time."""
    build = graphs.crops

    def small(source, crop, std, batch, threads, device, decoding):  # type: ignore[no-untyped-def]
        return build(source, crop, std, batch if decoding.regions else 1, threads, device, decoding)

    monkeypatch.setattr(graphs, "crops", small)
    whole = Decoding(regions=False)
    choice = tune.choose(batches, [whole, Decoding(), replace(whole, depth=3)], lambda best: [], seconds=60)
    assert [trial.images_per_second > 0 for trial in choice.trials] == [False, True, False]
    assert choice.decoding == Decoding()
    assert choice.left_out == 0
    assert re.search(r"; 3 ways tried in \d+ s; 2 failed: .*batch size.*\)$", str(choice))


def test_images_that_cannot_be_decoded_fail_no_trial(
    picture_set: DataSet, batches: TrainingBatches, tmp_path: Path
) -> None:
    """Of a JPEG without its end the windows can be decoded, the whole image cannot; and of two files nothing can."""
    row, content = next(far_from_the_end(batches))
    garbage = [other for other in (3, 7, 30) if other != row][:2]
    no_image = dict.fromkeys(garbage, b"not an image")
    damaged = batches_of(damage(picture_set, tmp_path / "train", {row: content[:-2], **no_image}))
    choice = tune.choose(damaged, [Decoding(regions=False), Decoding()], seconds=60)
    damaged.close()
    assert [trial.images_per_second > 0 for trial in choice.trials] == [True, True, True]
    assert str(choice).endswith(" s, without 3 images that cannot be decoded)")


def far_from_the_end(batches: TrainingBatches) -> Iterator[tuple[int, bytes]]:
    """Rows and contents of the JPEGs whose crops lie well above their last lines."""
    for step, images in batches.samples(60):
        _, windows = batches._draw(step, images, Decoding())
        last = windows.starts[:, 0] + windows.extents[:, 0]
        for i in np.flatnonzero(last < images.heights - 24):
            if bytes(images.encoded[i][:2]) == b"\xff\xd8":
                yield int(images.rows[i]), bytes(images.encoded[i])


def test_around_the_best_more_is_tried(batches: TrainingBatches) -> None:
    asked = []

    def around(best: Decoding) -> list[Decoding]:
        asked.append(best)
        return [replace(best, depth=4)]

    choice = tune.choose(batches, WAYS[:1], around, seconds=60)
    assert asked == [WAYS[0]]
    assert [trial.decoding for trial in choice.trials] == [WAYS[0], Decoding(depth=4)]


def test_when_its_time_is_over_it_has_tried_one(batches: TrainingBatches) -> None:
    choice = tune.choose(batches, WAYS, seconds=0.0)
    assert [trial.decoding for trial in choice.trials] == WAYS[:1]
    assert choice.decoding == WAYS[0]


def test_where_all_fail_or_nothing_is_left_to_do_the_default_stays(picture_set: DataSet, tmp_path: Path) -> None:
    nothing = dict.fromkeys(range(picture_set.rows), b"not an image")
    damaged = batches_of(damage(picture_set, tmp_path / "train", nothing))
    done = batches_of(picture_set, first=4)
    for batches, tried, text in ((damaged, 2, "; 2 failed: nvImageCodec failure"), (done, 0, "; nothing tried)")):
        choice = tune.choose(batches, WAYS[1:3], seconds=60)
        batches.close()
        assert choice.decoding == Decoding()
        assert [(trial.decoding, trial.images_per_second) for trial in choice.trials] == [
            (way, 0.0) for way in WAYS[1 : 1 + tried]
        ]
        assert choice.left_out == 0
        assert f"{Decoding()} (by default; " in str(choice)
        assert text in str(choice)


def test_what_comes_later_has_to_be_faster_by_more_than_chance() -> None:
    a, b, c = WAYS[:3]
    assert tune._best([Trial(a, 100.0), Trial(b, 104.0)]) == Trial(a, 100.0)
    assert tune._best([Trial(a, 0.0), Trial(b, 90.0), Trial(c, 100.0)]) == Trial(c, 100.0)
    assert tune._best([Trial(a, 0.0)]) is None


def test_batches_are_the_same_after_trials_and_whatever_was_chosen(picture_set: DataSet) -> None:
    untouched, tried = batches_of(picture_set), batches_of(picture_set)
    tune.choose(tried, WAYS[:1])
    ahead = batches_of(picture_set, decoding=Decoding(depth=4, threads=2))
    for a, b, c in zip(*(kept(batches) for batches in (untouched, tried, ahead)), strict=True):
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.images, c.images)
    for batches in (untouched, tried, ahead):
        batches.close()


def test_where_windows_are_not_decoded_no_way_tries_them(batches: TrainingBatches) -> None:
    whole = Decoding(regions=False)
    choice = tune.choose(batches, [Decoding(), whole, Decoding(depth=3)], seconds=60, safe=whole)
    assert {trial.decoding.regions for trial in choice.trials} == {False}
    assert len(choice.trials) == 2, "and with a batch more ahead"
    assert tune.choose(batches, [Decoding()], seconds=60, safe=whole).decoding == whole
