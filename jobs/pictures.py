"""What a job came to, drawn: for a light page, readable at the width of a phone and by colour-blind people."""

import base64
import io
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

from jobs import tables
from jobs.diagnosis import BINS, Calibration, Ints

CELLS_MOST = 20  # classes up to which a confusion matrix has its counts written into it
MATRIX_MOST = 100  # classes up to which there is one

SIZE = (5.2, 3.7)  # inches: two beside each other on a desktop, one on a phone at two thirds of its size
FONT = 12
BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY, BLACK = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#e69f00",
    "#cc79a7",
    "#56b4e9",
    "#000000",
)  # fmt: skip; Okabe and Ito 2008: told apart by colour-blind people
_NOT_XML = re.compile("[^\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
GREY, SHADE, INK = "#8a8f98", "#f3f5f8", "#24292f"
_STYLE = {
    "font.size": FONT,
    "axes.titlesize": FONT + 1,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": "#dfe3e8",
    "legend.frameon": False,
    "legend.fontsize": FONT - 1,
    "text.parse_math": False,  # names of classes may have dollars
    "svg.hashsalt": "verydeep",  # the same picture is the same bytes
}


@dataclass(frozen=True)
class Picture:
    """An SVG file, what is to be read instead of it, and its width in the page's pixels."""

    svg: bytes
    alt: str
    width: int = round(96 * SIZE[0])

    @property
    def uri(self) -> str:
        return f"data:image/svg+xml;base64,{base64.b64encode(self.svg).decode()}"


@contextmanager
def drawing(size: tuple[float, float] = SIZE) -> Iterator[tuple[Figure, Callable[[], bytes]]]:
    """A figure in this page's style, and what makes its SVG file."""
    with mpl.rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # of names in far scripts; the page's tables have them
        figure = Figure(figsize=size, layout="constrained")

        def svg() -> bytes:
            out = io.BytesIO()
            figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
            return out.getvalue()

        yield figure, svg


def matrix(counts: Ints, classes: Sequence[str]) -> Picture:
    """`counts` (classes, classes): of images by right class (rows) and predicted class (columns). Colours are shares of
    rows; the darkness is of their square roots, so that rare confusions are seen, too."""
    n = len(classes)
    written = n <= CELLS_MOST
    names = [shortened(name, 16) for name in classes]
    longest = max(map(len, names))
    size = FONT - 1 if written else 8
    side, beside = max(3.6, n * (0.36 if written else 0.13)), 0.64 * longest * size / 72  # inches
    with drawing((side + beside + 1.5, side + (beside if longest > 2 else 0.2) + 0.6)) as (figure, svg):
        axes = figure.subplots()
        shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        image = axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, 0, 1), interpolation="nearest")
        axes.set_xticks(range(n), names, rotation=90 if longest > 2 else 0, fontsize=size)
        axes.set_yticks(range(n), names, fontsize=size)
        axes.tick_params(length=0)
        axes.set(xlabel="predicted class", ylabel="right class")
        if written:
            for i, j in np.argwhere(counts).tolist():
                axes.text(j, i, counts[i, j], ha="center", va="center", fontsize=FONT - 2,
                          color="white" if shares[i, j] > 0.45 else INK)  # fmt: skip
        bar = figure.colorbar(image, ax=axes, shrink=min(0.8, 4 / side), aspect=25, pad=0.02, format="{x:.0%}")
        bar.set_ticks([0, 0.01, 0.05, 0.2, 0.5, 1])
        bar.outline.set_visible(False)
        right = counts.trace() / counts.sum()
        alt = f"Confusion matrix of {n} classes; {right:.1%} of the images are on its diagonal."
        return Picture(svg(), alt, round(96 * figure.get_figwidth()))


def reliability(found: Calibration) -> Picture:
    """Accuracy by confidence, and below it how many images have which confidence."""
    with drawing((SIZE[0], SIZE[1] + 0.6)) as (figure, svg):
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
        middle = (np.arange(BINS) + 0.5) / BINS
        there = np.flatnonzero(found.images)
        ends = [tables.interval(int(found.right[i]), int(found.images[i])) for i in there]
        accuracy = found.accuracy[there]
        reach = np.abs([accuracy - [low for low, _ in ends], [high for _, high in ends] - accuracy])
        upper.plot([0, 1], [0, 1], "--", color=GREY, label="as often right as it is sure")
        upper.bar(middle[there], accuracy, 0.92 / BINS, color=SKY, label="how often it is right, 95 %")
        upper.errorbar(middle[there], accuracy, reach, fmt="none", color=BLUE, capsize=2.5)
        upper.plot(
            found.confidence[there], accuracy, "o", color=VERMILION, markersize=4.5, label="at its mean confidence"
        )
        upper.set(ylabel="accuracy", ylim=(0, 1.02), xlim=(0, 1))
        upper.yaxis.set_major_formatter("{x:.0%}")
        upper.grid(axis="y")
        lower.bar(middle, found.images / found.images.sum(), 0.92 / BINS, color=GREY)
        lower.set(xlabel="confidence: the probability of the predicted class", ylabel="images")
        lower.xaxis.set_major_formatter("{x:.0%}")
        lower.yaxis.set_major_formatter("{x:.0%}")
        figure.legend(loc="outside lower center", ncols=1)
        return Picture(
            svg(), f"Accuracy by confidence in {BINS} bins; the expected calibration error is {found.error:.1%}."
        )


def shortened(text: str, most: int) -> str:
    """On one line, in characters that XML allows."""
    text = _NOT_XML.sub("\ufffd", " ".join(text.split()))
    return text if len(text) <= most else f"{text[: most - 1]}…"
