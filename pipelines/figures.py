"""What a comparison came to: medians over rounds and ratios within rounds, as a table, as JSON and as a chart.

Rounds are compared pairwise, a contender's turn with the reference's turn of the same round, since a shared machine is
faster in one minute and slower in the next.
"""

import datetime
import json
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

from pipelines.bench import Result, setting_text

_PACKAGES = (
    "nvidia-dali-cuda130", "torch", "pillow", "opencv-python-headless", "webdataset", "numpy", "pyarrow",
    "ray", "verydeep"
)  # fmt: skip


@dataclass(frozen=True)
class Figures:
    """Medians over the rounds; `ratio`: CPU time per item over the reference's, median, smallest and largest."""

    items_per_second: float
    cpu_milliseconds: float
    ratio: float
    ratio_range: tuple[float, float]


def figures(result: Result, reference: Result) -> Figures:
    ratios = [mine.cpu_per_item / other.cpu_per_item for mine, other in zip(result.turns, reference.turns, strict=True)]
    return Figures(
        median(turn.items / turn.wall_seconds for turn in result.turns),
        1000 * median(turn.cpu_per_item for turn in result.turns),
        median(ratios),
        (min(ratios), max(ratios)),
    )


def table(results: Sequence[Result], items: str) -> str:
    """One line for each contender; the first is the reference."""
    head = ("", f"{items}/s", f"CPU ms/{items.removesuffix('s')}", "ratio", "(range)", "peak MiB", "settings", "")
    lines = [head]
    for result in results:
        f = figures(result, results[0])
        low, high = f.ratio_range
        lines.append(
            (
                result.name,
                f"{f.items_per_second:.0f}",
                f"{f.cpu_milliseconds:.2f}",
                f"{f.ratio:.2f}",
                f"({low:.2f} to {high:.2f})",
                f"{result.peak_bytes / 2**20:.0f}",
                setting_text(result.setting),
                result.description,
            )
        )
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    left = {0, 6, 7}
    return "\n".join(
        "  ".join(f"{c:<{w}}" if i in left else f"{c:>{w}}" for i, (c, w) in enumerate(zip(line, widths, strict=True)))
        .rstrip()
        for line in lines
    )  # fmt: skip


def record(results: Sequence[Result], settings: dict[str, Any]) -> str:
    """JSON with all that was measured, where and with what. `settings`: of the comparison as a whole."""
    content = {
        **environment(),
        "settings": settings,
        "contenders": [asdict(r) | {"figures": asdict(figures(r, results[0]))} for r in results],
    }
    return json.dumps(content, indent=1) + "\n"


def environment() -> dict[str, Any]:
    """When and where something is measured, and with what."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "cpu": cpu_model(),
        "python": platform.python_version(),
        "system": platform.platform(),
        "versions": {package: found for package in _PACKAGES if (found := _version(package))},
    }


def chart(results: Sequence[Result], items: str, title: str, file: Path) -> None:
    """A PNG of bars: CPU time per item with its range over the rounds, and items per second."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 1.2 + 0.45 * len(results)), layout="constrained")
    FigureCanvasAgg(figure)
    one = items.removesuffix("s")
    values = {
        f"CPU ms per {one} (less is better)": [[1000 * t.cpu_per_item for t in r.turns] for r in results],
        f"{items} per second": [[t.items / t.wall_seconds for t in r.turns] for r in results],
    }
    names = [r.name for r in results]
    for axes, (label, turns) in zip(figure.subplots(1, 2, sharey=True), values.items(), strict=True):
        middle = [median(t) for t in turns]
        spread = [
            [m - min(t) for m, t in zip(middle, turns, strict=True)],
            [max(t) - m for m, t in zip(middle, turns, strict=True)],
        ]
        bars = axes.barh(names, middle, xerr=spread, color=["#c44e52"] + ["#4c72b0"] * (len(names) - 1), capsize=3)
        axes.bar_label(bars, [f"{m:.2f}" if m < 100 else f"{m:.0f}" for m in middle], padding=6)
        axes.margins(x=0.15)
        axes.set_xlabel(label)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].invert_yaxis()
    figure.suptitle(title)
    figure.savefig(file, dpi=150, format="png")


def cpu_model() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
