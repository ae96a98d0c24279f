"""The learning rate and the end of training, as pure functions of the settings, the step and the validation accuracies
of the epochs so far."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from cluster.settings import Plateau, StageSettings


def rate(settings: StageSettings, step: int, steps_per_epoch: int, accuracies: Sequence[float]) -> float:
    """The learning rate of a step.

    `step`: the steps behind it since the stage began; `accuracies`: validation accuracy of each whole epoch behind it.
    """
    s = settings
    warmup = s.warmup_epochs * steps_per_epoch
    if step + 1 < warmup:
        return s.learning_rate * (step + 1) / warmup  # 0 would waste a step (Goyal et al. 2017, section 2.2)
    if s.plateau is not None:
        return s.learning_rate / s.plateau.factor ** _plateau(s, accuracies).drops
    if s.step is not None:
        return s.learning_rate / s.step.factor ** (step // steps_per_epoch // s.step.every)
    assert s.cosine is not None
    done = max(0.0, step - warmup) / (s.epochs * steps_per_epoch - warmup)
    return s.cosine.floor + (s.learning_rate - s.cosine.floor) * (1 + math.cos(math.pi * done)) / 2


def finished(settings: StageSettings, accuracies: Sequence[float]) -> bool:
    """Whether training is over after epochs with these validation accuracies."""
    over = settings.plateau is not None and _plateau(settings, accuracies).finished
    return over or len(accuracies) >= settings.epochs


@dataclass(frozen=True)
class Drops:
    """Where the plateau rule stands: how often the rate was divided, and whether training is over."""

    drops: int
    finished: bool


def plateau(accuracies: Sequence[float], rule: Plateau) -> Drops:
    """The plateau rule (paper, section 3.1) after epochs with these validation accuracies.

    When the best accuracy has not risen by at least `min_gain` for `patience` epochs, the rate is divided; after
    `drops` divisions, the next plateau ends training.
    """
    drops, best, since = 0, float("-inf"), 0
    for accuracy in accuracies:
        if accuracy > best and accuracy >= best + rule.min_gain:
            best, since = accuracy, 0
            continue
        since += 1
        if since >= rule.patience:
            if drops == rule.drops:
                return Drops(drops, finished=True)
            drops, since = drops + 1, 0
    return Drops(drops, finished=False)


def _plateau(s: StageSettings, accuracies: Sequence[float]) -> Drops:
    """Of the epochs after those that warm-up, or a part of it, falls into: a low rate's plateau says nothing."""
    assert s.plateau is not None
    return plateau(accuracies[math.ceil(s.warmup_epochs) :], s.plateau)


def in_words(settings: StageSettings) -> str:
    """`rate 0.01, divided by 10 after 5 epochs without a gain of 0.001, at most 3 times`"""
    s = settings
    if s.plateau is not None:
        p = s.plateau
        times = f"at most {p.drops} time{'s' * (p.drops != 1)}"
        falls = f"divided by {p.factor:g} after {_epochs(p.patience)} without a gain of {p.min_gain:g}, {times}"
    elif s.step is not None:
        falls = f"divided by {s.step.factor:g} every {_epochs(s.step.every)}"
    else:
        assert s.cosine is not None
        falls = f"along a cosine to {s.cosine.floor:g}"
    rises = f"rising over {_epochs(s.warmup_epochs)}, then " if s.warmup_epochs else ""
    return f"rate {s.learning_rate:g}, {rises}{falls}"


def _epochs(n: float) -> str:
    return f"{n:g} epoch{'s' * (n != 1)}"
