"""The driver's side: stages and tests carried out on a cluster."""

import logging
import os
import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from cluster.attempt import Stage
from cluster.course import Course, Ended, How, Move, warning
from cluster.evaluate import Evaluation
from cluster.interrupt import interrupted, noted
from cluster.metrics import Totals
from cluster.settings import ClusterSettings
from pipelines.errors import ClusterError, TrainingError, first_line
from pipelines.location import Location
from pipelines.schema import MANIFEST

# Ray reads these when it is imported or started. Without an explicit mode a local Ray makes an authentication token
# that the next `ray start` asks for and `ray job submit` does not send; the poll is every 2 s by default, and a
# worker's end is noticed at the next one.
_ENVIRONMENT = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "2",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
for _name, _value in _ENVIRONMENT.items():
    os.environ.setdefault(_name, _value)

import ray  # noqa: E402
import ray._private.utils  # noqa: E402
import ray.exceptions  # noqa: E402
import ray.train  # noqa: E402

from cluster import place  # noqa: E402
from cluster.fit import Fit  # noqa: E402
from cluster.mailbox import Mailbox, mailbox  # noqa: E402
from cluster.place import Shape  # noqa: E402
from cluster.storage import Shared  # noqa: E402
from cluster.worker import evaluate_worker  # noqa: E402

Listen = Callable[[dict[str, Any]], None]
Signalled = Callable[[], int | None]  # the number of the signal that has come, if any

_POLL_SECONDS = 0.25
_ROOM_POLL_SECONDS = 2.0
_ANSWER_SECONDS = 5.0
_QUIET_SECONDS = 60  # after which a person is told that workers say nothing; then after twice as long, and so on
_START_SECONDS, _ELASTIC_START_SECONDS = 300, 5  # for workers to find their places; then elastic ones are less


def connect(address: str | None = None) -> str:
    """To the cluster that RAY_ADDRESS names or that was started on this machine, or to a local Ray of our own; with
    `address` "local" to one of our own in any case.

    Returns a description of it. Raises ClusterError if it cannot be reached.
    """
    if not ray.is_initialized():
        try:
            ray.init(_alive(address), log_to_driver=False, logging_level=logging.WARNING)
        except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
            raise ClusterError(f"the Ray cluster cannot be reached: {first_line(error)}") from error
    ray._private.worker._worker_logs_enabled = False  # Ray's account of every process that died; we have a line for it
    for name in ("ray.train", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return place.describe(place.nodes())


def _alive(address: str | None) -> str | None:
    """`address`, or "local" where Ray would look for a cluster that is no more: one that is killed leaves its address
    behind, and Ray waits for it for minutes."""
    if address is not None or os.environ.get("RAY_ADDRESS"):
        return address
    host, _, port = (ray._private.utils.read_ray_address() or "").rpartition(":")
    if not host:
        return None
    try:
        socket.create_connection((host, int(port)), _ANSWER_SECONDS).close()
    except (OSError, ValueError):
        return "local"
    return None


def disconnect() -> None:
    ray.shutdown()


def train_stage(stage: Stage, on: Shape, settings: ClusterSettings, listen: Listen) -> None:
    """Trains one stage to its end, through whatever happens to its workers; `listen` gets their records.

    Raises TrainingError if it cannot go on, ClusterError if its storage is not shared by all nodes, and, after a
    checkpoint, KeyboardInterrupt if it is asked to stop.
    """
    course, shared = Course(on, settings, time.monotonic()), Shared()
    manifests = [(Location.of(data) / MANIFEST).absolute for data in (stage.training_data, stage.validation_data)]
    with mailbox() as box, noted() as signalled, _environment(settings):
        while True:
            shared.check(stage.folder, manifests)
            with Fit(stage, on, settings, box) as fit:
                ended = _accompany(fit, course, box, signalled, listen)
            if ended.how is How.FAILED:
                raise TrainingError(f"stage {stage.name}: {ended.why}")
            if (number := signalled()) is not None:  # though it is finished: the same command finds it so
                raise interrupted(number)
            if ended.how is How.FINISHED:
                return
            course.stopped(time.monotonic())
            listen(warning(f"{ended.why}; training starts again from the newest checkpoint"))


def _accompany(fit: Fit, course: Course, box: Mailbox, signalled: Signalled, listen: Listen) -> Ended:
    """Listens and decides until the run ends."""
    records, reason = _Records(box, listen), ""
    room, looked = 0, time.monotonic()
    while not fit.over(_POLL_SECONDS):
        records.deliver(course.hear)
        if course.short and time.monotonic() - looked > _ROOM_POLL_SECONDS:
            room, looked = place.room(fit.on), time.monotonic()
        decision = course.decide(time.monotonic(), room, signalled() is not None)
        if decision.move is Move.ABORT:
            fit.abort()
            here = f"; the cluster has {place.describe(place.nodes())}" if decision.lacks_room else ""
            return Ended(How.FAILED, decision.why + here) if decision.why else Ended(How.STOPPED)
        if decision.move is Move.STOP:
            reason = decision.why
            box.ask_to_stop()
    records.deliver(course.hear)
    if fit.lost:
        course.lost_controller(time.monotonic())
    ended = fit.result()
    return Ended(ended.how, reason) if reason and ended.how is How.STOPPED else ended


def run_evaluation(test: Evaluation, on: Shape, rows: int, listen: Listen) -> Totals:
    """One net on one data set of `rows` images, over all workers. Raises TrainingError if an image was left out."""
    with mailbox() as box, noted() as signalled:
        task = ray.remote(evaluate_worker).options(num_cpus=on.cpus, num_gpus=on.gpus, max_retries=3)
        parts = [task.remote(test, rank, on.workers, on.cpus, box.actor) for rank in range(on.workers)]
        records, waiting = _Records(box, listen), parts
        while waiting:
            _, waiting = ray.wait(waiting, num_returns=len(waiting), timeout=_POLL_SECONDS)
            records.deliver()
            if number := signalled():
                raise interrupted(number)
        try:
            totals = sum(ray.get(parts), Totals(0, 0.0, 0, 0))
        except ray.exceptions.RayError as error:
            raise TrainingError(f"the test of {test.checkpoint}: {_reason(error)}") from error
    if totals.images != rows:
        raise TrainingError(f"{test.data}: {totals.images} of {rows} images were tested")
    return totals


def _reason(error: BaseException) -> str:
    """The line that names an error of ours, or else the last one; the whole is in Ray's logs."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    ours = [line for line in lines if re.match(r"pipelines\.errors\.\w+: ", line)]
    return ours[0].partition(": ")[2] if ours else lines[-1] if lines else type(error).__name__


class _Records:
    """What the mailbox holds, passed on; and that nothing has come for a long time."""

    def __init__(self, box: Mailbox, listen: Listen) -> None:
        self._box, self._listen = box, listen
        self._heard, self._patience = time.monotonic(), _QUIET_SECONDS

    def deliver(self, hear: Callable[[dict[str, Any], float], dict[str, Any] | None] = lambda r, _: r) -> None:
        now = time.monotonic()
        for record in self._box.take():
            heard = hear(record, now)
            if heard is not None:
                self._listen(heard)
            self._heard, self._patience = now, _QUIET_SECONDS
        if now - self._heard > self._patience:
            self._listen({"kind": "quiet", "seconds": self._patience})
            self._patience *= 2


@contextmanager
def _environment(settings: ClusterSettings) -> Iterator[None]:
    """What Ray Train's controller takes from the driver's environment; what a user has set is kept."""
    least, most = settings.workers
    stall = 60 * settings.stall_minutes
    values = {
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": _START_SECONDS if least == most else _ELASTIC_START_SECONDS,
        "RAY_TRAIN_COLLECTIVE_TIMEOUT_S": settings.collective_timeout_seconds,
        "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": stall,
    }
    own = {name: str(value) for name, value in values.items() if name not in os.environ}
    os.environ.update(own)
    try:
        yield
    finally:
        for name in own:
            os.environ.pop(name, None)
