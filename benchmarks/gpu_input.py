"""How fast the input side alone is on this GPU and these cores, which ways of decoding help, and whether memory stays.

One factor at a time around a base; graphs by themselves on batches that are in memory, then the loader from Parquet.
"""

import time
from collections.abc import Iterable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks import pictures, report, right_input
from benchmarks.right_input import Crops
from benchmarks.setting import Setting
from pipelines import tune
from pipelines.augment import Recipe
from pipelines.decoding import Decoding
from pipelines.loader import TrainingBatches
from pipelines.order import Order
from pipelines.seat import Seat
from pipelines.shards import DataSet

_BEST = "The loader from Parquet, as training has it"
_SWEEP = "The graph alone, one factor at a time, images a second"
_DRAWN, _FIXED = "S drawn, 256 to 512", "S = 256"
_SCALES = {_DRAWN: (256, 512), _FIXED: (256, 256)}
_EPOCHS = 10
_GROWTH_MIB = 64  # after the second epoch
_KINDS_LEVELS = 3.0
_AFTER_HARDWARE_SECONDS, _AFTER_ALL_SECONDS = 35.0, 6.0  # for what comes after a sweep


def run(setting: Setting) -> None:
    data = DataSet.open(str(pictures.training_set(setting, setting.pick(2048, 48))))
    setting.report.note(f"{data.rows} pictures of {data.manifest.total_bytes / data.rows / 1000:.0f} KB")
    base = _hardware(setting, data)
    best = _tuned(setting, data)
    _epochs(setting, data, best)
    _others(setting, data, base)
    _kinds(setting)


def best_rate(folder: Path) -> float | None:
    """Images a second that the loader made, S drawn from 256 to 512 and batches of 256, if that was measured."""
    rows = report.read(folder / "input.jsonl").tables.get(_BEST, [])
    return float(rows[0]["images_per_second"] or 0) if rows else None


def _hardware(setting: Setting, data: DataSet) -> Decoding:
    """Shares of the JPEG engines, and windows or whole images; the fastest of them is the base of what follows."""
    ways = [Decoding(hardware=share, regions=r) for r in (True, False) for share in (0.0, 0.25, 0.5, 0.65, 0.8, 1.0)]
    cells = [(str(way), way, 256, _DRAWN) for way in (*ways, Decoding(smooth=False))]
    speeds = _sweep(setting, data, cells, _AFTER_HARDWARE_SECONDS)
    return max(ways, key=lambda way: speeds.get(way, 0.0))


def _tuned(setting: Setting, data: DataSet) -> Decoding:
    """What training would choose."""
    with closing(_batches(setting, data, 256, _SCALES[_DRAWN])) as batches:
        if setting.cuda:
            choice = tune.choose(batches)
        else:  # where all decode alike but for these
            choice = tune.choose(batches, [Decoding(), Decoding(regions=False)])
    for trial in choice.trials:
        setting.report.row("What training tries", way=str(trial.decoding), images_per_second=trial.images_per_second)
    setting.report.note(f"training chose {choice}")
    setting.report.check("ways that training could try", sum(t.images_per_second > 0 for t in choice.trials), least=1)
    setting.report.check("seconds until training had chosen", choice.seconds, most=15, goal=True)
    return choice.decoding


def _epochs(setting: Setting, data: DataSet, decoding: Decoding) -> None:
    """Ten epochs from Parquet: speed but for the first, and growth of memory after the second."""
    order = _order(setting, data, 256)
    used: list[tuple[int, int]] = []
    started = time.perf_counter()
    made = 0
    last = _EPOCHS * order.steps_per_epoch
    with closing(_batches(setting, data, 256, _SCALES[_DRAWN], last, decoding)) as batches:
        for step, batch in enumerate(batches, 1):
            total = batch.images.sum()  # the GPU reads it, as a net would
            made += len(batch.rows)
            if step % order.steps_per_epoch == 0:
                total.item()
                used.append(_used(setting))
            if step == order.steps_per_epoch:
                started, made = time.perf_counter(), 0
    rate = made / (time.perf_counter() - started)
    setting.report.row(_BEST, images_per_second=rate, way=str(decoding), batch=order.batch, rows=data.rows)
    for what, values in zip(("GPU", "host"), zip(*used, strict=True), strict=True):
        growth = max(values[2:]) - values[1]
        setting.report.check(f"{what} memory, growth in epochs 3 to {_EPOCHS}, MiB", growth / 2**20, most=_GROWTH_MIB)


def _kinds(setting: Setting) -> None:
    """One batch of all formats, each against the CPU's decoder."""
    files = right_input.kinds(*((500, 375) if not setting.small else (100, 75)))
    crops = Crops.of(list(files.values()), right_input.recipe(setting))
    expected = crops.pixels(setting, torch.device("cpu"))
    worst = 0.0
    for way in (Decoding(hardware=0.65), Decoding(hardware=0.65, regions=False)):
        found = crops.pixels(setting, setting.device, way)
        for i, name in enumerate(files):
            far, mean = right_input.levels(found[i], expected[i])
            setting.report.row("Formats, grey levels apart", format=name, way=str(way), percentile_999=far, mean=mean)
            worst = max(worst, far)
    setting.report.check("formats: the worst, levels apart, 99.9th percentile", worst, most=_KINDS_LEVELS)


def _others(setting: Setting, data: DataSet, base: Decoding) -> None:
    cores = setting.threads
    cells = [(f"{n} threads", replace(base, threads=n), 256, _DRAWN) for n in (16, 8, 4) if n <= cores]
    cells += [(f"{depth} batches ahead", replace(base, depth=depth), 256, _DRAWN) for depth in (2, 3, 4)]
    cells += [(f"batch {batch}", base, batch, _DRAWN) for batch in (64, 128, 256)]
    cells += [(_FIXED, base, 256, _FIXED), (f"{_FIXED}, whole images", replace(base, regions=False), 256, _FIXED)]
    _sweep(setting, data, cells, _AFTER_ALL_SECONDS)


def _sweep(
    setting: Setting, data: DataSet, cells: Iterable[tuple[str, Decoding, int, str]], after_seconds: float
) -> dict[Decoding, float]:
    """Rows of (factor, way, batch, scale), while more than so many seconds are left; the speeds of ways, 0 of one that
    failed."""
    found: dict[Decoding, float] = {}
    for factor, way, batch, scale in cells:
        if setting.left() < after_seconds:
            setting.report.left_out(f"{factor} and what was to follow")
            break
        with closing(_batches(setting, data, batch, _SCALES[scale], decoding=way)) as batches:
            speed = tune.images_per_second(batches, batches.samples(setting.pick(512, 32)), way)
        setting.report.row(_SWEEP, factor=factor, images_per_second=speed or None)
        found[way] = speed
    return found


def _batches(
    setting: Setting,
    data: DataSet,
    batch: int,
    scale: tuple[int, int],
    last: int | None = None,
    decoding: Decoding | None = None,
) -> TrainingBatches:
    """Up to step `last`; by default one epoch."""
    order, seat = _order(setting, data, batch), Seat(0, 1, setting.device, setting.threads)
    recipe: Recipe = right_input.recipe(setting, scale)
    steps = order.steps_per_epoch if last is None else last
    return TrainingBatches(data, order, recipe, seat, 0, steps, decoding or Decoding())


def _order(setting: Setting, data: DataSet, batch: int) -> Order:
    return Order.of(data.manifest, max(4, batch // 16) if setting.small else batch, 0)


def _used(setting: Setting) -> tuple[int, int]:
    """Bytes of the GPU, by all that use it, and of this process in main memory."""
    gpu = 0
    if setting.cuda:
        free, total = torch.cuda.mem_get_info(setting.device)
        gpu = total - free
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return gpu, pages * 4096
