"""How fast this storage's stages were trained, and what that says of others.

runs/<job>/<stage>-<key>/rate.json   what `note` writes when a stage has ended
runs/<job>/<stage>-<key>/done.json   of stages that ended before there were such notes: on how many workers is unknown
"""

import math
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain
from statistics import median
from typing import Any

from cluster import layers
from cluster.flops import training_flops
from cluster.settings import StageSettings
from jobs.checkpoints import STAGE
from jobs.past import READERS
from jobs.store import DONE, KEY, read_json, write_json
from pipelines.location import Location

RATE = "rate.json"

# The settings that the speed of an image depends on, beside the machine and the number of workers.
_KIND = ("net", "input_size", "width", "batch_norm", "precision", "reproducible", "freeze")


@dataclass(frozen=True)
class Measured:
    """`kind`: the settings that speed depends on, and the classes. `workers`, `device` (of each worker: GPU, or 2
    CPUs): None if they are unknown. `images_per_second`: of all workers. `written`: when, as ISO 8601 text."""

    job: str
    stage: str
    kind: Mapping[str, Any]
    workers: int | None
    device: str | None
    images_per_second: float
    written: str

    @property
    def flops_per_second(self) -> float:
        return self.images_per_second * flops_of(self.kind)

    @property
    def where(self) -> str:
        """`2 workers (2 CPUs each), 24 Nov 2026`"""
        each = f" ({self.device} each)" if self.device else ""
        crew = (
            f"{self.workers} worker{'s' * (self.workers != 1)}{each}" if self.workers else "workers of unknown number"
        )
        return f"{crew}, {datetime.fromisoformat(self.written):%-d %b %Y}"


@dataclass(frozen=True)
class Pace:
    """`flops_per_second`: of all workers together. `source`: where it is from, in words."""

    flops_per_second: float
    source: str


def kind_of(settings: Mapping[str, Any], classes: int) -> dict[str, Any]:
    """Of a stage's plain settings."""
    return {**{key: settings[key] for key in _KIND}, "classes": classes}


def flops_of(kind: Mapping[str, Any]) -> int:
    """Of training on one image."""
    net = kind["net"]
    frozen = layers.chosen(net, kind["freeze"])
    return training_flops(net, kind["classes"], kind["input_size"], kind["width"], frozen)


def note(
    folder: Location, settings: StageSettings, classes: int, workers: int, device: str, speeds: Sequence[float]
) -> None:
    """Of a stage that has ended in its `folder`. `device`: of each worker, "GPU" or "2 CPUs"; `speeds`: images a second
    of its epochs. Raises ClusterError."""
    content = {
        "kind": kind_of(settings.model_dump(by_alias=True, mode="json"), classes),
        "workers": workers,
        "device": device,
        "images_per_second": _usual(speeds),
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    write_json(folder / RATE, content)


def known(runs: Location, training: str, classes: int, own: Mapping[str, Mapping[str, Any]]) -> list[Measured]:
    """All that is measured in the storage's folder `runs`; what cannot be read counts as none.

    Of older stages those on the training set with the fingerprint `training`, of so many classes. `own`: what keys are
    made of (see `fingerprint`), by key, of stages whose folders don't tell.
    """

    def read(place: Location) -> Measured | None:
        return _noted(place) or _older(place, training, classes, own)

    try:
        with ThreadPoolExecutor(READERS) as pool:
            jobs = list(runs.folders().values())
            stages = chain.from_iterable(pool.map(lambda job: job.folders().values(), jobs))
            found = list(pool.map(read, [place for place in stages if STAGE.fullmatch(place.name)]))
    except OSError:
        return []
    return [measured for measured in found if measured is not None]


def pace(
    measured: Collection[Measured], settings: StageSettings, classes: int, workers: int, gpus: int | None
) -> Pace | None:
    """What is to be expected of a stage on so many workers; None if nothing is measured.

    Of the stages on such machines that which is most like it: in its settings, its workers, its operations, the newest.
    `gpus`: of a worker, None if either.
    """
    kind = kind_of(settings.model_dump(by_alias=True, mode="json"), classes)
    flops = flops_of(kind)

    def distance(other: Measured) -> tuple[int, bool, float]:
        unlike = sum(other.kind[key] != value for key, value in kind.items())
        return unlike, other.workers != workers, abs(math.log(flops_of(other.kind) / flops))

    newest_first = sorted(measured, key=lambda other: other.written, reverse=True)
    fitting = [
        other for other in newest_first if gpus is None or other.device in (None, "GPU" if gpus else other.device)
    ]
    if gpus == 0:
        fitting = [other for other in fitting if other.device != "GPU"]
    if not fitting:
        return None
    return _scaled(min(fitting, key=distance), kind, workers)


def _scaled(base: Measured, kind: Mapping[str, Any], workers: int) -> Pace:
    """In words: what was measured, and by what it was multiplied."""
    share = workers / base.workers if base.workers else 1.0
    by = ["operations"] * (base.kind != kind) + ["workers"] * (share != 1)
    told = f"{base.images_per_second:,.{0 if base.images_per_second >= 100 else 1}f} images/s measured"
    whose = f" for {base.stage} of {base.job}" if base.kind != kind else ""
    scaled = f", scaled by {' and '.join(by)}" if by else ""
    return Pace(base.flops_per_second * share, f"{told}{whose} on {base.where}{scaled}")


def _noted(place: Location) -> Measured | None:
    match read_json(place / RATE):
        case {
            "kind": {"net": str(), "classes": int()} as kind,
            "workers": int(workers),
            "device": str(device),
            "images_per_second": float(speed) | int(speed),
            "written": str(written),
        } if set(kind) == {*_KIND, "classes"} and speed > 0:
            return Measured(place.parent.name, _stage(place), kind, workers, device, speed, written)
    return None


def _older(place: Location, training: str, classes: int, own: Mapping[str, Mapping[str, Any]]) -> Measured | None:
    match read_json(place / DONE):
        case {"key": str(key), "epochs": [_, *_] as epochs}:
            content = own.get(key) or (read_json(place / KEY) or {}).get("content") or {}
            speeds = [epoch["images_per_second"] for epoch in epochs if epoch.get("images_per_second", 0) > 0]
            changed = (place / DONE).changed()
            if content.get("training") == training and speeds and changed:
                kind = kind_of(content["settings"], classes)
                return Measured(place.parent.name, _stage(place), kind, None, None, _usual(speeds), changed.isoformat())
    return None


def _stage(place: Location) -> str:
    match = STAGE.fullmatch(place.name)
    assert match is not None, place
    return match[1]


def _usual(speeds: Sequence[float]) -> float:
    """The median, without the first epoch if there are others: it is the slowest."""
    return median(speeds[1:] or speeds)
