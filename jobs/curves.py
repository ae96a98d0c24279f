"""What a job came to, as curves: its epochs, and its tests against the scale of the images."""

from collections.abc import Callable, Container, Sequence
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator

from cluster.checkpoint import Epoch
from jobs import tables
from jobs.pictures import (
    BLACK,
    BLUE,
    FONT,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    SHADE,
    SIZE,
    VERMILION,
    Picture,
    drawing,
    shortened,
)
from jobs.results import Result
from jobs.stored import StoredStage

SERIES_MOST = 6  # in a picture of error against Q

Tested = tuple[str, str, bool, str]  # a net, the mode, whether mirror images were looked at, too, and the precision

_SERIES = ((BLUE, "o"), (VERMILION, "s"), (GREEN, "^"), (PURPLE, "D"), (ORANGE, "v"), (BLACK, "P"))


def losses(stages: Sequence[StoredStage]) -> Picture:
    return _course(stages, "Loss", "loss", lambda e: e.loss, lambda e: e.validation_loss)


def accuracies(stages: Sequence[StoredStage]) -> Picture:
    return _course(
        stages, "Accuracy", "accuracy in %", lambda e: 100 * e.accuracy, lambda e: 100 * e.validation_accuracy
    )


def _course(
    stages: Sequence[StoredStage],
    title: str,
    label: str,
    training: Callable[[Epoch], float],
    validation: Callable[[Epoch], float],
) -> Picture:
    """All stages after one another on one axis of epochs."""
    total = sum(len(stage.epochs) for stage in stages)
    with drawing() as (figure, svg):
        axes = figure.subplots()
        before = 0
        for number, stage in enumerate(stages):
            x = np.arange(1, len(stage.epochs) + 1) + before
            dot = 3.5 if total <= 60 or len(x) == 1 else 0.0
            first = number == 0
            for draw, colour, line, name in (
                (training, ORANGE, "--", "training"),
                (validation, BLUE, "-", "validation"),
            ):
                values = [draw(epoch) for epoch in stage.epochs]
                axes.plot(
                    x,
                    values,
                    line,
                    color=colour,
                    label=name if first else None,
                    linewidth=1.8,
                    marker="o",
                    markersize=dot,
                )
            kept = stage.delivered
            axes.plot(
                before + kept, validation(stage.epochs[kept - 1]), "o", color=BLUE, fillstyle="none", markersize=9,
                label="epoch that is kept" if first else None,
            )  # fmt: skip
            _mark_stage(axes, number, stage, before)
            before += len(stage.epochs)
        if any(stage.drops for stage in stages):
            axes.plot([], [], ":", color=VERMILION, label="learning rate divided")
        axes.set(xlabel="epochs, all stages one after another", ylabel=label, xlim=(0.5, total + 0.5))
        axes.set_ylim(bottom=0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(axis="y")
        _name_stages(axes, stages, total)
        figure.legend(loc="outside lower center", ncols=2)
        told = "; ".join(
            f"{s.name}: {training(s.epochs[-1]):.3g} in training and {validation(s.epochs[-1]):.3g} in validation "
            f"after {len(s.epochs)} epochs"
            for s in stages
        )
        return Picture(svg(), f"{title} by epoch. {told}.")


def _mark_stage(axes: Any, number: int, stage: StoredStage, before: int) -> None:
    """Its ground, and where in it the learning rate was divided."""
    if number % 2:
        axes.axvspan(before + 0.5, before + len(stage.epochs) + 0.5, color=SHADE, zorder=0)
    if number:
        axes.axvline(before + 0.5, color=GREY, linewidth=0.8)
    for epoch in stage.drops:
        axes.axvline(before + epoch - 0.5, color=VERMILION, linestyle=":", linewidth=1.4)


def _name_stages(axes: Any, stages: Sequence[StoredStage], total: int) -> None:
    """Above the axes; aslant if one of the names is longer than its stage."""
    points = 72 * SIZE[0] * 0.82 / total  # of an epoch
    names = [shortened(stage.name, 18) for stage in stages]
    aslant = any(len(n) * 0.66 * FONT > len(s.epochs) * points for n, s in zip(names, stages, strict=True))
    before = 0
    for name, stage in zip(names, stages, strict=True):
        axes.annotate(
            name, (before + len(stage.epochs) / 2 + 0.5, 1), (0, 4), xycoords=("data", "axes fraction"),
            textcoords="offset points", ha="left" if aslant else "center", va="bottom", rotation=45 * aslant,
            rotation_mode="anchor",
        )  # fmt: skip
        before += len(stage.epochs)


def by_scale(results: Sequence[Result]) -> Picture | None:
    """Top-1 error against Q, of nets that were tested at several Q or at one and an average; None if there are none.

    Bars are 95 % confidence intervals. An average over several Q is a level line as long as their range. Of results of
    the same net, mode, mirror images, precision and Q the first is taken.
    """
    drawn = series(results)
    if not drawn:
        return None
    every = {q for found in drawn.values() for result in found for q in result.subjects[0].scales}
    aside = (max(every) - min(every)) / 90
    with drawing((SIZE[0], SIZE[1] + 0.2 * len(drawn))) as (figure, svg):
        axes = figure.subplots()
        for number, (tested, found) in enumerate(drawn.items()):
            shift = (number - (len(drawn) - 1) / 2) * aside
            _draw_series(axes, found, _SERIES[number], shift, aside, _label(tested, drawn))
        axes.set(xlabel="Q, shorter side of the test images in pixels", ylabel="top-1 error in %")
        axes.set_xticks(sorted(every))
        axes.grid(axis="y")
        (average,) = axes.plot([], [], "--", color=GREY, label="average over the scales that it spans")
        handles = [handle for handle in axes.get_legend_handles_labels()[0] if handle is not average]
        figure.legend(handles=[*handles, average], loc="outside lower center", ncols=1)
        return Picture(svg(), "Top-1 error against the scale of the test images; the tables have the numbers.")


def _label(tested: Tested, drawn: Container[Tested]) -> str:
    """The mirror images are named where only they tell two apart, the precision where it is not float32."""
    name, mode, mirror, precision = tested
    how = (", mirrored" if mirror else ", not mirrored") * ((name, mode, not mirror, precision) in drawn)
    return f"{shortened(name, 40)}, {mode}{how}" + f", {precision}" * (precision != "float32")


def _draw_series(
    axes: Any, found: Sequence[Result], look: tuple[str, str], shift: float, aside: float, label: str
) -> None:
    """Moved by `shift` pixels of Q, so that bars of several nets do not hide one another."""
    colour, marker = look
    single = sorted((r for r in found if len(r.subjects[0].scales) == 1), key=lambda r: r.subjects[0].scales)
    x = [result.subjects[0].scales[0] + shift for result in single]
    y, reach = _errors(single)
    axes.errorbar(x, y, reach, color=colour, marker=marker, capsize=3, linewidth=1.6, label=label)
    for result in (r for r in found if len(r.subjects[0].scales) > 1):
        (value,), reach = _errors([result])
        low, *_, high = result.subjects[0].scales
        axes.hlines(value, low, high, color=colour, linestyle="--", linewidth=1.6)
        middle = (low + high) / 2 + shift + aside / 2
        axes.errorbar(middle, value, reach, color=colour, marker=marker, markerfacecolor="white", capsize=3)


def series(results: Sequence[Result]) -> dict[Tested, list[Result]]:
    """The best ones."""
    found: dict[Tested, dict[tuple[int, ...], Result]] = {}
    for result in results:
        if len(result.subjects) == 1:
            subject = result.subjects[0]
            tested = (subject.model, result.mode, subject.mirror, subject.precision)
            found.setdefault(tested, {}).setdefault(subject.scales, result)
    several = {key: list(each.values()) for key, each in found.items() if len(each) > 1}
    best = sorted(several, key=lambda key: max(result.totals.accuracy for result in several[key]), reverse=True)
    return {key: several[key] for key in several if key in best[:SERIES_MOST]}


def _errors(results: Sequence[Result]) -> tuple[list[float], list[list[float]]]:
    """In per cent, and how far their intervals reach below and above."""
    totals = [result.totals for result in results]
    values = [100 * (1 - t.accuracy) for t in totals]
    ends = [tables.interval(t.images - t.top1, t.images) for t in totals]
    below = [max(value - 100 * low, 0.0) for value, (low, _) in zip(values, ends, strict=True)]
    above = [max(100 * high - value, 0.0) for value, (_, high) in zip(values, ends, strict=True)]
    return values, [below, above]
