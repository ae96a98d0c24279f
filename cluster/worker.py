"""What runs on a Ray worker: a stage's training, or pieces of a test."""

import gc
import logging
import pickle
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray
import ray.exceptions
import ray.train
import ray.train.torch
import torch

from cluster import system
from cluster.agree import Wish
from cluster.attempt import Stage
from cluster.course import ASKED, Ended, How
from cluster.mailbox import Address
from cluster.records import Log
from cluster.train import Outcome, train
from cluster.watchdog import Watchdog
from cluster.world import World
from pipelines.errors import TrainingError, VerydeepError

_TICK_SECONDS = 0.5
_ASK_SECONDS = 0.5  # between looks into the mailbox
_ANSWER_SECONDS = 5.0
_OWN = {"unreadable", "reading", "rows", "warning"}  # records that every worker has its own of; others are the same


def train_worker(config: dict[str, Any]) -> dict[str, str]:
    """Ray Train's entry: `config` has the `stage`, pickled, the `mailbox`, the `threads` of a worker, those that its
    arithmetic may use (`compute_threads`), and `stall_seconds`.

    Returns an `Ended` as plain values. An error for the user goes into the mailbox, too: the other workers may wait
    for this one, and the driver ends them.
    """
    gc.freeze()  # what was imported is not looked through again and again: 3 % of the input's CPU time
    stage: Stage = pickle.loads(config["stage"])
    mailbox = config["mailbox"]
    world = _world(config["threads"], config["patience_seconds"])
    torch.set_num_threads(config["compute_threads"])
    post = Post(mailbox, world.rank)
    if world.rank == 0:
        post({"kind": "workers", "count": world.size})
    with (
        _warnings(post),
        _sampled(mailbox),
        _watchdog(config["stall_seconds"], mailbox, world.rank) as dog,
        _control(mailbox, world) as c,
    ):

        def log(record: dict[str, Any]) -> None:
            dog.beat()
            post(record)

        try:
            outcome = train(stage, world, log, c)
        except VerydeepError as error:
            if world.rank == 0 or not isinstance(error, TrainingError):  # that one is raised on all together, and
                post.now({"kind": "failed", "error": str(error)})  # worker 0 tells of it when it has written
            return Ended(How.FAILED, str(error)).plain()
        finally:
            post.flush()
    return (Ended(How.FINISHED) if outcome is Outcome.FINISHED else Ended(How.STOPPED, ASKED)).plain()


class PieceWorker:
    """A Ray actor that does one piece after the other, with what `begin` makes of this worker; one task at a time, each
    of which has a mailbox of its own.

    One that is lost is started again by Ray, and so is the piece that it was at. All that it knows comes with the
    pieces: what a constructor is given is gone when Ray calls it again.
    """

    def __init__(self) -> None:
        self._do: Callable[[range], Any] | None = None
        self._post: Post | None = None
        self._mailbox: Address | None = None  # of the task that it is at

    def do(
        self, begin: Callable[[World, Log], Callable[[range], Any]], threads: int, mailbox: Address, rows: range | None
    ) -> Any:
        """A piece; of none, what all of them take is made ready."""
        if self._post is None or self._mailbox != mailbox:
            self._do, self._post, self._mailbox = None, Post(mailbox), mailbox
        post = self._post
        with _warnings(post):
            if self._do is None:
                if rows is not None:
                    post({"kind": "warning", "text": "a worker was lost and started again; it goes on where it was"})
                self._do = begin(_alone(threads), post)
            result = None if rows is None else self._do(rows)
            post.settle()  # before the driver, which has the result, looks into the mailbox for the last time
            return result


def _alone(threads: int) -> World:
    """A worker of pieces; what it had of an earlier task is given back first."""
    torch.set_num_threads(threads)
    torch.backends.cudnn.allow_tf32 = False  # what is tested is the net in float32
    gc.collect()
    cuda = torch.cuda.is_available() and bool(ray.get_gpu_ids())
    if cuda:
        torch.cuda.empty_cache()
    return World(0, 1, torch.device("cuda", 0) if cuda else torch.device("cpu"), threads)  # Ray shows it its own alone


class Post:
    """Sends records without waiting; of the ticks, which only move a progress bar, a few each second.

    From workers other than 0 only what each has its own of, and their last tick.
    """

    def __init__(self, mailbox: Address, rank: int = 0) -> None:
        self._mailbox, self._rank = mailbox, rank
        self._last = 0.0
        self._withheld: dict[str, Any] | None = None
        self._sent: Any = None  # Ray's reference of the last one

    def __call__(self, record: dict[str, Any]) -> None:
        if self._rank and record["kind"] not in {*_OWN, "tick"}:
            return
        self._withheld = None
        if record["kind"] == "tick":
            if self._rank or time.monotonic() - self._last < _TICK_SECONDS:
                self._withheld = record
                return
            self._last = time.monotonic()
        self.now(record)

    def now(self, record: dict[str, Any]) -> None:
        self._sent = self._mailbox.put({**record, **_now()})

    def settle(self) -> None:
        """Waits until all that was sent has come."""
        try:
            ray.get(self._sent or [], timeout=_ANSWER_SECONDS)
        except ray.exceptions.RayError:  # records are no reason to fail
            return

    def flush(self) -> None:
        """Sends the last step's tick: how far training came."""
        if self._withheld is not None:
            self.now(self._withheld)
            self._withheld = None


class WorkerControl:
    """The driver's wish, for the loop."""

    def __init__(self, mailbox: Address) -> None:
        self._mailbox = mailbox
        self._asked = False

    def wish(self) -> Wish:
        return Wish.STOP if self._asked else Wish.NONE

    def listen(self, ended: threading.Event) -> None:
        """Asks the driver again and again, on worker 0."""
        while not self._asked and not ended.wait(_ASK_SECONDS):
            try:
                self._asked = ray.get(self._mailbox.asked_to_stop(), timeout=_ANSWER_SECONDS)
            except ray.exceptions.RayError:  # it comes back, or the driver has died and this worker with it
                continue


def _world(threads: int, patience_seconds: float) -> World:
    context = ray.train.get_context()
    return World(
        context.get_world_rank(), context.get_world_size(), ray.train.torch.get_device(), threads, patience_seconds
    )


@contextmanager
def _control(mailbox: Address, world: World) -> Iterator[WorkerControl]:
    control, ended = WorkerControl(mailbox), threading.Event()
    if world.rank == 0:
        threading.Thread(target=control.listen, args=(ended,), name="control", daemon=True).start()
    try:
        yield control
    finally:
        ended.set()


@contextmanager
def _sampled(mailbox: Address) -> Iterator[None]:
    """One worker of each node tells what its node is busy with."""
    if ray.train.get_context().get_local_rank():
        yield
        return
    node = _node_name(ray.get_runtime_context().get_node_id(), ray.nodes())
    with system.sampled(lambda values: mailbox.put({"kind": "system", "node": node, "values": values, **_now()})):
        yield


def _node_name(own: str, nodes: list[dict[str, Any]]) -> str:
    """A node's host; with a part of its id where nodes share one."""
    hosts = {node["NodeID"]: str(node["NodeManagerHostname"]) for node in nodes if node["Alive"]}
    host = hosts.get(own, "node")
    return host if list(hosts.values()).count(host) == 1 else f"{host}-{own[:8]}"


def _now() -> dict[str, float]:
    return {"time": time.time()}


@contextmanager
def _watchdog(seconds: float, mailbox: Address, rank: int) -> Iterator[Watchdog]:
    def tell(text: str) -> None:
        record = {"kind": "warning", "text": f"worker {rank}: {text}", **_now()}
        try:
            ray.get(mailbox.put(record), timeout=_ANSWER_SECONDS)  # before the process ends
        except ray.exceptions.RayError:
            return

    dog = Watchdog(seconds, tell)
    try:
        yield dog
    finally:
        dog.close()


@contextmanager
def _warnings(post: Log) -> Iterator[None]:
    handler = _Warnings(post)
    loggers = [logging.getLogger(name) for name in ("cluster", "pipelines")]
    for logger in loggers:
        logger.addHandler(handler)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeHandler(handler)


class _Warnings(logging.Handler):
    """Warnings of the project's own modules, such as of reading that is tried again, to the driver."""

    def __init__(self, post: Log) -> None:
        super().__init__(logging.WARNING)
        self._post = post

    def emit(self, record: logging.LogRecord) -> None:
        self._post({"kind": "warning", "text": record.getMessage()})
