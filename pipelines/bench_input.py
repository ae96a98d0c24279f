"""`verydeep bench input`: ours and its peers on the same images and cores. See `bench` for how it is measured."""

import difflib
import os
import tarfile
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from pipelines import bench, peers, peers_dali
from pipelines.augment import Ints
from pipelines.bench import Contender, Log, Result
from pipelines.errors import BenchError, DataError, SettingsError
from pipelines.peers import Stream, Task
from pipelines.shards import DataSet

REFERENCE = "ours"
IMAGES = 512
_UNIT = 64  # images of a round: a multiple of the smallest batch
_BATCHES = (128, 64, 256)
_DEPTHS = (2, 3)
_DECODED_BYTES = 1 << 30  # of a batch of whole decoded images, at most
_SHARDS = 8  # at least, for webdataset
_PIXEL_STD = 64.0  # as in the shipped jobs that divide
_GREY_LEVELS = 3.0  # by which means and deviations may differ between contenders, beside
_CROP_GREY_LEVELS = 30.0  # three standard deviations of a crop's mean among the crops of an image: assumption


def run(
    place: str,
    scale: tuple[int, int],
    crop: int,
    rounds: int,
    images: int | None,
    only: Sequence[str],
    tune: bool,
    log: Log,
) -> list[Result]:
    """Results, ours first. `images` in each round, or None for as many as there are, at most 512; `only`: names of
    contenders to measure beside ours, or none for all. Raises SettingsError, DataError, BenchError."""
    _check_settings(scale, crop, rounds, only)
    data = DataSet.open(place)
    if data.manifest.statistics is None:
        raise DataError(f"{place}: has no statistics of its pixels, as validation sets have none; take a training set")
    images = round_images(images, data.rows)
    cores = len(os.sched_getaffinity(0))
    mean = data.manifest.statistics.mean_rgb
    with tempfile.TemporaryDirectory(prefix="verydeep-bench-") as copies:
        task = Task(data.location.absolute, images, scale, crop, mean, _PIXEL_STD, 0, Path(copies))
        copy(data, task, -(-_SHARDS // cores) * cores)
        widths, heights = data.read_sizes(0, images)
        found = contenders(task, widths, heights, cores)
        chosen = [c for c in found if not only or c.name in (REFERENCE, *only)]
        for contender in chosen:
            if contender.missing:
                lacks = ", ".join(contender.missing)
                log(f"{contender.name}: left out, {lacks} is not installed: pip install 'verydeep[bench]'")
        return bench.compare([c for c in chosen if not c.missing], rounds, tune, log, partial(check, crop, images))


NAMES = ("ours", "dali", "pil", "opencv", "webdataset", "decode", "regions")
LIMITS = ("decode", "regions")


def contenders(task: Task, widths: Ints, heights: Ints, cores: int) -> list[Contender]:
    """`widths`, `heights`: of the task's images; the largest bounds the batches, since decoded images take memory."""
    largest_pixels = int((widths * heights).max())
    halved = bool(np.minimum(widths, heights).max() >= 2 * task.scale[0])  # some can be decoded to half their size
    batches = tuple(b for b in _BATCHES if task.images % b == 0) or (task.images,)
    batches = tuple(b for b in batches if b * largest_pixels * 3 <= _DECODED_BYTES) or (min(batches),)
    threads = tuple(sorted({cores, *(1 << k for k in range(cores.bit_length()))}, reverse=True))
    dali = {"batch": batches, "threads": threads, "depth": _DEPTHS}
    torch = {"batch": batches, "workers": threads, "depth": _DEPTHS}
    feed = {"feed": ("readers.file", "external_source")}
    variant = {"variant": peers.OPENCV_VARIANTS if halved else peers.OPENCV_VARIANTS[:-1]}
    rows: list[tuple[str, Any, dict[str, Any], tuple[str, ...]]] = [
        ("training batches from the Parquet data set", peers_dali.ours, {"batch": batches, "threads": threads}, ()),
        ("plain DALI on files", peers_dali.plain_dali, dali | feed, ()),
        ("Pillow in torch's DataLoader on files, as torchvision's reference", peers.pil, torch, ()),
        ("OpenCV in torch's DataLoader on files", peers.opencv, torch | variant, ("cv2",)),
        ("Pillow in webdataset on tar files", peers.webdataset, torch, ("webdataset",)),
        ("limit: DALI's decoder alone, whole images in memory", peers_dali.decoder, dali, ()),
        ("limit: DALI's decoder alone, the windows of ours in memory", peers_dali.region_decoder, dali, ()),
    ]
    return [
        Contender(name, description, partial(Stream, source, task), choices, packages)
        for name, (description, source, choices, packages) in zip(NAMES, rows, strict=True)
    ]


def round_images(asked: int | None, rows: int) -> int:
    """The images of a round: a multiple of 64, or all that there are if these are fewer. Raises SettingsError."""
    if asked is None:
        return min(IMAGES, rows // _UNIT * _UNIT) or rows
    if not 0 < asked <= rows:
        raise SettingsError(f"--images {asked}: the data set has {rows}; give a number from 1 to {rows}")
    if asked > _UNIT and asked % _UNIT:
        raise SettingsError(f"--images {asked}: give a multiple of {_UNIT}, such as {asked // _UNIT * _UNIT}, or less")
    return asked


def _check_settings(scale: tuple[int, int], crop: int, rounds: int, only: Sequence[str]) -> None:
    low, high = scale
    if low > high:
        raise SettingsError(f"--scale {low} {high}: the smallest S comes first")
    if not 0 < crop <= low:
        raise SettingsError(f"--scale {low}: S must be at least the crop's side, --crop {crop}")
    if rounds < 1:
        raise SettingsError(f"--rounds {rounds}: at least 1")
    for name in only:
        if name not in NAMES:
            near = difflib.get_close_matches(name, NAMES, n=2, cutoff=0.4)
            nearest = f"nearest: {', '.join(near)}; " if near else ""
            raise SettingsError(f"--only {name}: no such contender; {nearest}there are {', '.join(NAMES)}")


def copy(data: DataSet, task: Task, shards: int) -> None:
    """The task's images as files, and as `shards` tar files or less."""
    for folder in (task.copies / "files", task.copies / "shards"):
        folder.mkdir()
    groups = peers_dali.first_groups(data.manifest.group_rows, task.images)
    encoded = (image.tobytes() for group, rows in enumerate(groups) for image in data.read_group(group).encoded[:rows])
    with ExitStack() as stack:
        files = [task.copies / "shards" / f"{i:04d}.tar" for i in range(min(shards, task.images))]
        tars = [stack.enter_context(tarfile.open(file, "w")) for file in files]
        for row, image in enumerate(encoded):
            (task.copies / "files" / f"{row:06d}").write_bytes(image)
            entry = tarfile.TarInfo(f"{row:06d}.jpg")  # webdataset goes by this ending; Pillow looks inside
            entry.size = len(image)
            tars[row % len(tars)].addfile(entry, BytesIO(image))


def check(crop: int, images: int, facts: Sequence[tuple[str, dict[str, Any]]]) -> None:
    """Raises BenchError unless all contenders delivered the same kind of batches, with like pixels."""
    found = dict(facts)
    tolerance = _GREY_LEVELS + _CROP_GREY_LEVELS / np.sqrt(images)
    expected = found[REFERENCE]
    for name, seen in facts:
        if seen["images"] != images:
            raise BenchError(f"{name}: delivered {seen['images']} images in a round instead of {images}")
        if name in LIMITS:
            continue
        if seen["kinds"] != [f"float32 (3, {crop}, {crop})"]:
            raise BenchError(f"{name}: delivered {', '.join(seen['kinds'])} instead of float32 (3, {crop}, {crop})")
        for what in ("mean", "deviation"):
            difference = np.abs(np.subtract(seen[what], expected[what])).max()
            if not difference <= tolerance:
                raise BenchError(
                    f"{name}: its pixels' {what} differs from that of ours by {difference:.1f} grey levels "
                    f"(at most {tolerance:.1f} come from the crops' places), so its work is not the same"
                )
