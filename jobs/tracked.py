"""What MLflow is told of a job, so that its pages show the paper's story as they are: see docs/tracking.md."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from cluster.settings import StageSettings
from cluster.track import Tracker
from jobs import curves, tables
from jobs.check import Checked
from jobs.results import Result, scale_text
from jobs.stored import Stored, StoredStage
from pipelines.shards import DataSet

# By their names in records: what a stretch of steps and an epoch both have, and an epoch alone; as they are in MLflow.
_POINT = {
    "loss": "loss",
    "accuracy": "accuracy",
    "accuracy5": "accuracy5",
    "gradient_norm": "gradient_norm",
    "learning_rate": "learning_rate",
    "images_per_second": "images_per_second",
    "waiting": "waiting_share",
    "flops_per_second": "model_flops_per_second",
    "peak_share": "share_of_peak_flops",
    "peak_memory_bytes": "peak_memory_bytes",
}
_EPOCH = {
    **{key: f"epoch_{name}" for key, name in _POINT.items() if key != "learning_rate"},
    "validation_loss": "validation_loss",
    "validation_accuracy": "validation_accuracy",
    "validation_accuracy5": "validation_accuracy5",
    "seconds": "epoch_seconds",
    "unreadable": "unreadable_images",
}
_SCHEMA = json.dumps({"mlflow_colspec": [{"name": "image", "type": "binary"}, {"name": "label", "type": "long"}]})


def stage_tags(checked: Checked, name: str, workers: int) -> dict[str, str]:
    stage, folder = checked.job.stages[name], checked.folders[name]
    return {
        "job": checked.job.name,
        "stage": name,
        "net": stage.net,
        "S": scale_text(stage.scale),
        "starts_from": stage.init.source or "random weights",
        "key": folder.key,
        "workers": str(workers),
    }


def data_sets(tracker: Tracker, run: str, training: DataSet, validation: DataSet) -> None:
    data_set(tracker, run, training, "training")
    data_set(tracker, run, validation, "validation")


def data_set(tracker: Tracker, run: str, data: DataSet, context: str) -> None:
    """`context`: training or validation."""
    manifest = data.manifest
    profile = {"num_rows": manifest.rows, "num_classes": len(manifest.classes), "num_bytes": manifest.total_bytes}
    name = "/".join(data.location.path.rstrip("/").split("/")[-2:])  # its folder's name alone is often `train`
    tracker.dataset(run, name, manifest.fingerprint, data.location, context, _SCHEMA, json.dumps(profile))


def listen(tracker: Tracker, run: str, record: Mapping[str, Any], settings: StageSettings, rows: int) -> None:
    """A record of a stage's training on `rows` images as metrics: of steps against steps, of epochs against epochs;
    each with the epochs and images seen until then, for the axis of a chart."""
    kind = record["kind"]
    if kind == "point":
        epochs = record["epoch"] - 1
        images = epochs * rows + min(record["step"] * settings.batch, rows)
        seen = {"epoch": epochs + record["step"] / record["steps"], "images_seen": images}
        step = epochs * record["steps"] + record["step"]
        tracker.metrics(run, {**_named(record, _POINT), **seen}, step, record["time"])
    elif kind == "epoch":
        seen = {"epoch_images_seen": record["epoch"] * rows}
        tracker.metrics(run, {**_named(record, _EPOCH), **seen}, record["epoch"], record["time"])
    elif kind == "reading":
        name = f"rows_read_per_row_used.worker_{record['rank']}"
        tracker.metrics(run, {name: record["read_per_used"]}, record["epoch"], record["time"])
    elif kind == "decoding":
        tracker.tags(run, {"decoding": record["text"]})
    elif kind == "system":
        tracker.system(run, record["node"], record["values"], record["time"])


def _named(record: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, float]:
    """What a record has of these, under their names in MLflow."""
    return {metric: record[key] for key, metric in names.items() if record.get(key) is not None}


def stage_done(tracker: Tracker, run: str, stage: StoredStage) -> None:
    """Its curves, and under the same names for all stages what it came to."""
    if not stage.epochs:
        return
    best = stage.epochs[stage.best - 1]
    outcome = {
        "best_epoch": float(stage.best),
        "best_validation_accuracy": best.validation_accuracy,
        "validation_error": 1 - best.validation_accuracy,
    }
    tracker.metrics(run, outcome, 0)
    _plots(tracker, run, [stage])


def _plots(tracker: Tracker, run: str, stages: Sequence[StoredStage]) -> None:
    trained = [stage for stage in stages if stage.epochs]
    if trained:
        tracker.text(run, curves.losses(trained).svg.decode(), "plots/loss.svg")
        tracker.text(run, curves.accuracies(trained).svg.decode(), "plots/accuracy.svg")


def errors_of(found: Sequence[Result], model: str) -> dict[str, float]:
    """Of the net by itself, under the same names for all nets: dense at one scale as in the paper's table 3, or of
    what comes nearest to that."""
    alone = [result for result in found if result.model == model and len(result.subjects) == 1]
    told = min(alone, key=lambda result: (result.mode != "dense", len(result.subjects[0].scales)), default=None)
    if told is None:
        return {}
    return {"top1_error": 1 - told.totals.accuracy, "top5_error": 1 - told.totals.accuracy5}


def job_done(tracker: Tracker, run: str, stored: Stored) -> None:
    """The chain as a table, all curves, and above them what it came to and how to use it."""
    lines = [_line(stage, stored.results) for stage in stored.stages]
    tracker.table(run, {name: [line[name] for line in lines] for name in lines[0]}, "stages_table.json")
    _plots(tracker, run, stored.stages)
    if (picture := curves.by_scale(stored.results)) is not None:
        tracker.text(run, picture.svg.decode(), "plots/error_by_scale.svg")
    tracker.describe(run, description(stored))


def _line(stage: StoredStage, found: Sequence[Result]) -> dict[str, str | int | float | None]:
    best = stage.epochs[stage.best - 1].validation_accuracy if stage.epochs else None
    errors = errors_of(found, stage.name)
    return {
        "stage": stage.name,
        "net": stage.settings.net,
        "S": scale_text(stage.settings.scale),
        "starts from": stage.settings.init.source or "random weights",
        "epochs": len(stage.epochs),
        "best epoch": stage.best if stage.epochs else None,
        "validation error": None if best is None else 1 - best,
        "top-1 error": errors.get("top1_error"),
        "top-5 error": errors.get("top5_error"),
        "hours": sum(epoch.seconds for epoch in stage.epochs) / 3600,
        "finished": str(stage.finished).lower(),
    }


def description(stored: Stored) -> str:
    """Markdown; within MLflow's limit of 8000 characters the results come last."""
    job = stored.job
    head = (
        "| stage | net | S | starts from | epochs | validation error | top-1 error |\n|---|---|---|---|--:|--:|--:|\n"
    )
    rows = "".join(_row(_line(stage, stored.results)) for stage in stored.stages)
    use = f'```python\nmodel = mlflow.pyfunc.load_model("models:/{job.name}@best")\n'
    use += 'model.predict([open("photo.jpg", "rb").read()])\n```\n'
    found = tables.markdown(tables.tables(stored.results)) if stored.results else ""
    return f"### The chain\n\n{head}{rows}\n### The best net\n\n{use}\n{found}"


def _row(line: Mapping[str, str | int | float | None]) -> str:
    cells = [line["stage"], line["net"], line["S"], line["starts from"], line["epochs"]]
    errors = [line["validation error"], line["top-1 error"]]
    shown = [*map(str, cells), *("-" if error is None else f"{100 * float(error):.1f} %" for error in errors)]
    return f"| {' | '.join(text.replace('|', chr(92) + '|') for text in shown)} |\n"
