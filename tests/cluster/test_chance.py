"""When a loss that stays at ln(classes) is told. Recorded: mean training loss and accuracy by epoch, nets of width 0.25
on the digits (1,438 images) in batches of 16, learning rate 0.01."""

import math
import random
import re

import pytest

from cluster import chance
from cluster.settings import StageSettings

STEPS = 90  # of an epoch of the digits
E_NORMAL = ([2.3051, 2.3046, 2.3042, 2.3045, 2.3046, 2.3052], [0.084, 0.098, 0.086, 0.087, 0.083, 0.088])
E_GLOROT = ([2.3058, 2.305, 2.3044, 2.3047, 2.3048, 2.3053], [0.088, 0.091, 0.086, 0.085, 0.083, 0.09])
A_KAIMING = ([2.3309, 1.8716, 1.0548], [0.12, 0.319, 0.616])
E_KAIMING = ([2.309, 2.3037, 2.2463], [0.106, 0.108, 0.129])  # begins to learn in its third epoch
TINY_RATE = ([2.556, 2.316, 2.2749], [0.118, 0.121, 0.163])  # A from kaiming, learning rate 1e-5

Curve = tuple[list[float], list[float]]


def settings(**changes: object) -> StageSettings:
    return StageSettings.model_validate({"net": "E", "scale": 224} | changes)


@pytest.mark.parametrize("curve", [E_NORMAL, E_GLOROT])
def test_a_net_that_learns_nothing_is_told_after_500_steps_and_two_epochs(curve: Curve) -> None:
    losses, accuracies = curve
    told = [chance.stays_at_chance(losses[:n], accuracies[:n], 10, STEPS) for n in range(7)]
    assert told == [False] * 6 + [True]
    assert not chance.stays_at_chance(losses[:1], accuracies[:1], 10, 5000)
    assert chance.stays_at_chance(losses[:2], accuracies[:2], 10, 5000)


@pytest.mark.parametrize("curve", [A_KAIMING, E_KAIMING, TINY_RATE])
@pytest.mark.parametrize("steps", [STEPS, 250])
def test_a_net_that_begins_to_learn_is_not(curve: Curve, steps: int) -> None:
    losses, accuracies = curve
    assert not chance.stays_at_chance(losses, accuracies, 10, steps)


@pytest.mark.parametrize("classes", [2, 10, 100, 1000])
def test_a_loss_at_chance_with_an_accuracy_above_it_is_a_net_that_learns(classes: int) -> None:
    guess = math.log(classes)
    at_chance = [1 / classes] * 3
    assert chance.stays_at_chance([guess] * 3, at_chance, classes, 5000)
    assert not chance.stays_at_chance([guess] * 3, [*at_chance[:2], 1 / classes + 0.06], classes, 5000)
    assert not chance.stays_at_chance([guess, guess, guess * 0.98], at_chance, classes, 5000)
    assert not chance.stays_at_chance([guess, guess, float("nan")], at_chance, classes, 5000)


def test_counts_of_guesses_are_told_through_their_noise() -> None:
    """200 runs of 600 steps of 16 guesses: nearly all are told, though accuracy is noisy."""
    noise = random.Random(0)
    told = 0
    for _ in range(200):
        shares = [sum(noise.random() < 0.1 for _ in range(1438)) / 1438 for _ in range(6)]
        told += chance.stays_at_chance([2.3046] * 6, shares, 10, 100)
    assert told >= 198


def test_the_line_comes_once_and_names_the_way_out() -> None:
    s = settings()
    losses, accuracies = E_NORMAL[0] * 2, E_NORMAL[1] * 2
    lines = [chance.warning(s, losses[:n], accuracies[:n], 10, STEPS) for n in range(13)]
    assert [n for n, line in enumerate(lines) if line is not None] == [6]
    assert lines[6] == (
        "the loss stays at 2.305, which is ln(10): the net guesses and learns nothing; net E gets too small scores "
        "from normal random weights: start it from a trained A (init: {from: ...}), or use init.random: kaiming or "
        "glorot"
    )


@pytest.mark.parametrize(
    ("changes", "advice"),
    [
        ({"net": "A"}, "net A gets too small scores from normal random weights: use init.random: kaiming or glorot"),
        ({"init": {"random": "glorot"}}, r"start it from a trained A \(init: .*\), or use init.random: kaiming"),
        ({"init": {"random": "kaiming"}}, "learning_rate = 0.01 may be too low, or so high"),
        ({"init": {"from": "a"}}, "learning_rate = 0.01 may be too low, or so high"),
    ],
)
def test_the_way_out_depends_on_where_the_weights_come_from(changes: dict[str, object], advice: str) -> None:
    line = chance.warning(settings(**changes), *E_NORMAL, 10, STEPS)
    assert line is not None
    assert re.search(advice + ".*$", line)


def test_epochs_of_warm_up_and_sets_of_one_class_are_passed_over() -> None:
    losses, accuracies = E_NORMAL
    assert chance.warning(settings(warmup_epochs=0.5), losses, accuracies, 10, STEPS) is None
    assert chance.warning(settings(warmup_epochs=0.5), [0.0, *losses], [1.0, *accuracies], 10, STEPS) is not None
    assert chance.warning(settings(), [0.0] * 6, [1.0] * 6, 1, STEPS) is None
