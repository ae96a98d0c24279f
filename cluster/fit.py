"""One run of Ray Train: its own means start workers again as they crash, until a budget is used up."""

import pickle
import threading
import time
from tempfile import TemporaryDirectory
from types import TracebackType

import ray
import ray.exceptions
import ray.train

from cluster import place
from cluster.attempt import Stage
from cluster.controller import Reporter, Trainer, end, give_back, reason
from cluster.course import LOST_CONTROLLER, Ended, How
from cluster.mailbox import Mailbox
from cluster.network import Torch
from cluster.place import Shape
from cluster.settings import ClusterSettings
from cluster.step import compute_threads
from cluster.worker import train_worker

_POLL_SECONDS = 0.25
_SETTLE_SECONDS = 5.0  # until the places of workers that have ended are free again
_START_SECONDS, _END_SECONDS = 10.0, 10.0  # of the controller
_NEVER = 1e9  # seconds


class Fit:
    """`Trainer.fit` in a thread of its own, so that the caller stays free for decisions."""

    def __init__(self, stage: Stage, on: Shape, settings: ClusterSettings, box: Mailbox) -> None:
        self.on = on
        self._settings, self._box = settings, box
        self._result: Ended | None = None
        self._error: BaseException | None = None
        # Ray's own notes on the run; checkpoints are ours: Ray registers one only at its next poll, and forgets it if
        # the driver dies first.
        self._scratch = TemporaryDirectory(prefix="verydeep-", ignore_cleanup_errors=True)
        box.begin()
        self._trainer = self._make(stage)
        self._thread = threading.Thread(target=self._fit, name="fit", daemon=True)

    def __enter__(self) -> "Fit":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._thread.is_alive():
            self.abort()
        give_back(self._trainer)
        self._scratch.cleanup()

    def over(self, seconds: float) -> bool:
        """Waits for so long at most."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    @property
    def lost(self) -> bool:
        """The controller has died, of which Ray Train itself is not aware."""
        return isinstance(self._error, ray.exceptions.RayActorError)

    def result(self) -> Ended:
        if self._result is not None:
            return self._result
        assert self._error is not None
        if self.lost:
            return Ended(How.STOPPED, LOST_CONTROLLER)
        budget = self._settings.max_failures
        text = reason(self._error).text
        spent = isinstance(self._error, ray.train.WorkerGroupError) and budget
        return Ended(How.FAILED, f"{text}, after {budget} other crashes (max_failures)" if spent else text)

    def abort(self) -> None:
        """Ends the workers at once."""
        deadline = time.monotonic() + _START_SECONDS
        while self._trainer.controller is None and time.monotonic() < deadline:
            self._thread.join(_POLL_SECONDS)
        end(self._trainer)
        self._thread.join(_END_SECONDS)

    def _fit(self) -> None:
        try:
            self._result = Ended.of(self._trainer.fit().return_value)
        except BaseException as error:  # into the thread that waits
            self._error = error

    def _make(self, stage: Stage) -> Trainer:
        on, settings = self.on, self._settings
        most = _most(on)
        return Trainer(
            train_worker,
            train_loop_config={
                "stage": pickle.dumps(stage),  # the controller has no need to import all that it is made of
                "mailbox": self._box.address,
                "threads": on.cpus,
                "compute_threads": compute_threads(stage.settings, on.cpus, on.cpus_given),
                "patience_seconds": settings.collective_timeout_seconds,
                "stall_seconds": 60 * settings.stall_minutes,
            },
            backend_config=Torch(timeout_s=settings.collective_timeout_seconds),
            scaling_config=ray.train.ScalingConfig(
                num_workers=most if most == on.least else (on.least, most),
                use_gpu=on.gpus > 0,
                resources_per_worker={"CPU": on.cpus, **({"GPU": on.gpus} if on.gpus else {})},
                elastic_resize_monitor_interval_s=_NEVER,  # Ray ends the workers for it without a word
            ),
            run_config=ray.train.RunConfig(
                name="run",
                storage_path=self._scratch.name,
                failure_config=ray.train.FailureConfig(max_failures=settings.max_failures),
                callbacks=[Reporter(self._box.address)],
            ),
        )


def _most(on: Shape) -> int:
    """How many workers to begin with: as many as the cluster has room for, or may grow to.

    Ray counts nodes that are being drained, and CPUs that others use.
    """
    if on.least == on.workers or place.growth(on) is not None:
        return on.workers
    deadline = time.monotonic() + _SETTLE_SECONDS
    while (room := place.room(on)) < on.workers and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
    return max(on.least, min(on.workers, room))
