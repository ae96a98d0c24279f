"""The driver's side: stages and tests carried out on a cluster."""

import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict
from functools import partial

from cluster.attempt import Stage
from cluster.course import Course, Ended, How, Move, warning
from cluster.evaluate import PIECE_ROWS, Evaluation, Looked, Viewer, assembled, check
from cluster.interrupt import Stop
from cluster.posteriors import Posteriors
from cluster.settings import ClusterSettings
from cluster.views import View
from pipelines.errors import ClusterError, RoomError, TrainingError, first_line
from pipelines.location import Location
from pipelines.schema import MANIFEST
from pipelines.shards import DataSet

# Ray reads these when it is imported or started. Without an explicit mode a local Ray makes an authentication token
# that the next `ray start` asks for and `ray job submit` does not send; the poll is every 2 s by default, and a
# worker's end is noticed at the next one; nodes that are taken away are looked for by the driver, not by a process of
# each stage. Ray's workers
# would be nice (15), so that whatever else runs on a machine goes before them.
_ENVIRONMENT = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_worker_niceness": "0",
}
for _name, _value in _ENVIRONMENT.items():
    os.environ.setdefault(_name, _value)

import ray  # noqa: E402
import ray._private.utils  # noqa: E402
import ray.exceptions  # noqa: E402
import ray.train  # noqa: E402

from cluster import features, nets, place  # noqa: E402
from cluster.fit import Fit  # noqa: E402
from cluster.mailbox import Listen, Mailbox, Records, mailbox  # noqa: E402
from cluster.pieces import idle, over_pieces, rest  # noqa: E402
from cluster.place import Shape  # noqa: E402
from cluster.storage import Shared  # noqa: E402

_TOO_SLOW = "timed out during startup"  # of what Ray says when one that it starts is not there after 30 s
_POLL_SECONDS = 0.25
_NODES_POLL_SECONDS = 2.0
_ANSWER_SECONDS = 5.0
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
        except Exception as error:  # Ray has no kind of its own for this one
            if _TOO_SLOW not in str(error):
                raise
            raise ClusterError(
                "a Ray of this machine's own did not come up in time: call the same command again, or start one before "
                "with `ray start --head`"
            ) from error
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


def room(on: Shape, test: bool = False) -> int:
    """How many workers more would find a place now. Those of tests that are over keep theirs for another `test`; a
    stage gets them back, as soon as their processes have ended."""
    if test:
        return place.room(on) + idle(on)
    rest()
    return place.room(on)


def disconnect() -> None:
    ray.shutdown()


def train_stage(stage: Stage, on: Shape, settings: ClusterSettings, listen: Listen, stop: Stop) -> None:
    """Trains one stage to its end, through whatever happens to its workers; `listen` gets their records.

    Stages and tests can go on side by side, each in a thread; `environment` is to be entered before. Raises
    TrainingError if it cannot go on, ClusterError if its storage is not shared by all nodes, and KeyboardInterrupt when
    a stop is asked for: after a checkpoint, or at once.
    """
    course, shared = Course(on, settings, time.monotonic()), Shared()
    manifests = [(Location.of(data) / MANIFEST).absolute for data in (stage.training_data, stage.validation_data)]
    with mailbox() as box:
        while True:
            stop.heed()
            rest()
            shared.check(stage.folder, manifests)
            with Fit(stage, on, settings, box) as fit:
                ended = _accompany(fit, course, box, stop, listen)
            if ended.how is How.FAILED:
                raise TrainingError(f"stage {stage.name}: {ended.why}")
            stop.heed()  # though it is finished: the same command finds it so
            if ended.how is How.FINISHED:
                return
            course.stopped(time.monotonic())
            listen({"kind": "lost"})
            listen(warning(f"{ended.why}; training starts again from the newest checkpoint"))


def _accompany(fit: Fit, course: Course, box: Mailbox, stop: Stop, listen: Listen) -> Ended:
    """Listens and decides until the run ends."""
    records, reason = Records(box, listen), ""
    room, leaving, looked, at_work = 0, set[str](), time.monotonic(), 0
    while not fit.over(_POLL_SECONDS):
        records.deliver(course.hear)
        if course.workers < at_work:
            listen({"kind": "lost"})
        at_work = course.workers
        if time.monotonic() - looked > _NODES_POLL_SECONDS:
            if course.short:
                rest()  # the places of tests that are over may be what it lacks
            if not course.workers:
                rest()  # it may wait for their places
            room, leaving = place.room(fit.on) if course.short else 0, place.leaving()
            looked = time.monotonic()
        decision = course.decide(time.monotonic(), room, stop, leaving)
        if decision.move is Move.ABORT:
            fit.abort()
            if decision.lacks_room:
                raise RoomError(f"{decision.why}; the cluster has {place.describe(place.nodes())}")
            return Ended(How.FAILED, decision.why) if decision.why else Ended(How.STOPPED)
        if decision.move is Move.STOP:
            reason = decision.why
            box.ask_to_stop()
    records.deliver(course.hear)
    if fit.lost:
        course.lost_controller(time.monotonic())
    ended = fit.result()
    return Ended(ended.how, reason) if reason and ended.how is How.STOPPED else ended


def run_evaluation(test: Evaluation, on: Shape, listen: Listen, stop: Stop) -> dict[View, Posteriors]:
    """One net on one data set, over all workers: every image once in each view.

    `listen` gets, beside the workers' records, for each piece of the data and view (`timed`) its number of images, the
    seconds that a worker took for it and those of them in the net.

    Raises CheckpointError, DataError or SettingsError, most of them before a worker starts, TrainingError if the
    workers cannot go on, or an image was left out, and KeyboardInterrupt when a stop is asked for.
    """
    net, manifest = nets.look(Location.of(test.checkpoint)), DataSet.open(test.data).manifest
    check(test, net, manifest)
    begin, what = partial(Viewer, test), f"the test of {test.checkpoint}"
    with closing(over_pieces(begin, manifest.rows, PIECE_ROWS, on, listen, what, stop)) as pieces:
        return assembled(test, net, manifest, _timed(pieces, listen))


def _timed(pieces: Iterator[dict[View, Looked]], listen: Listen) -> Iterator[dict[View, Looked]]:
    for piece in pieces:
        for view, looked in piece.items():
            spent = {"seconds": looked.seconds, "net_seconds": looked.net_seconds}
            listen({"kind": "timed", **asdict(view), "images": len(looked.rows), **spent})
        yield piece


def run_features(task: features.Extraction, out: Location, on: Shape, listen: Listen, stop: Stop) -> features.Written:
    """The features of a data set's images, by all workers, to the file `out`.

    Raises CheckpointError, DataError or SettingsError, most of them before a worker starts, TrainingError if the
    workers cannot go on, or the file cannot be written, and KeyboardInterrupt when a stop is asked for.
    """
    net, manifest = nets.look(Location.of(task.checkpoint)), DataSet.open(task.data).manifest
    features.check(task, net, out)
    begin, what = partial(features.Extractor, task), f"the features of {task.data}"
    with closing(over_pieces(begin, manifest.rows, features.PIECE_ROWS, on, listen, what, stop)) as pieces:
        return features.write(out, pieces, features.notes(task, net, manifest))


@contextmanager
def environment(settings: ClusterSettings) -> Iterator[None]:
    """What Ray Train's controllers take from the driver's environment; what a user has set is kept. It is the whole
    process's: to be entered once, before threads that train start."""
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
