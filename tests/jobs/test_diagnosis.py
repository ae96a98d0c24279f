"""Confusions, calibration and mistakes, beside slow ways to count them."""

import math
from dataclasses import replace

import numpy as np
import pytest

from cluster.posteriors import Posteriors
from jobs import diagnosis
from tests.cluster.test_posteriors import drawn


def sharpened(n: int, classes: int, seed: int) -> Posteriors:
    """Of a net that is often right and very sure; some probabilities are 1, some lie on the borders of bins."""
    p = drawn(n, classes, seed)
    rng = np.random.default_rng(seed)
    scores = p.scores.astype(np.float64)
    better = rng.random(n) < 0.7
    scores[better, p.labels[better]] += 2.0
    scores /= scores.sum(axis=1, keepdims=True)
    for i in range(0, n, 7):
        scores[i] = (1 - (i % 15 + 1) / 15) / (classes - 1)
        scores[i, rng.integers(classes)] = (i % 15 + 1) / 15
    return replace(p, scores=scores.astype(np.float32), labels=rng.integers(0, classes, n))


@pytest.mark.parametrize("seed", range(4))
def test_who_is_right_agrees_with_the_totals_ties_included(seed: int) -> None:
    p = sharpened(90, 5, seed)
    p.scores[:20] = np.round(p.scores[:20] * 4) / 4  # makes ties
    p.scores[20] = 0.2
    found = diagnosis.verdicts(p)
    assert int(found.right.sum()) == p.totals.top1
    for i in range(90):
        assert found.confidence[i] == p.scores[i].max() == p.scores[i, found.predicted[i]]


@pytest.mark.parametrize("classes", [2, 5, 30])
def test_confusions_and_worst_pairs_equal_counting_by_hand(classes: int) -> None:
    p = sharpened(300, classes, classes)
    found = diagnosis.verdicts(p)
    counts = diagnosis.confusion(found, classes)
    by_hand: dict[tuple[int, int], int] = {}
    for true, predicted in zip(found.labels.tolist(), found.predicted.tolist(), strict=True):
        by_hand[true, predicted] = by_hand.get((true, predicted), 0) + 1
    assert all(counts[t, q] == by_hand.get((t, q), 0) for t in range(classes) for q in range(classes))
    wrong = {pair: n for pair, n in by_hand.items() if pair[0] != pair[1]}
    pairs = diagnosis.worst_pairs(counts, 10)
    assert [pair.count for pair in pairs] == sorted(wrong.values(), reverse=True)[:10]
    for pair in pairs:
        assert wrong[pair.true, pair.predicted] == pair.count
        assert pair.share == pytest.approx(pair.count / np.sum(found.labels == pair.true))
    assert len({(pair.true, pair.predicted) for pair in pairs}) == len(pairs)


def test_a_net_without_mistakes_has_no_pairs_and_no_sheet() -> None:
    p = drawn(40, 4, 0)
    p.scores[:] = np.eye(4, dtype=np.float32)[p.labels]
    found = diagnosis.verdicts(p)
    assert diagnosis.worst_pairs(diagnosis.confusion(found, 4), 10) == []
    assert len(diagnosis.confident_mistakes(found, (), 10)) == 0
    assert diagnosis.calibration(found).error == 0.0


def test_classes_are_ordered_by_their_accuracy_and_those_without_images_left_out() -> None:
    p = sharpened(200, 6, 1)
    p = replace(p, labels=np.where(p.labels == 3, 4, p.labels))
    found = diagnosis.verdicts(p)
    scores = diagnosis.by_class(diagnosis.confusion(found, 6))
    assert {score.label for score in scores} == {0, 1, 2, 4, 5}
    assert [score.accuracy for score in scores] == sorted(score.accuracy for score in scores)
    for score in scores:
        mine = found.labels == score.label
        assert (score.images, score.right) == (mine.sum(), (mine & (found.predicted == score.label)).sum())


@pytest.mark.parametrize("seed", range(4))
def test_the_calibration_error_equals_a_slow_loop(seed: int) -> None:
    found = diagnosis.verdicts(sharpened(400, 7, seed))
    expected = 0.0
    for i in range(15):
        inside = [
            k
            for k in range(400)
            if i / 15 < found.confidence[k] <= (i + 1) / 15 or (i == 0 and not found.confidence[k])
        ]
        if inside:
            accuracy = sum(found.predicted[k] == found.labels[k] for k in inside) / len(inside)
            confidence = math.fsum(found.confidence[k] for k in inside) / len(inside)
            expected += len(inside) / 400 * abs(accuracy - confidence)
    calibration = diagnosis.calibration(found)
    assert calibration.error == pytest.approx(expected, abs=1e-12)
    assert calibration.images.sum() == 400
    assert calibration.right.sum() == found.right.sum()


def test_probabilities_that_say_how_often_they_are_right_have_a_small_error_and_boasting_ones_a_large_one() -> None:
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.5, 1.0, 40_000)
    labels = np.zeros(40_000, np.int64)
    honest = diagnosis.Verdicts(labels, (rng.random(40_000) > confidence).astype(np.int64), confidence)
    boasting = replace(honest, confidence=np.sqrt(confidence))
    assert diagnosis.calibration(honest).error < 0.01
    assert diagnosis.calibration(boasting).error == pytest.approx(np.mean(np.sqrt(confidence) - confidence), abs=0.01)


def test_mistakes_are_wrong_readable_and_the_most_confident_of_these() -> None:
    p = sharpened(300, 5, 2)
    found = diagnosis.verdicts(p)
    wrong = [i for i in range(300) if found.predicted[i] != found.labels[i]]
    hidden = tuple(sorted(wrong, key=lambda i: -found.confidence[i])[:3])
    rows = diagnosis.confident_mistakes(found, hidden, 12)
    left = sorted((i for i in wrong if i not in hidden), key=lambda i: (-found.confidence[i], i))
    assert rows.tolist() == left[:12]
