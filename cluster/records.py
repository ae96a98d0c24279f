"""What a stage tells of itself while it trains: records for the screen and for MLflow.

    tick        a step is done, or a batch validated; moves a progress bar
    point       what the steps since the last point came to; with `line`, for the screen, too
    parts       the same steps: seconds by part of a step
    epoch       what an epoch came to
    rows        the rows that a step trained on, if a ledger is kept
    unreadable  an image that could not be decoded
    reading     rows read over rows used, by one worker
    warning     something that a person should know
"""

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

from cluster.checkpoint import Epoch
from cluster.metrics import Totals
from pipelines.errors import TrainingError
from pipelines.stream import Batch

Log = Callable[[dict[str, Any]], None]

_LINES_PER_EPOCH = 4
_STEPS_PER_POINT = 50  # metrics at least this often, in steps


class Rates:
    """Images and FLOPs a second of the training since it was made or last read; waiting for input counts.

    `flops`: of training on one image. `peak`: FLOP/s that the devices of all workers could do, if known.
    """

    def __init__(self, flops: float, peak: float | None) -> None:
        self._flops, self._peak = flops, peak
        self._since = time.monotonic()

    def read(self, images: int, parts: Mapping[str, float]) -> dict[str, float]:
        """`images`: trained on since; `parts`: seconds of this worker, by part."""
        now = time.monotonic()
        seconds, self._since = max(now - self._since, 1e-9), now
        speed = images / seconds
        rates = {
            "images_per_second": speed,
            "waiting": parts.get("input", 0.0) / seconds,
            "flops_per_second": speed * self._flops,
        }
        return rates if self._peak is None else {**rates, "peak_share": speed * self._flops / self._peak}


def points(steps: int) -> dict[int, bool]:
    """The steps of an epoch (from 1) after which there is a point, the last one among them; and whether it is a line."""
    n = max(_LINES_PER_EPOCH, math.ceil(steps / _STEPS_PER_POINT))
    found: dict[int, bool] = {}
    lines = 0
    for step in sorted({math.ceil(k * steps / n) for k in range(1, n + 1)}):
        line = step * _LINES_PER_EPOCH // steps
        found[step] = line > lines and step < steps
        lines = line
    return found


def numbers(totals: Totals) -> dict[str, float]:
    return {
        "loss": totals.loss,
        "accuracy": totals.accuracy,
        "accuracy5": totals.accuracy5,
        "gradient_norm": totals.gradient_norm,
    }


def name_unreadable(batch: Batch, log: Log) -> None:
    """Tells of a batch's images that could not be decoded."""
    for image in batch.replaced:
        log({"kind": "unreadable", "name": image.name, "reason": image.reason})


def check_readable(totals: Totals, rows: int, most: float) -> None:
    """Raises TrainingError, on all workers, if more than the share `most` of `rows` images could not be decoded."""
    if totals.unreadable > most * rows:
        raise TrainingError(
            f"{totals.unreadable} of {rows} images cannot be decoded, more than max_unreadable ({most:g}) allows; "
            "they are named above and in MLflow: prepare the data set again"
        )


def result(totals: Totals, checked: Totals, rate: float, training_seconds: float, seconds: float) -> Epoch:
    """What an epoch came to. `totals` of training, `checked` of validation."""
    return Epoch(
        loss=totals.loss,
        accuracy=totals.accuracy,
        accuracy5=totals.accuracy5,
        gradient_norm=totals.gradient_norm,
        validation_loss=checked.loss,
        validation_accuracy=checked.accuracy,
        validation_accuracy5=checked.accuracy5,
        learning_rate=rate,
        images_per_second=totals.images / training_seconds,
        seconds=seconds,
        unreadable=totals.unreadable,
    )
