"""What runs on a Ray worker: a stage's training, or a share of a test."""

import gc
import logging
import time
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch

from cluster.evaluate import Evaluation, evaluate_share
from cluster.metrics import Totals
from cluster.train import Log, Stage, train
from cluster.world import World
from pipelines.errors import TrainingError

_TICK_SECONDS = 0.5


def train_worker(config: dict[str, Any]) -> str | None:
    """Ray Train's entry: `config` has the `stage`, the `mailbox` for records, the `threads` of a worker, and those that
    its arithmetic may use.

    Returns None, or why training cannot go on.
    """
    gc.freeze()  # what was imported is not looked through again and again: 3 % of the input's CPU time
    stage: Stage = config["stage"]
    context = ray.train.get_context()
    device = ray.train.torch.get_device()
    world = World(context.get_world_rank(), context.get_world_size(), device, config["threads"])
    torch.set_num_threads(config["compute_threads"])
    log = _post(config["mailbox"]) if world.rank == 0 else _own(_post(config["mailbox"]))
    warnings = _Warnings(log)
    logging.getLogger("pipelines").addHandler(warnings)
    try:
        train(stage, world, log)
    except TrainingError as error:  # raised on all workers together, and would be again: no case for a retry
        return str(error)
    finally:
        logging.getLogger("pipelines").removeHandler(warnings)
    return None


def evaluate_worker(test: Evaluation, rank: int, size: int, threads: int, mailbox: Any) -> Totals:
    """A Ray task: the part of worker `rank` of `size`."""
    torch.set_num_threads(threads)
    device = torch.device("cuda" if torch.cuda.is_available() and ray.get_gpu_ids() else "cpu")
    return evaluate_share(test, World(rank, size, device, threads), _post(mailbox))


def _post(mailbox: Any) -> Log:
    """Sends records without waiting; of the ticks, which only move a progress bar, a few each second."""
    last = 0.0

    def post(record: dict[str, Any]) -> None:
        nonlocal last
        if record["kind"] == "tick":
            if time.monotonic() - last < _TICK_SECONDS:
                return
            last = time.monotonic()
        mailbox.put.remote({**record, "time": time.time()})

    return post


class _Warnings(logging.Handler):
    """Warnings of the project's own modules, such as of reading that is tried again, to the driver."""

    def __init__(self, post: Log) -> None:
        super().__init__(logging.WARNING)
        self._post = post

    def emit(self, record: logging.LogRecord) -> None:
        self._post({"kind": "warning", "text": record.getMessage()})


def _own(post: Log) -> Log:
    """Of the records, those that every worker has its own of; the others are the same on all."""

    def post_own(record: dict[str, Any]) -> None:
        if record["kind"] in ("unreadable", "reading", "warning"):
            post(record)

    return post_own
