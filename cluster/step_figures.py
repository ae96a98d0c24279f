"""What `bench step` found, as a table and as JSON: medians over intervals, and ratios within rounds."""

from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from cluster.bench_step import Comparison, Interval
from cluster.stopwatch import PARTS

_NOTES = (
    "other: between the parts, and messages to the driver.  exchange: the share by which gradients take longer on all "
    "workers than\non each by itself, measured apart, in turns, on one batch; some of it hides behind the backward "
    "pass, and with factors the\nproducts of the others' images are in it.  All of worker 0, medians; ratio: within "
    "rounds."
)


@dataclass(frozen=True)
class Figures:
    """Milliseconds a step, medians over all intervals, of `parts` (with "other") and of the `whole` step. Ratios of our
    loop to the bare one, whole rounds: median, smallest and largest. `fastest`: that of the fastest intervals of all
    rounds, which other programs on the machine disturb least."""

    parts: dict[str, float]
    whole: float
    bare: float
    ratio: tuple[float, float, float]
    fastest: float
    cpu_ratio: tuple[float, float, float]
    flops_per_second: float  # of one worker
    share_of_peak: float | None


def figures(c: Comparison) -> Figures:
    intervals = [interval for r in c.rounds for interval in r.intervals]
    bare = [1000 * s / i.steps for r in c.rounds for i, s in zip(r.intervals, r.bare.seconds, strict=True)]
    ours = [1000 * i.seconds / i.steps for i in intervals]
    alone, exchanged = (
        median(values) for values in zip(*((r.bare.backward, r.bare.exchanged) for r in c.rounds), strict=True)
    )
    own = min(1.0, alone / exchanged)  # the share of what comes after the forward pass that is not exchange
    parts = [_parts(interval, own) for interval in intervals]
    whole = median(ours)
    rate = c.flops * c.settings.batch / c.shape.workers / whole * 1000
    return Figures(
        parts={name: median(p[name] for p in parts) for name in (*PARTS, "other")},
        whole=whole,
        bare=median(bare),
        ratio=_spread([sum(i.seconds for i in r.intervals) / sum(r.bare.seconds) for r in c.rounds]),
        fastest=min(ours) / min(bare),
        cpu_ratio=_spread([sum(i.cpu_seconds for i in r.intervals) / sum(r.bare.cpu_seconds) for r in c.rounds]),
        flops_per_second=rate,
        share_of_peak=rate / c.peak_flops if c.peak_flops else None,
    )


def table(c: Comparison) -> str:
    s, f = c.settings, figures(c)
    rows = [(name, f.parts[name]) for name in (*PARTS, "other")]
    lines = [f"{name:<12}{value:>9.3f} ms{value / f.whole:>8.1%}" for name, value in rows]
    peak = "" if f.share_of_peak is None else f", {f.share_of_peak:.0%} of what its device can do"
    rounds = f"{len(c.rounds)} round{'s' * (len(c.rounds) != 1)}"
    ratios = f"{_range(f.ratio)}; of the fastest intervals {f.fastest:.3f}; of CPU time {_range(f.cpu_ratio)}"
    return "\n".join(
        (
            f"net {s.net}, width {s.width:g}, {s.input_size} pixels, batch {s.batch} on {c.shape.workers} workers: "
            f"{c.points[-1] - c.points[0]} steps after {c.points[0]}, {rounds}",
            *lines,
            f"{'whole':<12}{f.whole:>9.3f} ms  {f.flops_per_second / 1e9:.1f} GFLOP/s of the model on a worker{peak}",
            f"{'bare loop':<12}{f.bare:>9.3f} ms",
            f"{'ratio':<12}{ratios}",
            f"{'checkpoint':<12}a step that triggers one takes {c.saving.ratio:.2f} times a normal one, on one worker; "
            f"it is written {c.saving.written:.2f} s later",
            _NOTES,
        )
    )


def record(c: Comparison) -> dict[str, Any]:
    """All that was measured, for JSON."""
    return {**asdict(c), "settings": c.settings.model_dump(by_alias=True, mode="json"), "figures": asdict(figures(c))}


def _parts(interval: Interval, own: float) -> dict[str, float]:
    """Milliseconds a step by part, and what is left of the whole. The loop cannot tell what is exchange: sums go on
    during the backward pass, and what it waits for after it has products in it that each worker would make, too."""
    seconds = dict(interval.parts)
    gradients = seconds["backward"] + seconds["exchange"]
    seconds["backward"], seconds["exchange"] = gradients * own, gradients * (1 - own)
    seconds["other"] = interval.seconds - sum(seconds.values())
    return {name: 1000 * value / interval.steps for name, value in seconds.items()}


def _spread(values: list[float]) -> tuple[float, float, float]:
    return median(values), min(values), max(values)


def _range(spread: tuple[float, float, float]) -> str:
    middle, low, high = spread
    return f"{middle:.3f} ({low:.3f} to {high:.3f})"
