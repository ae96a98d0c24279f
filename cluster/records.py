"""What a stage tells of itself while it trains, and a test.

tick        a step is done, or a batch validated; moves a progress bar
point       what the steps since the last point came to; with `line`, for the screen, too
parts       the same steps: seconds by part of a step
epoch       what an epoch came to
rows        the rows that a step trained on, if a ledger is kept
tested      images that a test has looked at, in one of its views
timed       a piece of a test in one of its views: seconds in all, and in the net
unreadable  an image that could not be decoded
reading     rows read over rows used, by one worker
decoding    how worker 0 decodes images, and how fast that was when it was tried out
system      what a node is busy with: its name, and values by the names that they have in MLflow
warning     something that a person should know
workers     so many are at work, in which attempt
lost        they are not any more; others will start
"""

import math
from collections.abc import Callable
from typing import Any

from cluster.checkpoint import Epoch
from cluster.flops import training_flops
from cluster.metrics import Totals
from cluster.peak import peak_flops, peak_memory_bytes
from cluster.settings import StageSettings
from cluster.world import World
from pipelines.errors import TrainingError
from pipelines.stream import Batch

Log = Callable[[dict[str, Any]], None]

STEPS_PER_POINT = 50  # metrics at least this often, in steps
_LINES_PER_EPOCH = 4


class Speed:
    """Images and FLOPs a second, and memory; the time that is spent waiting for input counts."""

    def __init__(self, s: StageSettings, classes: int, world: World, bf16: bool) -> None:
        self._flops = training_flops(s.net, classes, s.input_size, s.width)
        peak = peak_flops(world.device, "bfloat16" if bf16 else "float32", world.threads)
        self._peak = None if peak is None else peak * world.size
        self._device = world.device

    def numbers(self, images: int, seconds: float, waiting: float) -> dict[str, float]:
        """`images` trained on by all workers in `seconds`, of which this one was `waiting` for input."""
        speed = images / seconds
        share = {} if self._peak is None else {"peak_share": speed * self._flops / self._peak}
        return {
            "images_per_second": speed,
            "waiting": waiting / seconds,
            "flops_per_second": speed * self._flops,
            "peak_memory_bytes": peak_memory_bytes(self._device),
            **share,
        }


def points(steps: int) -> dict[int, bool]:
    """The steps of an epoch (from 1) after which there is a point, the last one among them; and whether it is a line
    on the screen, too."""
    n = max(_LINES_PER_EPOCH, math.ceil(steps / STEPS_PER_POINT))
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


def result(totals: Totals, checked: Totals, rate: float, speed: dict[str, float], seconds: float) -> Epoch:
    """What an epoch came to. `totals` of training, `checked` of validation; `rate`: the last step's."""
    return Epoch(
        **numbers(totals),
        validation_loss=checked.loss,
        validation_accuracy=checked.accuracy,
        validation_accuracy5=checked.accuracy5,
        learning_rate=rate,
        seconds=seconds,
        unreadable=totals.unreadable,
        **speed,
    )


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
