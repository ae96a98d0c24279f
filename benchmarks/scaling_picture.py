"""What `benchmarks.scaling` found, drawn in four panels."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from matplotlib.axes import Axes

from benchmarks import scaling_model as model
from benchmarks.scaling import HOROVOD, NETWORKS, PUBLISHED, WAYS, WORKERS, Point, settings
from jobs.pictures import BLUE, FONT, GREEN, GREY, INK, ORANGE, PURPLE, VERMILION, drawing

_COLOURS = dict(zip(NETWORKS, (VERMILION, ORANGE, GREEN, BLUE), strict=True))
_OF_WAYS = dict(zip(WAYS, (GREY, PURPLE, GREEN, BLUE), strict=True))
_BEST = "auto, sums in bf16"
_APART = 5.5  # per cent: labels of lines that end close to one another


def draw(points: Sequence[Point], file: Path) -> None:
    found = [point for point in points if point.net == "D"]
    with drawing((12.5, 9.0)) as (figure, _):
        (first, second), (third, fourth) = axes = figure.subplots(2, 2)
        for each in axes.flat:
            _scale(each)
        weak, strong = ([p for p in found if p.scaling == scaling] for scaling in ("weak", "strong"))
        _published(first)
        _networks(second, weak, f"H100, 256 images each: plain DDP dashed,\n{_BEST} solid")
        _label_ends(second, weak)
        _networks(third, strong, f"H100, 256 images in all: plain DDP dashed,\n{_BEST} solid")
        third.legend(loc="upper right")
        _ways(fourth, strong)
        figure.savefig(file, dpi=100, metadata={"Software": None})


def _published(axes: Axes) -> None:
    for way, colour in (("plain DDP", GREY), (_BEST, BLUE)):
        own = settings("D", WAYS[way], 64)
        axes.plot(WORKERS, [100 * model.efficiency(HOROVOD, own, n, weak=True) for n in WORKERS], color=colour)
    for each in PUBLISHED:
        axes.plot(each.workers, 100 * each.efficiency, "o", color=VERMILION, zorder=3)
        axes.plot(each.workers, 100 * each.modelled(), "x", color=INK, zorder=4)
    _write(axes, 10, 101.5, f"{_BEST} (model)", BLUE)
    _write(axes, 14, 85.5, "plain DDP (model)", INK)
    _write(axes, 60, 73, "Horovod: 79 %", VERMILION)
    _write(axes, 256, 62, "Horovod: 68 %", VERMILION)
    speed_up = 4 * PUBLISHED[0].modelled()
    _write(axes, 1.05, 82, f"4 Titan Blacks, PCIe: 3.75\ntimes one; model {speed_up:.2f}", VERMILION)
    axes.set_title("Published (dots), and the model of the same", fontsize=FONT)
    axes.set_ylim(40, 106)


def _networks(axes: Axes, points: Sequence[Point], title: str) -> None:
    for network, colour in _COLOURS.items():
        axes.plot(WORKERS, _line(points, network, "plain DDP"), "--", color=colour)
        axes.plot(WORKERS, _line(points, network, _BEST), color=colour, label=network)
    axes.set_title(title, fontsize=FONT)


def _ways(axes: Axes, points: Sequence[Point]) -> None:
    for way, colour in _OF_WAYS.items():
        axes.plot(WORKERS, _line(points, "100 GbE", way), color=colour, label=way)
    axes.legend(loc="upper right")
    axes.set_title("H100, 256 images in all, 100 GbE", fontsize=FONT)


def _label_ends(axes: Axes, points: Sequence[Point]) -> None:
    """Beside the lines, moved apart."""
    ends = [(_line(points, network, _BEST)[-1], network, colour) for network, colour in _COLOURS.items()]
    below = -1.0
    for height, text, colour in sorted(ends):
        below = max(height, below + _APART)
        _write(axes, WORKERS[-1] * 1.12, below, text, colour)


def _write(axes: Axes, x: float, y: float, text: str, colour: str) -> None:
    axes.text(x, y, text, color=colour, va="center", fontsize=FONT - 2)


def _line(points: Iterable[Point], network: str, way: str) -> list[float]:
    return [100 * p.efficiency for p in points if (p.network, p.way) == (network, way)]


def _scale(axes: Axes) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(WORKERS, [str(n) for n in WORKERS])
    axes.minorticks_off()
    axes.set(xlim=(0.95, 1150), ylim=(0, 106), xlabel="workers", ylabel="efficiency, %")
    axes.grid(axis="y")
