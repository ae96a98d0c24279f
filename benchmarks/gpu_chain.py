"""A job as users write it, on photographs: A, D from A, D at S = 384 and with scale jitter, and the paper's tests.

Without photographs the classes are tints of pictures of noise. An epoch goes through the few images again and again, so
that there are few checkpoints. With little time there are fewer of them and the chain is shorter, but D from A, with
scale jitter then, and the tests are in it; a job that would take longer still is stopped.
"""

import colorsys
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import pictures
from benchmarks.report import Cell
from benchmarks.setting import Setting
from cluster import launch
from jobs import check, schema, stored, tables
from jobs import run as running
from jobs.results import scale_text
from jobs.stored import Stored, StoredStage
from pipelines import cycle, sources
from pipelines.errors import TrainingError
from pipelines.prepare import prepare
from pipelines.shards import DataSet
from pipelines.sources import Source

# That a chain takes with the stage, on an H200, and the images of its epochs. Reckoned, not measured: 30 s for a stage,
# most of which is starting up, and 5 for its tests; without both stages 70 s.
_WITH_384_SECONDS, _WITH_D_SECONDS = 140.0, 100.0
_MANY, _FEW = 12_800, 6_400
_STOP_SECONDS = 15.0  # before the end: what stopping and telling takes
_VALIDATION = 100  # images, about
_TINT = 60.0  # grey levels
_SIDE = {True: (100, 75), False: (500, 375)}  # of made pictures, in a rehearsal and else


def run(setting: Setting) -> None:
    os.environ.pop("MLFLOW_TRACKING_URI", None)  # into the storage, whatever server there is
    folder = setting.folder / "chain"
    train, validation = _data(setting, folder)
    (folder / "storage").mkdir()
    file = folder / "chain.yaml"
    file.write_text(json.dumps(_job(setting, train, validation, folder / "storage"), indent=1))  # YAML, too
    began = time.time()
    launch.connect("local")
    started = time.time()
    ended = _carried_out(setting, file)
    if ended is not None:
        setting.report.note(f"the job: {ended}")
    setting.report.row("The job, minutes", Ray=(started - began) / 60, all=(time.time() - began) / 60)
    _tell(setting, stored.read(stored.store_of(str(file))), began)


def _carried_out(setting: Setting, file: Path) -> str | None:
    """Why it did not come to its end, if so."""
    checked = check.check(schema.load(file))
    try:
        with _stopped_in_time(setting):
            running.run(checked, job_file=str(file))
    except TrainingError as error:
        return str(error)
    except KeyboardInterrupt:
        return "was stopped, since its time was over"
    return None


@contextmanager
def _stopped_in_time(setting: Setting) -> Iterator[None]:
    """As by a user's `kill`: with a checkpoint."""
    timer = threading.Timer(max(0.0, setting.left() - _STOP_SECONDS), os.kill, (os.getpid(), signal.SIGTERM))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _data(setting: Setting, folder: Path) -> tuple[str, str]:
    """Training and validation set."""
    source = sources.folder(setting.photos) if setting.photos else _made(setting)
    training, validation = sources.split(source, min(0.25, _VALIDATION / len(source)), seed=0)
    prepare(training, folder / "few", threads=setting.threads)
    prepare(validation, folder / "val", statistics=False, threads=setting.threads)
    images = _MANY if setting.left() > _WITH_384_SECONDS else _FEW
    longer = cycle.write(DataSet.open(str(folder / "few")), setting.pick(images, 128), folder / "train")
    return longer.location.absolute, str(folder / "val")


def _made(setting: Setting) -> Source:
    classes, count = setting.pick(10, 4), setting.pick(1000, 80)
    tints = [np.array(colorsys.hsv_to_rgb(c / classes, 1.0, 1.0), np.float32) - 0.5 for c in range(classes)]
    labels = np.arange(count, dtype=np.int64) % classes

    def read(i: int) -> bytes:
        return pictures.encoded(pictures.picture(i, *_SIDE[setting.small]) + _TINT * tints[labels[i]])

    names = tuple(f"{label}/{i:04d}.jpg" for i, label in enumerate(labels))
    return Source("tints", tuple(map(str, range(classes))), names, labels, np.zeros(count, np.int64), read)


def _job(setting: Setting, train: str, validation: str, storage: Path) -> dict[str, Any]:
    s, large, jitter = (34, 40, [32, 48]) if setting.small else (256, 384, [256, 512])
    stages: dict[str, dict[str, Any]] = {
        "a": {"net": "A", "scale": s, "epochs": 3},
        "d": {"net": "D", "scale": s, "init": {"from": "a"}},
        "d-384": {"net": "D", "scale": large, "init": {"from": "d"}},
        "d-jitter": {"net": "D", "scale": jitter, "init": {"from": "d-384"}},
    }
    for name, needed in (("d-384", _WITH_384_SECONDS), ("d", _WITH_D_SECONDS)):
        if setting.small or setting.left() < needed:
            setting.report.left_out(f"stage {name}")
            stages["d-jitter"]["init"]["from"] = stages.pop(name)["init"]["from"]
    others = [name for name in stages if name != "d-jitter"]
    several = {"models": ["d-jitter"], "scales": "several"}
    return {
        "name": "chain",
        "data": {"train": train, "val": validation},
        "storage": str(storage),
        "checkpoints": {"keep": 1},
        "train": {
            **({"input_size": 32, "width": 0.1, "batch": 8} if setting.small else {"batch": 64}),
            "epochs": 1,
            "learning_rate": 0.01,
            "clip_norm": 4,
            "pixel_std": 64,
            "init": {"random": "kaiming"},
            "average_decay": 0.9,
        },
        "stages": stages,
        "evaluations": {
            "single": {"models": list(stages)},
            "several": several,
            "modes": {**several, "mode": ["dense", "multi-crop", "both"], "precision": "tf32"},
            "rounded": {**several, "precision": "bf16"},
            "fused": {"models": [others[-1], "d-jitter"], "fuse": True, "scales": "several", "precision": "tf32"},
        },
    }


def _tell(setting: Setting, job: Stored, began: float) -> None:
    report = setting.report
    for stage in job.stages:
        report.row("Stages", **_stage_cells(stage, began))
    told = ("test", "model", "net", "S", "Q", "mode", "precision", "images", "top-1 error %", "top-5 error %", "loss")
    rows = [{name: record[name] for name in told} for record in tables.records(tables.tables(job.results))]
    for row in {tuple(row.items()): row for row in rows}.values():  # some are in two of the paper's tables
        report.row("Errors", **row)
    report.check("stages and tests that are not done", len(job.unfinished) + len(job.untested), most=0)
    _check_learnt(setting, job)


def _stage_cells(stage: StoredStage, began: float) -> dict[str, Cell]:
    done = stage.changed.timestamp() - began if stage.finished and stage.changed else None
    cells: dict[str, Cell] = {
        "stage": stage.name,
        "net": stage.settings.net,
        "S": scale_text(stage.settings.scale),
        "epochs": len(stage.epochs),
        "training, min": sum(epoch.seconds for epoch in stage.epochs) / 60,
        "done after, min": done and done / 60,
    }
    names = ("images/s, last epoch", "waiting for input, %", "validation accuracy, %")
    if not stage.epochs:
        return {**cells, **dict.fromkeys(names, None)}
    last, best = stage.epochs[-1], stage.epochs[stage.best - 1]
    values = (last.images_per_second, 100 * last.waiting, 100 * best.validation_accuracy)
    return {**cells, **dict(zip(names, values, strict=True))}


def _check_learnt(setting: Setting, job: Stored) -> None:
    """A, beside always saying the most frequent class."""
    manifest = DataSet.open(job.job.data.val).manifest  # type: ignore[union-attr]
    chance = max(manifest.class_rows) / manifest.rows
    best = max((epoch.validation_accuracy for epoch in job.stages[0].epochs), default=0.0)
    setting.report.check("A: validation accuracy", best, least=1.1 * chance)
