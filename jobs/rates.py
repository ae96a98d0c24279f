"""How fast this storage's stages were trained and its nets tested, and what that says of others.

runs/<job>/<stage>-<key>/rate.json   what `note` writes when a stage has ended
runs/<job>/tests/rate.json           what `note_test` writes after a test
runs/<job>/<stage>-<key>/done.json   of stages that ended before there were such notes: on how many workers is unknown
"""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain
from statistics import median
from typing import Any

from cluster import checkpoint, layers
from cluster.flops import training_flops
from cluster.settings import StageSettings
from jobs.checkpoints import STAGE
from jobs.past import READERS
from jobs.store import DONE, TESTS, read_json, write_json
from pipelines.errors import CheckpointError
from pipelines.location import Location

RATE = "rate.json"

# The settings that the speed of an image depends on, beside the machine and the number of workers.
_KIND = ("net", "input_size", "width", "batch_norm", "precision", "reproducible", "freeze")
_GPU = "GPU"

Kind = Mapping[str, Any]  # these settings, plain, and the number of `classes`


@dataclass(frozen=True)
class Measured:
    """Training as it went. `workers`, `device` (of each, see `device`): None if they are unknown. `images_per_second`:
    of all workers. `written`: when, as ISO 8601 text."""

    job: str
    stage: str
    kind: Kind
    workers: int | None
    device: str | None
    images_per_second: float
    written: str

    @property
    def flops_per_second(self) -> float:
        return self.images_per_second * flops_of(self.kind)

    @property
    def where(self) -> str:
        """`2 workers with 2 CPUs each, 24 Nov 2026`"""
        each = f" with {'a ' * (self.device == _GPU)}{self.device} each" if self.device else ""
        crew = f"{_count(self.workers, 'worker')}{each}" if self.workers else "an unknown number of workers"
        return f"{crew}, {_day(self.written)}"


@dataclass(frozen=True)
class Tested:
    """Tests as they went: operations a second of each worker."""

    job: str
    device: str
    flops_per_second: float
    written: str


@dataclass(frozen=True)
class Pace:
    """`flops_per_second`: of all workers together. `source`: where it is from, in words. `of_tests`: and not of
    training."""

    flops_per_second: float
    source: str
    of_tests: bool = False


def device(gpus: int, cpus: int) -> str:
    """Of a worker: `GPU`, or `2 CPUs`."""
    return _GPU if gpus else _count(cpus, "CPU")


def kind_of(settings: Mapping[str, Any], classes: int) -> dict[str, Any]:
    """Of a stage's plain settings. Raises KeyError."""
    return {**{key: settings[key] for key in _KIND}, "classes": classes}


def flops_of(kind: Kind) -> int:
    """Of training on one image."""
    frozen = layers.chosen(kind["net"], kind["freeze"])
    return training_flops(kind["net"], kind["classes"], kind["input_size"], kind["width"], frozen)


def note(
    folder: Location, settings: StageSettings, classes: int, workers: int, device: str, speeds: Sequence[float]
) -> None:
    """Of a stage that has ended in its `folder`. `speeds`: images a second of its epochs. Raises ClusterError."""
    content = {
        "kind": kind_of(settings.model_dump(by_alias=True, mode="json"), classes),
        "workers": workers,
        "device": device,
        "images_per_second": _usual(speeds),
        "written": _now(),
    }
    write_json(folder / RATE, content)


def note_test(folder: Location, flops: float, seconds: float, device: str) -> None:
    """Of a test whose posteriors are in `folder`. `seconds`: that workers spent on it, added up. Raises
    ClusterError."""
    write_json(folder / RATE, {"device": device, "flops_per_second": flops / seconds, "written": _now()})


def known(runs: Location) -> list[Measured]:
    """Of all stages in the storage's folder `runs`; what cannot be read counts as none."""
    try:
        with ThreadPoolExecutor(READERS) as pool:
            jobs = list(runs.folders().values())
            stages = chain.from_iterable(pool.map(lambda job: job.folders().values(), jobs))
            found = list(pool.map(_measured, [place for place in stages if STAGE.fullmatch(place.name)]))
    except OSError:
        return []
    return [measured for measured in found if measured is not None]


def known_tests(runs: Location) -> list[Tested]:
    """Likewise, of all tests."""
    try:
        with ThreadPoolExecutor(READERS) as pool:
            found = list(pool.map(_tested, runs.folders().values()))
    except OSError:
        return []
    return [tested for tested in found if tested is not None]


def pace(
    measured: Collection[Measured], settings: StageSettings, classes: int, workers: int, gpus: int | None
) -> Pace | None:
    """What is to be expected of a stage on so many workers; None if nothing is measured.

    Of the stages on such machines it is by that which is most like it: in settings, in workers, in operations, and the
    newest. `gpus`: of a worker, None if either will do.
    """
    kind = kind_of(settings.model_dump(by_alias=True, mode="json"), classes)
    flops = flops_of(kind)

    def distance(other: Measured) -> tuple[int, bool, float]:
        unlike = sum(other.kind[key] != value for key, value in kind.items())
        return unlike, other.workers != workers, abs(math.log(flops_of(other.kind) / flops))

    newest_first = sorted(measured, key=lambda other: other.written, reverse=True)
    fitting = [other for other in newest_first if _fits(other.device, gpus)]
    return _scaled(min(fitting, key=distance), kind, workers) if fitting else None


def pace_of_tests(tested: Iterable[Tested], workers: int, gpus: int | None) -> Pace | None:
    """Of the newest on such machines."""
    fitting = [each for each in tested if _fits(each.device, gpus)]
    if not fitting:
        return None
    newest = max(fitting, key=lambda each: each.written)
    told = f"as fast as the tests of {newest.job}, {_day(newest.written)}, on {_count(workers, 'worker')}"
    return Pace(newest.flops_per_second * workers, told, of_tests=True)


def _fits(device: str | None, gpus: int | None) -> bool:
    return gpus is None or device is None or (device == _GPU) == bool(gpus)


def _scaled(base: Measured, kind: Kind, workers: int) -> Pace:
    """In words: what was measured, and by what it was multiplied."""
    share = workers / base.workers if base.workers else 1.0
    by = ["operations"] * (flops_of(base.kind) != flops_of(kind)) + ["workers"] * (share != 1)
    told = f"{base.images_per_second:,.{0 if base.images_per_second >= 100 else 1}f} images/s measured"
    whose = f" for {base.stage} of job {base.job}" if base.kind != kind else ""
    scaled = f"; scaled by {' and '.join(by)}" if by else ""
    return Pace(base.flops_per_second * share, f"{told}{whose} on {base.where}{scaled}")


def _measured(place: Location) -> Measured | None:
    match read_json(place / RATE):
        case {
            "kind": {"net": str(), "classes": int()} as kind,
            "workers": int(workers),
            "device": str(device),
            "images_per_second": float(speed) | int(speed),
            "written": str(written),
        } if set(kind) == {*_KIND, "classes"} and speed > 0:
            return Measured(place.parent.name, _stage(place), kind, workers, device, speed, written)
    return _older(place)


def _older(place: Location) -> Measured | None:
    """Of a stage without a note: what its net's file says."""
    match read_json(place / DONE):
        case {"delivered": str(delivered), "epochs": [_, *_] as epochs}:
            try:
                head, changed = checkpoint.read_head(place / delivered), (place / DONE).changed()
                kind = kind_of(head.settings, len(head.card.classes))
                speed = _usual([epoch["images_per_second"] for epoch in epochs])
            except (CheckpointError, KeyError, TypeError):
                return None
            if changed is not None and speed > 0:
                return Measured(place.parent.name, _stage(place), kind, None, None, speed, changed.isoformat())
    return None


def _tested(job: Location) -> Tested | None:
    match read_json(job / TESTS / RATE):
        case {"device": str(device), "flops_per_second": float(speed) | int(speed), "written": str(written)} if (
            speed > 0
        ):
            return Tested(job.name, device, speed, written)
    return None


def _stage(place: Location) -> str:
    match = STAGE.fullmatch(place.name)
    assert match is not None, place
    return match[1]


def _usual(speeds: Sequence[float]) -> float:
    """The median, without the first epoch if there are others: it is the slowest."""
    return median(speeds[1:] or speeds)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _day(written: str) -> str:
    try:
        return f"{datetime.fromisoformat(written):%-d %b %Y}"
    except ValueError:
        return written


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"
