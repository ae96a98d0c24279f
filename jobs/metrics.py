"""What workers tell of a stage (`cluster.records`), as MLflow has it."""

from collections.abc import Mapping
from typing import Any

from cluster.track import Tracker

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


def track(tracker: Tracker, run: str, record: Mapping[str, Any]) -> None:
    """Metrics of what is one; steps are counted over all epochs."""
    match record["kind"]:
        case "point":
            step = (record["epoch"] - 1) * record["steps"] + record["step"]
            tracker.metrics(run, _named(record, _POINT), step, record["time"])
        case "epoch":
            tracker.metrics(run, _named(record, _EPOCH), record["epoch"], record["time"])
        case "reading":
            name = f"rows_read_per_row_used.worker_{record['rank']}"
            tracker.metrics(run, {name: record["read_per_used"]}, record["epoch"], record["time"])
        case "system":
            values = {f"system/{record['node']}/{key}": value for key, value in record["values"].items()}
            tracker.metrics(run, values, record.get("sample", 0), record["time"])


def _named(record: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, float]:
    """What a record has of these, under their names in MLflow."""
    return {metric: record[key] for key, metric in names.items() if record.get(key) is not None}
