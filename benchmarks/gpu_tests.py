"""Dense and multi-crop tests of D: images a second at three scales, in each precision, and what rounding does to
probabilities.

The images have four shapes, so that nearly all passes are full; ImageNet's have some hundred, and passes of the net are
smaller there: what these take is in the table of passes.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks import pictures, random_net
from benchmarks.setting import Setting, seconds
from cluster.evaluate import PIECE_ROWS, Evaluation, Looked, Viewer
from cluster.flops import dense_flops, forward_flops
from cluster.passes import GRID, PASS_PIXELS, dense_scores, precisely
from cluster.peak import Precision as Peak
from cluster.peak import peak_flops
from cluster.settings import StageSettings
from cluster.table import STRIDE
from cluster.vgg import VGG
from cluster.views import Mode, Precision, views
from pipelines import augment
from pipelines.shards import DataSet

_PRECISIONS: tuple[Precision, ...] = ("tf32", "float32", "bf16")  # in the order in which they are worth most
_PEAKS: dict[Precision, Peak] = {"float32": "float32", "tf32": "tf32", "bf16": "bfloat16"}
_GOAL = 50_000 / 300  # images a second: ImageNet's validation set in 5 minutes
_MOST_OFF: dict[Precision, float] = {"tf32": 0.01, "bf16": 0.05}  # of a probability, from float32's
_CROPS_SECONDS, _CELL_SECONDS = 8.0, 3.0  # with less left, what would take so long is left out


@dataclass(frozen=True)
class _Subject:
    """What is tested. `flops` of a mode: of an image at all scales, mean, mirror images included."""

    setting: Setting
    net: VGG
    viewer: Viewer
    scales: tuple[int, ...]
    flops: dict[Mode, float]

    def peak(self, precision: Precision) -> float | None:
        """FLOP/s."""
        return peak_flops(self.setting.device, _PEAKS[precision], self.setting.threads)


def run(setting: Setting) -> None:
    rows = setting.pick(320, 4)
    subject = _subject(setting, DataSet.open(str(pictures.training_set(setting, rows))))
    _reckon(subject)
    _test(subject, "dense", setting.pick(64, 2), rows)
    _passes(subject)
    _test(subject, "multi-crop", setting.pick(8, 1), setting.pick(32, 2))


def _subject(setting: Setting, data: DataSet) -> _Subject:
    side, file = setting.pick(224, 32), setting.folder / "random-d.safetensors"
    width = 0.03 if setting.small else 1.0
    settings = StageSettings(net="D", scale=(side, side), input_size=side, width=width, pixel_std=64.0)
    net = random_net.write(settings, data.manifest, setting.device, file)
    scales = (32, 36, 64) if setting.small else (256, 384, 512)
    test = Evaluation(str(file), data.location.absolute, ())
    flops: dict[Mode, float] = {
        "dense": _dense_flops(net, data, scales),
        "multi-crop": 2.0 * GRID * len(scales) * forward_flops(net.net, net.classes, side, width),
    }
    return _Subject(setting, net, Viewer(test, setting.world, lambda record: None), scales, flops)


def _dense_flops(net: VGG, data: DataSet, scales: tuple[int, ...]) -> float:
    widths, heights = data.read_sizes(0, data.rows)
    shapes = [augment.dense_windows(augment.rescaled(widths, heights, scale), STRIDE).tolist() for scale in scales]
    of = net.net, net.classes, net.input_size, net.width
    return 2 * sum(dense_flops(*of, (h, w)) for each in shapes for h, w in each) / data.rows


def _reckon(subject: _Subject) -> None:
    """What the device could do at most."""
    for precision in _PRECISIONS:
        flops, peak = subject.flops["dense"], subject.peak(precision)
        cells = {"GFLOP/image": flops / 1e9, "peak TFLOP/s": peak and peak / 1e12, "images/s": peak and peak / flops}
        subject.setting.report.row(
            "Dense at three scales: at most, by the maker's figures", precision=precision, **cells
        )


def _test(subject: _Subject, mode: Mode, few: int, rows: int) -> None:
    """The whole test, images decoded and all, in each precision; of a few rows, too, to tell what it takes to begin."""
    setting, found = subject.setting, dict[Precision, list[Looked]]()
    for precision in _PRECISIONS:
        if mode == "multi-crop" and setting.left() < _CROPS_SECONDS:
            setting.report.left_out(f"{mode} in {precision}")
            continue
        looks = views(mode, subject.scales, True, precision)
        for view in looks:
            subject.viewer.look(view, range(setting.pick(4, 1)))  # kernels are loaded and chosen
        begun, found[precision] = ([subject.viewer.look(view, range(n)) for view in looks] for n in (few, rows))
        _tell(subject, mode, precision, begun, found[precision])
    for precision in ("tf32", "bf16"):
        if precision in found and "float32" in found:
            _compare(setting, mode, precision, _mean(found["float32"]), _mean(found[precision]))


def _tell(subject: _Subject, mode: Mode, precision: Precision, begun: list[Looked], found: list[Looked]) -> None:
    report, peak = subject.setting.report, subject.peak(precision)
    spent, in_net = _seconds(found), sum(looked.net_seconds for looked in found)
    few, many = len(begun[0].rows), len(found[0].rows)
    each = max(spent - _seconds(begun), spent / many) / (many - few) if few < many else spent / many
    start = max(0.0, spent - many * each)
    speed = PIECE_ROWS / (start + PIECE_ROWS * each)
    rate = speed * subject.flops[mode]
    report.row(
        "Tests of D at three scales, with mirror images",
        mode=mode,
        precision=precision,
        **{"images/s": speed, "to begin a piece, s": start, "in the net %": 100 * in_net / spent},
        **{"TFLOP/s": rate / 1e12, "share of peak %": 100 * rate / peak if peak else None},
    )
    sums = np.concatenate([looked.scores.sum(axis=1) for looked in found])
    report.check(f"{mode}, {precision}: the sum of probabilities, off 1 by", np.abs(sums - 1).max(), most=1e-4)
    if mode == "dense" and precision == "tf32":
        report.check("dense tests of D at three scales in tf32, images/s", speed, least=_GOAL, goal=True)


def _seconds(found: list[Looked]) -> float:
    return sum(looked.seconds for looked in found)


def _mean(found: list[Looked]) -> NDArray[np.float32]:
    """(n, classes), over all scales, as it is counted; in the order of rows."""
    return np.mean([looked.scores[np.argsort(looked.rows)] for looked in found], axis=0)


def _compare(
    setting: Setting, mode: Mode, precision: Precision, exact: NDArray[np.float32], found: NDArray[np.float32]
) -> None:
    off = np.abs(exact - found)
    setting.report.row(
        "Probabilities, beside those of float32",
        mode=mode,
        precision=precision,
        **{"first one, mean": float(exact.max(axis=1).mean()), "farthest off": float(off.max())},
        **{"farthest of an image, mean": float(off.max(axis=1).mean())},
        **{"another first one %": 100 * float((exact.argmax(1) != found.argmax(1)).mean())},
    )
    setting.report.check(f"{mode}, {precision}: a probability, off by", off.max(), most=_MOST_OFF[precision])


def _passes(subject: _Subject) -> None:
    """The net alone, on images that are there already: by precision, size of a pass, and how a map lies in memory."""
    setting, default = subject.setting, PASS_PIXELS[subject.setting.device.type].bit_length() - 1
    usual = setting.pick(default, 14)
    for precision in _PRECISIONS:
        most = usual + setting.pick(3 if precision == "float32" else 4, 1)
        for exponent in range(usual - setting.pick(2, 0), most):
            _pass(subject, precision, exponent, "channels last")
    subject.net.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    for tried in (False, True):
        torch.backends.cudnn.benchmark = tried
        for precision in _PRECISIONS:
            _pass(subject, precision, usual, "planes, kernels tried" if tried else "planes")
    torch.backends.cudnn.benchmark = False


def _pass(subject: _Subject, precision: Precision, exponent: int, layout: str) -> None:
    setting, net = subject.setting, subject.net
    if setting.left() < _CELL_SECONDS + _CROPS_SECONDS:
        return
    ((height, width),) = augment.dense_windows(
        augment.rescaled(np.array([500]), np.array([375]), subject.scales[-1]), STRIDE
    ).tolist()
    count = max(1, (1 << exponent) // (height * width))
    memory = torch.channels_last if layout == "channels last" else torch.contiguous_format
    cells = {"precision": precision, "layout": layout, "images of a pass": count}
    speed: float | None = None
    try:
        images = torch.randn(count, 3, height, width, device=setting.device).to(memory_format=memory)
        with torch.inference_mode(), precisely(precision, setting.device):
            speed = count / seconds(lambda: dense_scores(net)(images), setting.device, repeats=3, warm_up=1)
    except torch.cuda.OutOfMemoryError:
        torch.cuda.empty_cache()
    flops = dense_flops(net.net, net.classes, net.input_size, net.width, (height, width))
    rates = {"images/s": speed or "out of memory", "TFLOP/s": speed and speed * flops / 1e12}
    setting.report.row(f"Passes of D, dense, {width} x {height}", **cells, **rates)
