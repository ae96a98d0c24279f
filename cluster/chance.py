"""A loss that stays at ln(classes), the loss of guessing: told early, and for what it is."""

import math
from collections.abc import Sequence

from cluster.settings import StageSettings

# Assumptions, from nets of width 0.25 on the digits in batches of 16: E from kaiming begins to learn after 220 steps,
# A after 80, and the mean loss of a net that never does is 0.1 % off.
_STEPS = 500
_EPOCHS = 2
_NEAR = 0.01


def stays_at_chance(losses: Sequence[float], accuracies: Sequence[float], classes: int, steps_per_epoch: int) -> bool:
    """Whether the last epochs, two at least and 500 steps, were all spent at chance.

    `losses`, `accuracies`: means over the training images of each epoch so far. An epoch is at chance if its loss is
    within 1 % of ln(classes) and its accuracy hardly above 1 / classes: of a net that begins to learn, accuracy rises
    before the loss falls.
    """
    needed = max(_EPOCHS, math.ceil(_STEPS / steps_per_epoch))
    last = list(zip(losses, accuracies, strict=True))[-needed:]
    guess = math.log(classes)
    most = min(2 / classes, 1 / classes + 0.05 * (1 - 1 / classes))
    return len(last) == needed and all(abs(x - guess) <= _NEAR * guess and share < most for x, share in last)


def warning(
    settings: StageSettings,
    losses: Sequence[float],
    accuracies: Sequence[float],
    classes: int,
    steps_per_epoch: int,
) -> str | None:
    """The line for a person after the epoch that makes it clear, and None after every other one.

    Epochs of warm-up are not looked at; nor is a net with one class.
    """
    skip = math.ceil(settings.warmup_epochs)
    losses, accuracies = losses[skip:], accuracies[skip:]
    now, before = (
        classes > 1 and stays_at_chance(losses[:end], accuracies[:end], classes, steps_per_epoch)
        for end in (len(losses), max(0, len(losses) - 1))
    )
    if not now or before:
        return None
    what = f"the loss stays at {losses[-1]:.3f}, which is ln({classes}): the net guesses and learns nothing"
    return f"{what}; {_advice(settings)}"


def _advice(s: StageSettings) -> str:
    """Kaiming stands first: E of width 0.25 on the digits did not train from glorot either."""
    others = {"normal": "kaiming or glorot", "glorot": "kaiming"}.get(s.init.random)
    if s.init.source is not None or others is None:
        return f"learning_rate = {s.learning_rate:g} may be too low, or so high that it has put out the net's units"
    from_a = "start it from a trained A (init: {from: ...}), or " if s.net not in ("A", "A-LRN") else ""
    return f"net {s.net} gets too small scores from {s.init.random} random weights: {from_a}use init.random: {others}"
