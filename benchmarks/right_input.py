"""Whether a GPU's graph makes of images and draws what the CPU's makes of them.

Pictures are rough to the last pixel, so that what is cut a pixel beside its place, or mirrored, is far from right.
"""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks import pictures
from benchmarks.setting import Setting
from pipelines import augment, graphs
from pipelines.augment import Draws, Ints, Recipe
from pipelines.decoding import Decoding
from pipelines.graphs import Encoded, Graph
from pipelines.schema import Statistics

_SEED, _EPOCH = 5, 2
NEARER = 0.5  # at most: see `nearness`
_STATISTICS = Statistics(
    (123.0, 117.0, 104.0),
    ((0.58, 0.58, 0.57), (0.71, 0.0, -0.70), (0.40, -0.81, 0.42)),
    (65.0, 14.0, 6.0),
)
_TABLE = "GPU's pixels against the CPU's, grey levels apart"
_WAYS = tuple(Decoding(hardware=share, regions=regions) for regions in (True, False) for share in (0.0, 1.0))
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Bounds:
    """Grey levels apart, at most: at the 99.9th percentile, in the mean, and of an image's mean colour. `goal`: the
    first two are goals, and what is hard is to be nearer than `NEARER`."""

    far: float
    mean: float
    colour: float
    goal: bool = False


STRICT = Bounds(3.0, 0.5, 0.5)
# JPEG engines round in ways of their own, and may not interpolate colours: pixels decoded so, and rounded down, are 4
# levels apart, 0.7 in the mean, 1.1 in colour, and a sixth of the way to the nearest wrong ones.
OF_ENGINES = Bounds(8.0, 1.5, 2.0, goal=True)


@dataclass(frozen=True)
class Crops:
    """Images, and what is done to them."""

    encoded: Encoded
    widths: Ints
    heights: Ints
    draws: Draws
    crop: int

    @classmethod
    def of(cls, files: Sequence[bytes], recipe: Recipe) -> "Crops":
        encoded = [np.frombuffer(file, np.uint8) for file in files]
        widths, heights = np.array([Image.open(io.BytesIO(file)).size for file in files]).T
        rows = np.arange(len(files))
        draws = augment.training_draws(recipe, _SEED, _EPOCH, rows, widths, heights)
        return cls(encoded, widths, heights, draws, recipe.crop)

    def pixels(self, setting: Setting, device: torch.device, decoding: Decoding = _WAYS[0]) -> Tensor:
        """(n, 3, crop, crop), on the CPU."""
        windows = augment.source_windows(self.draws.sizes, self.draws.corners, self.crop, self.widths, self.heights)
        if not decoding.regions:
            windows = windows.whole(self.widths, self.heights)
        feed, n = graphs.feed(self.encoded, self.draws, windows), len(self.encoded)
        once = replace(decoding, depth=1)
        graph = graphs.crops(lambda: feed, self.crop, 1.0, n, setting.threads, _device_id(device), once)
        return _made(graph, device)

    def others(self) -> Iterator[tuple[str, "Crops"]]:
        """The same with draws that are a little wrong."""
        draws = self.draws
        yield "mirrored", replace(self, draws=replace(draws, flips=~draws.flips))
        for name, by in (("a pixel down", (1, 0)), ("up", (-1, 0)), ("right", (0, 1)), ("left", (0, -1))):
            yield name, replace(self, draws=replace(draws, corners=draws.corners + np.array(by)))
        for name, more in (("S larger", 1), ("S smaller", -1)):
            sizes = augment.rescaled(self.widths, self.heights, draws.sizes.min(axis=1) + more)
            yield name, replace(self, draws=replace(draws, sizes=sizes))


def check(setting: Setting) -> None:
    _check_crops(setting)
    _check_wholes(setting)


def recipe(setting: Setting, scale: tuple[int, int] = (256, 512)) -> Recipe:
    """Of the paper's training; smaller in a rehearsal."""
    small = setting.small
    scale = (scale[0] // 4, scale[1] // 4) if small else scale
    return Recipe(scale, 56 if small else 224, True, 0.1, 1.0, _STATISTICS)


def kinds(width: int, height: int) -> dict[str, bytes]:
    """A picture in the formats that data sets have, by their names."""
    rough = pictures.picture(3, width, height)
    rgb = Image.open(io.BytesIO(pictures.encoded(rough, "PNG")))
    return {
        "JPEG": pictures.encoded(rough),
        "JPEG, all colours": pictures.encoded(rough, subsampling="4:4:4"),
        "JPEG, progressive": pictures.encoded(rough, progressive=True),
        "JPEG, gray": _saved(rgb.convert("L"), "JPEG"),
        "JPEG, CMYK": _saved(rgb.convert("CMYK"), "JPEG"),
        "PNG": _saved(rgb, "PNG"),
        "PNG, transparent": _saved(rgb.convert("RGBA"), "PNG"),
        "PNG, palette": _saved(rgb.convert("P"), "PNG"),
        "WebP": _saved(rgb, "WEBP"),
        "BMP": _saved(rgb, "BMP"),
        "one pixel": _saved(Image.new("RGB", (1, 1), (200, 30, 90)), "PNG"),
    }


def levels(found: Tensor, expected: Tensor) -> tuple[float, float]:
    """Grey levels apart at the 99.9th percentile, and in the mean."""
    apart = np.abs(found.numpy() - expected.numpy())
    return float(np.quantile(apart, 0.999)), float(apart.mean())


def nearness(found: Tensor, expected: Tensor, others: Sequence[Tensor]) -> float:
    """Of the worst image: how far it is from what is expected, relative to the nearest of what is not."""
    own = (found - expected).abs().mean(dim=(1, 2, 3))
    return max(float((own / (found - other).abs().mean(dim=(1, 2, 3))).nan_to_num(torch.inf).max()) for other in others)


def _check_crops(setting: Setting) -> None:
    shrink = 4 if setting.small else 1
    sizes = [(500 // shrink, 375 // shrink), (333 // shrink, 500 // shrink)]
    files = [
        pictures.encoded(pictures.picture(i, *sizes[i % 2]), subsampling=("4:2:0", "4:4:4")[i % 4 // 2])
        for i in range(setting.pick(16, 6))
    ]
    crops = Crops.of(files, recipe(setting))
    expected = crops.pixels(setting, _CPU)
    others = [other.pixels(setting, _CPU) for _, other in crops.others()]
    for way in _WAYS:
        found = crops.pixels(setting, setting.device, way)
        _judge(setting, f"crops, {_name(way)}", found, expected, others, bounds(way))
    coarse = replace(_WAYS[0], smooth=False)
    _row(setting, "crops, windows, coarse colours", crops.pixels(setting, setting.device, coarse), expected)


def _check_wholes(setting: Setting) -> None:
    width, height, shorter = (500, 375, 256) if not setting.small else (100, 75, 64)
    n = setting.pick(8, 3)
    encoded = [np.frombuffer(pictures.encoded(pictures.picture(90 + i, width, height)), np.uint8) for i in range(n)]
    widths, heights = np.full(n, width), np.full(n, height)
    seen = augment.dense_windows(augment.rescaled(widths, heights, shorter), 32)

    def pixels(device: torch.device, way: Decoding, larger: int = 0, right: int = 0) -> Tensor:
        """Of a scale that is `larger` by so many pixels, and so many to the right."""
        sizes = augment.rescaled(widths, heights, shorter + larger)
        windows = augment.source_windows(sizes, (sizes - seen) // 2 + np.array((0, right)), seen, widths, heights)
        feed = graphs.feed_wholes(encoded, seen, windows if way.regions else windows.whole(widths, heights))
        mean, device_id, once = _STATISTICS.mean_rgb, _device_id(device), replace(way, depth=1)
        return _made(graphs.wholes(lambda: feed, mean, 1.0, n, setting.threads, device_id, once), device)

    expected = pixels(_CPU, _WAYS[0])
    others = [pixels(_CPU, _WAYS[0], *wrong) for wrong in ((1, 0), (0, 1), (0, -1))] + [expected.flip(3)]
    for way in _WAYS:
        _judge(setting, f"whole images, {_name(way)}", pixels(setting.device, way), expected, others, bounds(way))


def bounds(way: Decoding) -> Bounds:
    return OF_ENGINES if way.hardware else STRICT


def _judge(
    setting: Setting, name: str, found: Tensor, expected: Tensor, others: Sequence[Tensor], most: Bounds
) -> None:
    far, mean = _row(setting, name, found, expected)
    colour = float((found - expected).mean(dim=(2, 3)).abs().max())
    check = setting.report.check
    check(f"{name}: levels apart, 99.9th percentile", far, most=most.far, goal=most.goal)
    check(f"{name}: levels apart, mean", mean, most=most.mean, goal=most.goal)
    check(f"{name}: colour of the worst image, levels", colour, most=most.colour)
    check(f"{name}: distance, by that to other S, crop or flip", nearness(found, expected, others), most=NEARER)


def _row(setting: Setting, name: str, found: Tensor, expected: Tensor) -> tuple[float, float]:
    far, mean = levels(found, expected)
    setting.report.row(_TABLE, graph=name, percentile_999=far, mean=mean)
    return far, mean


def _name(way: Decoding) -> str:
    return f"{'windows' if way.regions else 'whole decoded'}, {'JPEG engines' if way.hardware else 'no engines'}"


def _made(graph: Graph, device: torch.device) -> Tensor:
    try:
        return graphs.run(graph, device).to("cpu", copy=True)
    finally:
        graphs.stop(graph)


def _device_id(device: torch.device) -> int | None:
    return device.index or 0 if device.type == "cuda" else None


def _saved(image: Image.Image, kind: str) -> bytes:
    out = io.BytesIO()
    image.save(out, kind)
    return out.getvalue()
