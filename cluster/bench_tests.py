"""`verydeep bench tests`: what a dense test costs, and a multi-crop one of the same images at the same scales.

Both are what a worker does in a test, without Ray, in turns, in rounds whose order alternates; net and data set are
open. Beside the ratio of their times stands that of the floating-point operations that they ask for, which follows from
the images' sizes: a test that is slower than that waits for images, or feeds the net badly.
"""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import torch

from cluster import nets
from cluster.checkpoint import Card
from cluster.evaluate import PIECE_ROWS, Evaluation, Viewer, check
from cluster.flops import dense_flops, forward_flops
from cluster.passes import GRID
from cluster.table import STRIDE
from cluster.views import Mode, scales_of, views
from cluster.world import World
from pipelines import augment
from pipelines.errors import SettingsError
from pipelines.location import Location
from pipelines.shards import DataSet

Log = Callable[[str], None]

MODES: tuple[Mode, ...] = ("dense", "multi-crop")
_WARM_UP_ROWS = 2


@dataclass(frozen=True)
class Turn:
    """Seconds, of which some in the net, and CPU seconds of the process, for all images at all scales."""

    seconds: float
    net_seconds: float
    cpu_seconds: float


@dataclass(frozen=True)
class Comparison:
    """`rounds`: each mode's turn; `flops`: of an image at all scales, mean, mirror images included."""

    card: Card
    scales: tuple[int, ...]
    images: int
    device: str
    threads: int
    rounds: tuple[dict[Mode, Turn], ...]
    flops: dict[Mode, float]


def run(
    checkpoint: str, source: str, scales: Sequence[int] | None, images: int | None, rounds: int, threads: int, log: Log
) -> Comparison:
    """`scales`: those of the paper's test at several if none are given; `images`: the first of the data set.

    Raises SettingsError, DataError, CheckpointError.
    """
    for option, value in (("--rounds", rounds), ("--images", images), ("--threads", threads)):
        if value is not None and value < 1:
            raise SettingsError(f"{option} {value}: at least 1")
    label, data = nets.look(Location.of(checkpoint)), DataSet.open(source)
    card, rows = label.card, range(min(images or PIECE_ROWS, PIECE_ROWS, data.rows))
    chosen = scales_of(scales or "several", card.scale, card.input_size)
    torch.set_num_threads(threads)
    world = World(0, 1, torch.device("cuda" if torch.cuda.is_available() else "cpu"), threads)
    viewers = {}
    for mode in MODES:
        test = Evaluation(checkpoint, source, views(mode, chosen, mirror=True))
        check(test, label, data.manifest)
        viewers[mode] = Viewer(test, world, lambda record: None)
        _turn(viewers[mode], rows[:_WARM_UP_ROWS])
    found = []
    for number in range(rounds):
        log(f"round {number + 1} of {rounds}")
        order = MODES if number % 2 == 0 else MODES[::-1]
        turns = {mode: _turn(viewers[mode], rows) for mode in order}
        found.append({mode: turns[mode] for mode in MODES})
    return Comparison(
        card, chosen, len(rows), world.device.type, threads, tuple(found), _flops(card, data, chosen, len(rows))
    )


def _turn(viewer: Viewer, rows: range) -> Turn:
    cpu, start = time.process_time(), time.perf_counter()
    looked = viewer(rows).values()
    seconds = time.perf_counter() - start
    return Turn(seconds, sum(look.net_seconds for look in looked), time.process_time() - cpu)


def _flops(card: Card, data: DataSet, scales: Sequence[int], images: int) -> dict[Mode, float]:
    net = card.net, len(card.classes), card.input_size, card.width
    widths, heights = data.read_sizes(0, images)
    by_shape: dict[tuple[int, int], int] = {}
    whole = 0
    for scale in scales:
        for height, width in augment.dense_windows(augment.rescaled(widths, heights, scale), STRIDE).tolist():
            if (height, width) not in by_shape:
                by_shape[height, width] = dense_flops(*net, (height, width))
            whole += by_shape[height, width]
    return {"dense": 2 * whole / images, "multi-crop": 2.0 * GRID * len(scales) * forward_flops(*net)}


@dataclass(frozen=True)
class Figures:
    """Of a mode, medians over rounds: seconds an image, their share in the net, CPU seconds, FLOPs a second."""

    seconds: float
    in_net: float
    cpu_seconds: float
    flops_per_second: float


def figures(c: Comparison, mode: Mode) -> Figures:
    turns = [turns[mode] for turns in c.rounds]
    seconds = median(turn.seconds for turn in turns) / c.images
    share = median(turn.net_seconds / turn.seconds for turn in turns)
    return Figures(seconds, share, median(turn.cpu_seconds for turn in turns) / c.images, c.flops[mode] / seconds)


def ratios(values: Callable[[Turn], float], c: Comparison) -> tuple[float, float, float]:
    """Multi-crop over dense within rounds: median, smallest and largest."""
    found = [values(turns["multi-crop"]) / values(turns["dense"]) for turns in c.rounds]
    return median(found), min(found), max(found)


def table(c: Comparison) -> str:
    wall, cpu = ratios(lambda turn: turn.seconds, c), ratios(lambda turn: turn.cpu_seconds, c)
    by_flops = c.flops["multi-crop"] / c.flops["dense"]
    threads = f"{c.threads} thread{'s' * (c.threads != 1)}"
    rounds = f"{len(c.rounds)} round{'s' * (len(c.rounds) != 1)}"
    lines = [
        f"net {c.card.net}, width {c.card.width:g}, {c.card.input_size} pixels; Q {' '.join(map(str, c.scales))}, "
        f"{c.images} images and their mirror images, {c.device}, {threads}, {rounds}",
        f"{'':<12}{'ms/image':>10}{'in the net':>12}{'CPU ms/image':>14}{'GFLOP/image':>13}{'GFLOP/s':>10}",
    ]
    for mode in MODES:
        f = figures(c, mode)
        lines.append(
            f"{mode:<12}{1000 * f.seconds:>10.2f}{f.in_net:>12.1%}{1000 * f.cpu_seconds:>14.2f}"
            f"{c.flops[mode] / 1e9:>13.3f}{f.flops_per_second / 1e9:>10.1f}"
        )
    lines.append(f"{'ratio':<12}{wall[0]:>10.2f}{'':>12}{cpu[0]:>14.2f}{by_flops:>13.2f}")
    lines.append(
        f"within rounds {wall[1]:.2f} to {wall[2]:.2f}, of CPU time {cpu[1]:.2f} to {cpu[2]:.2f}; "
        f"over the ratio of operations {wall[0] / by_flops:.2f}, of CPU time {cpu[0] / by_flops:.2f}"
    )
    return "\n".join(lines)


def record(c: Comparison) -> dict[str, Any]:
    """All that was measured, for JSON."""
    return {**asdict(c), "figures": {mode: asdict(figures(c, mode)) for mode in MODES}}


def own_threads() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0))
