"""What `verydeep plan` prints: a table, with a few lines of words; or all numbers, for programs."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import groupby
from textwrap import fill
from typing import Any

from cluster import schedule
from cluster.settings import StageSettings
from cluster.wire import Sent
from jobs.exchanged import Exchange
from jobs.forecast import Forecast, Part
from jobs.units import hours, scaled

_HEAD = ("", "net", "S or Q", "epochs", "steps", "images", "FLOPs", "read", "sent", "saved", "time")
_WORDS = 3  # columns, which are set to the left
_NAMES = 6  # of parts in a list of them, at most


def text(forecast: Forecast, stages: Mapping[str, StageSettings]) -> str:
    """`stages`: their settings."""
    f = forecast
    sets = f"{f.training.rows:,} images to train on, {f.validation.rows:,} to validate with"
    title = f"{f.job}: {sets}, {f.classes} classes; {_count(f.workers, 'worker')}"
    rows = [_HEAD, *map(_cells, f.parts), _sum(f)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(_HEAD))]
    head, *lines, last = (_aligned(row, widths) for row in rows)
    body = [
        line for part, row in zip(f.parts, lines, strict=True) for line in (row, *_words(part, stages.get(part.name)))
    ]
    rule = "-" * max(map(len, (head, *lines, last)))
    return "\n".join(
        [
            title,
            "",
            head,
            rule,
            *body,
            rule,
            last,
            "",
            *(fill(note, 100, subsequent_indent="    ") for note in _notes(f)),
        ]
    )


def _cells(part: Part) -> tuple[str, ...]:
    work, files = part.work, part.files
    scale = " ".join(map(str, part.scale)) if part.is_test else "-".join(map(str, dict.fromkeys(part.scale)))
    if not work.flops:
        return (part.name, part.net, scale, *("-" for _ in _HEAD[_WORDS:]))
    saved = scaled(files.bytes * files.written, "B") if files else "-"
    epochs = "-" if part.is_test else str(part.epochs)
    return (part.name, part.net, scale, epochs, *_work(part), saved, _hours(part.hours))


def _work(part: Part) -> tuple[str, ...]:
    work = part.work
    steps, sent = (scaled(work.steps), scaled(work.sent_bytes, "B")) if work.steps else ("-", "-")
    return steps, scaled(work.images + work.looked_at), scaled(work.flops), scaled(work.read_bytes, "B"), sent


def _sum(f: Forecast) -> tuple[str, ...]:
    work = f.sum
    saved = sum(part.files.bytes * part.files.written for part in f.parts if part.files)
    epochs = sum(part.epochs for part in f.parts)
    return (
        "in all", "", "", str(epochs), scaled(work.steps), scaled(work.images + work.looked_at),
        scaled(work.flops), scaled(work.read_bytes, "B"), scaled(work.sent_bytes, "B"), scaled(saved, "B"),
        _hours(f.hours),
    )  # fmt: skip


def _aligned(row: tuple[str, ...], widths: list[int]) -> str:
    cells = (
        cell.ljust(w) if i < _WORDS else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
    )
    return "  ".join(cells).rstrip()


def _words(part: Part, s: StageSettings | None) -> Iterator[str]:
    yield f"    {part.action.value}: {part.reason}"
    if s is not None and part.work.flops:
        yield f"    from {s.init.source or 'random weights'}; {schedule.in_words(s)}"


def _notes(f: Forecast) -> Iterator[str]:
    if any(part.epochs for part in f.parts):
        yield "All of it at most: a stage may end before its last epoch, where its schedule says so."
    if f.sum.sent_bytes:
        whole = scaled(f.sum.sent_bytes * f.workers, "B")
        yield f"sent: gradients, by each of the {f.workers} workers to others; {whole} by all of them."
        yield from map(_exchange, f.exchanges)
        yield from _assumed(f.exchanges)
    if kept := [part.files for part in f.parts if part.files and part.files.written]:
        number, size = sum(each.kept for each in kept), sum(each.bytes * each.kept for each in kept)
        yield f"saved: checkpoints; {number} of them, {scaled(size, 'B')}, stay on the storage."
    yield from _time(f)


def _exchange(each: Exchange) -> str:
    """By the names of convolutions; neighbours that send as much are told of together."""
    sums, factors = ([layer for layer in each.layers if layer.way == way] for way in ("ddp", "factors"))
    runs = [list(run) for _, run in groupby(sums, lambda layer: layer.bytes)]
    parts = ["as sums " + ", ".join(map(_run, runs))] * bool(runs)
    parts += [f"as factors in {'bf16' if each.bf16 else 'float32'} {', '.join(map(_layer, factors))}"] * bool(factors)
    parts += [f"statistics {scaled(each.statistics_bytes, 'B')}"] * bool(each.statistics_bytes)
    whole, plain = scaled(each.bytes, "B"), scaled(each.plain_bytes, "B")
    title = f"a step of {' and '.join(each.nets)} ({_listed(each.stages)})"
    return f"{title}: {whole}, by plain DDP {plain}; {'; '.join(parts)}."


def _run(run: Sequence[Sent]) -> str:
    return f"{' '.join(layer.layer for layer in run)}{' each' * (len(run) > 1)} {scaled(run[0].bytes, 'B')}"


def _layer(layer: Sent) -> str:
    return f"{layer.layer} {scaled(layer.bytes, 'B')}"


def _assumed(exchanges: Sequence[Exchange]) -> Iterator[str]:
    assumed = {each.bf16 for each in exchanges if each.assumed}
    if True in assumed:
        yield "factors: taken to be in bf16, as GPUs from Ampere on compute; in float32 they are twice as large."
    if False in assumed:
        yield (
            "factors: taken to be in float32, since the job does not say whether there are GPUs (gpus_per_worker); of "
            "those that compute in bf16 they are half as large."
        )


def _time(f: Forecast) -> Iterator[str]:
    todo = [part for part in f.parts if part.work.flops]
    if any(part.pace is None for part in todo):
        yield (
            "time: unknown, since nothing was measured in this storage yet. Give --images-per-second, which `verydeep "
            "bench step` measures, or run a stage."
        )
        return
    yield from _sources(todo)
    if any(part.is_test and not part.measured for part in todo):
        yield "time of tests: at the pace of training; in float32, so that GPUs that train in bf16 take longer."
    walls = f.walls()
    if told := [n for n in walls if n > 1 and (n.bit_count() == 1 or n == max(walls))]:
        others = ", ".join(f"{n} at a time {_hours(walls[n])}" for n in told)
        each = f"side by side, each on {_count(f.workers, 'worker')}"
        yield f"time: one after the other {_hours(walls[1])}; {each}: {others}."


def _sources(todo: Sequence[Part]) -> Iterator[str]:
    """Where the paces are from; that of a test that is its stage's is not told of again."""
    paces = dict.fromkeys(part.pace for part in todo)
    for pace in paces:
        names = [part.name for part in todo if part.pace == pace and (not part.is_test or part.measured)]
        if pace is not None and (names or len(paces) == 1):
            yield f"time: {pace.source}" + (f" ({_listed(names)})." if len(paces) > 1 else ".")


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _NAMES
    return f"{', '.join(names[:_NAMES])} and {more} more" if more > 1 else ", ".join(names)


def _hours(number: float | None) -> str:
    return "?" if number is None else hours(number)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def plain(forecast: Forecast) -> dict[str, Any]:
    """All numbers: counts, bytes, FLOPs and hours, None where they are not known."""
    f = forecast
    walls = {} if f.hours is None else f.walls()
    return {
        "job": f.job,
        "workers": f.workers,
        "training_set": asdict(f.training),
        "validation_set": asdict(f.validation),
        "classes": f.classes,
        "parts": [_plain(part) for part in f.parts],
        "exchanges": [{**asdict(each), "bytes": each.bytes} for each in f.exchanges],
        "sum": {**asdict(f.sum), "hours": f.hours},
        "hours_side_by_side": {str(n): hours for n, hours in walls.items()},
    }


def _plain(part: Part) -> dict[str, Any]:
    pace = {"flops_per_second": None, "source": None} if part.pace is None else asdict(part.pace)
    files = None if part.files is None else asdict(part.files)
    return {
        "name": part.name,
        "kind": "test" if part.is_test else "stage",
        "net": part.net,
        "scales": list(part.scale),
        "action": part.action.value,
        "reason": part.reason,
        "needs": list(part.needs),
        "epochs": part.epochs,
        **asdict(part.work),
        "checkpoints": files,
        "hours": part.hours,
        "pace": pace,
    }
