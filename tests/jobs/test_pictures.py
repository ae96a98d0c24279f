"""Pictures: what is in them, as far as it can be told without comparing images."""

import re
import warnings
from collections.abc import Sequence
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest

from cluster.metrics import Totals
from cluster.settings import StageSettings
from jobs import curves, diagnosis, pictures, summary
from jobs.pictures import Picture
from jobs.results import Result, Subject
from jobs.stored import StoredStage
from tests.jobs.finished import epoch


def stage(rates: Sequence[float], name: str = "a", finished: bool = True, **settings: object) -> StoredStage:
    made = StageSettings.model_validate({"net": "A", "scale": 256, "learning_rate": 0.01, **settings})
    epochs = [epoch(0.5 + i / 100, rate) for i, rate in enumerate(rates)]
    return StoredStage(name, made, epochs, finished, None)


def result(model: str, scales: tuple[int, ...], wrong: int = 100, mode: str = "dense") -> Result:
    subject = Subject(model, "D", (256, 256), scales)
    return Result("t", (subject,), mode, 1000, Totals(1000, 700.0, 1000 - wrong, 1000))  # type: ignore[arg-type]


def size(picture: Picture) -> float:
    """Its width in pixels, as an SVG file says it, in points."""
    match = re.search(rb'<svg[^>]* width="([0-9.]+)pt"', picture.svg)
    assert match
    return float(match[1]) * 96 / 72


@pytest.mark.parametrize(
    ("rates", "settings", "drops", "told"),
    [
        ((0.01, 0.01, 0.01), {}, [], "0.01"),
        ((0.01, 0.01, 0.001, 0.001, 0.0001), {}, [3, 5], "0.01, 0.001 (epoch 3), 0.0001 (epoch 5)"),
        ((0.004, 0.008, 0.01, 0.001), {"warmup_epochs": 3}, [4], "0.01, 0.001 (epoch 4)"),
        ((0.01, 0.007, 0.002), {"schedule": "cosine"}, [], "0.01 to 0.002, along a cosine"),
    ],
)
def test_where_the_rate_was_divided(
    rates: tuple[float, ...], settings: dict[str, object], drops: list[int], told: str
) -> None:
    one = stage(rates, **settings)
    assert one.drops == drops
    head, line = summary.chain([one])
    assert dict(zip(head, line, strict=True))["learning rates"] == told
    assert (b"learning rate divided" in curves.losses([one]).svg) == bool(drops)


def test_curves_of_one_epoch_of_many_stages_and_of_long_names() -> None:
    stages = [stage((0.01,), name=f"a-stage-with-a-rather-long-name-{i}") for i in range(12)]
    for picture in (curves.losses(stages), curves.accuracies(stages)):
        assert size(picture) == pytest.approx(picture.width, abs=1)
        assert "a-stage-with-a-rather-long-name-11" in picture.alt


def test_error_by_scale_needs_two_tests_of_a_net() -> None:
    assert curves.by_scale([]) is None
    assert curves.by_scale([result("a", (256,)), result("b", (256,)), result("a", (256,), mode="both")]) is None
    assert curves.by_scale([result("a", (256,)), result("a", (256,))]) is None, "the same test twice"
    assert curves.by_scale([result("a", (256,)), result("a", (384,), 0)]) is not None
    assert curves.by_scale([result("a", (256,)), result("a", (224, 256, 288), 1000)]) is not None


def test_tests_with_and_without_mirror_images_are_two_series() -> None:
    plain = [result("a", (q,), 300) for q in (256, 384)]
    mirrored = [replace(r, subjects=(replace(r.subjects[0], mirror=True),), test="m") for r in plain]
    assert curves.series([plain[0], mirrored[1]]) == {}
    both = curves.series([*plain, *mirrored])
    assert both == {("a", "dense", False, "float32"): plain, ("a", "dense", True, "float32"): mirrored}
    picture, alone = curves.by_scale([*plain, *mirrored]), curves.by_scale(mirrored)
    assert picture is not None
    assert alone is not None
    assert picture.svg.count(b"a, dense, mirrored") == picture.svg.count(b"a, dense, not mirrored") == 1
    assert b"mirrored" not in alone.svg


def test_control_characters_in_names_leave_pictures_whole() -> None:
    names = [f"a{chr(i)}b" for i in (*range(32), 0x7F, 0xD800, 0xFFFE, 0xFFFF)]
    assert {len(pictures.shortened(name, 16)) for name in names} == {3}
    svg = pictures.matrix(np.eye(3, dtype=np.int64), ["a\x00b", "c\x1bd", "e\ufffff"]).svg
    ElementTree.fromstring(svg)
    assert all(text.encode() in svg for text in ("a\ufffdb", "c\ufffdd", "e\ufffdf"))


def test_of_many_nets_the_best_are_drawn() -> None:
    results = [result(f"net-{i}", (q,), 500 - 10 * i) for i in range(20) for q in (256, 384)]
    shown = curves.series(results)
    assert [model for model, _, _, _ in shown] == [f"net-{i}" for i in range(20 - curves.SERIES_MOST, 20)]


@pytest.mark.parametrize("classes", [1, 2, 20, 21, 100])
def test_a_matrix_has_its_counts_written_in_up_to_twenty_classes(classes: int) -> None:
    counts = np.random.default_rng(classes).integers(1, 9, (classes, classes))
    names = [f"class {i}" for i in range(classes)]
    picture = pictures.matrix(counts, names)
    texts = re.findall(r"<!-- (.*?) -->", picture.svg.decode())  # matplotlib notes what the outlines of letters say
    written = [text for text in texts if text in {str(n) for n in range(1, 9)}]
    assert len(written) == (classes * classes if classes <= 20 else 0)
    assert texts.count(names[-1]) == 2, "a row and a column"
    assert size(picture) == pytest.approx(picture.width, abs=1)
    assert len(picture.svg) < 2_000_000


def test_names_with_dollars_and_in_far_scripts_are_drawn_without_complaint() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        picture = pictures.matrix(np.eye(3, dtype=np.int64), ["$x^", r"a $\b$ c", "数字 🦒"])
    assert b"$x^" in picture.svg


def test_a_class_without_images_and_a_net_that_is_always_sure_are_drawn() -> None:
    pictures.matrix(np.array([[3, 1], [0, 0]]), ["a", "b"])
    labels = np.zeros(5, np.int64)
    sure = diagnosis.Verdicts(labels, labels, np.ones(5))
    assert "0.0%" in pictures.reliability(diagnosis.calibration(sure)).alt
