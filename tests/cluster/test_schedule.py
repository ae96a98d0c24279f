"""Learning rates, against torch's own schedulers and a plateau rule told in another way."""

import math
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from pydantic import ValidationError
from torch.optim import lr_scheduler as torchs

from cluster import schedule
from cluster.schedule import Drops
from cluster.settings import Plateau, StageSettings


def settings(**changes: object) -> StageSettings:
    return StageSettings.model_validate({"net": "A", "scale": 256, "epochs": 10, "learning_rate": 0.1} | changes)


def rates(s: StageSettings, steps: int, accuracies: tuple[float, ...] = ()) -> list[float]:
    return [schedule.rate(s, step, steps, accuracies) for step in range(s.epochs * steps)]


def test_the_plateau_rule_drops_and_ends() -> None:
    rule = Plateau(patience=2, min_gain=0.01, drops=2)
    rises = [0.1, 0.2, 0.3]
    assert schedule.plateau([], rule) == Drops(0, False)
    assert schedule.plateau([*rises, 0.305], rule) == Drops(0, False)
    assert schedule.plateau([*rises, 0.305, 0.309], rule) == Drops(1, False)
    assert schedule.plateau([*rises, 0.305, 0.309, 0.31], rule) == Drops(1, False)
    assert schedule.plateau([*rises, *[0.3] * 4], rule) == Drops(2, False)
    assert schedule.plateau([*rises, *[0.3] * 6], rule) == Drops(2, True)
    assert schedule.plateau([0.1] * 7, Plateau(patience=2, min_gain=0, drops=2)) == Drops(2, True)


@examples(deadline=None, max_examples=30)
@given(st.lists(st.integers(0, 20).map(lambda n: n / 20), max_size=40), st.integers(1, 5))
def test_the_plateau_rule_is_torchs(accuracies: list[float], patience: int) -> None:
    """ReduceLROnPlateau counts epochs beyond its patience, and has no end."""
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimiser = torch.optim.SGD([parameter], lr=1.0)
    theirs = torchs.ReduceLROnPlateau(
        optimiser, "max", factor=0.1, patience=patience - 1, threshold=0.0, threshold_mode="abs", eps=0.0
    )
    s = settings(plateau={"patience": patience, "min_gain": 0.0, "drops": 100}, learning_rate=1.0, epochs=100)
    for n, accuracy in enumerate(accuracies, 1):
        theirs.step(accuracy)
        ours = schedule.rate(s, 7 * n, 7, accuracies[:n])
        assert ours == pytest.approx(optimiser.param_groups[0]["lr"])


@examples(deadline=None, max_examples=50)
@given(st.sampled_from(["step", "cosine"]), st.integers(1, 9), st.integers(1, 12), st.integers(0, 3))
def test_steps_and_cosines_with_warm_up_are_torchs(kind: str, steps: int, epochs: int, warmup: int) -> None:
    warmup = min(warmup, epochs - 1)
    s = settings(
        schedule=kind,
        epochs=epochs,
        warmup_epochs=float(warmup),
        **{kind: {"every": 3} if kind == "step" else {"floor": 0.01}},
    )
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    w = warmup * steps
    if kind == "step":
        main: torchs.LRScheduler = torchs.MultiStepLR(
            optimiser, [3 * k * steps - w for k in range(1, 5) if 3 * k * steps > w]
        )
        factor = 0.1 ** (warmup == 3)  # of a fall right at the end of warm-up, SequentialLR's MultiStepLR knows nothing
    else:
        main, factor = torchs.CosineAnnealingLR(optimiser, T_max=epochs * steps - w, eta_min=0.01), 1.0
    if w > 1:
        rise = torchs.LinearLR(optimiser, start_factor=1 / w, total_iters=w - 1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own call of a scheduler with a step number
            theirs: torchs.LRScheduler = torchs.SequentialLR(optimiser, [rise, main], [w])
    else:
        theirs = main
    ours = rates(s, steps)
    for step, rate in enumerate(ours):
        if not (w == 1 and step > 0):  # SequentialLR cannot be one step long
            assert rate == pytest.approx(optimiser.param_groups[0]["lr"] * (factor if step >= w else 1), rel=1e-6)
        optimiser.step()
        theirs.step()


@pytest.mark.parametrize("kind", ["plateau", "step", "cosine"])
@pytest.mark.parametrize("warmup", [0.5, 2.0])
def test_warm_up_rises_in_a_line_from_above_zero_to_the_rate(kind: str, warmup: float) -> None:
    found = rates(settings(schedule=kind, warmup_epochs=warmup, step=None), 20)
    n = round(warmup * 20)
    assert found[: n - 1] == pytest.approx([0.1 * (k + 1) / n for k in range(n - 1)])
    assert found[n - 1] == found[n] == pytest.approx(0.1)
    assert max(found) == pytest.approx(0.1)


def test_epochs_of_warm_up_are_no_plateau() -> None:
    s = settings(plateau={"patience": 2}, warmup_epochs=2.5)
    flat = [0.1] * 10
    assert [schedule.rate(s, 20 * n, 20, flat[:n]) for n in range(3, 7)] == pytest.approx([0.1, 0.1, 0.1, 0.01])


def test_a_cosine_ends_at_its_floor_and_never_rises() -> None:
    found = rates(settings(schedule="cosine", cosine={"floor": 0.02}), 100)
    assert found[0] == pytest.approx(0.1)
    assert found == sorted(found, reverse=True)
    assert 0.02 < found[-1] < 0.02001
    assert found[500] == pytest.approx(0.06)


def test_training_is_over_after_the_epochs_or_the_last_plateau_and_no_other_schedule_ends_it() -> None:
    flat = [0.5] * 9
    assert schedule.finished(settings(plateau={"patience": 1, "drops": 3}), flat[:5])
    assert not schedule.finished(settings(plateau={"patience": 1, "drops": 3}), flat[:4])
    for kind in ("step", "cosine"):
        assert not schedule.finished(settings(schedule=kind), flat)
        assert schedule.finished(settings(schedule=kind), [*flat, 0.5])


@examples(deadline=None)
@given(st.sampled_from(["plateau", "step", "cosine"]), st.floats(0, 4), st.integers(1, 50), st.data())
def test_every_rate_is_above_zero_and_at_most_the_learning_rate(
    kind: str, warmup: float, steps: int, data: st.DataObject
) -> None:
    s = settings(schedule=kind, warmup_epochs=warmup)
    step = data.draw(st.integers(0, 10 * steps - 1))
    accuracies = data.draw(st.lists(st.floats(0, 1), min_size=step // steps, max_size=step // steps))
    assert 0 < schedule.rate(s, step, steps, accuracies) <= 0.1
    assert math.isfinite(schedule.rate(s, step, steps, accuracies))


def test_a_stage_has_the_knobs_of_its_schedule_alone() -> None:
    assert settings().plateau == Plateau()
    assert settings(schedule="cosine").plateau is None
    with pytest.raises(ValidationError, match="plateau: does not apply, since schedule is cosine"):
        settings(schedule="cosine", plateau={"patience": 3})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "rate 0.1, divided by 10 after 5 epochs without a gain of 0.001, at most 3 times"),
        ({"schedule": "step", "step": {"every": 1}}, "rate 0.1, divided by 10 every 1 epoch"),
        ({"schedule": "cosine", "warmup_epochs": 2.5}, "rate 0.1, rising over 2.5 epochs, then along a cosine to 0"),
    ],
)
def test_a_schedule_in_words(changes: dict[str, object], words: str) -> None:
    assert schedule.in_words(settings(**changes)) == words
