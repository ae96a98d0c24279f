"""What Ray Train's controller starts, what it tells the driver, and how the driver ends it. Private interfaces of Ray
Train stay here.

The controller is an actor that starts the group of workers, looks after it and starts it again.
"""

from typing import Any

import ray
import ray.exceptions
import ray.train
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.train.v2._internal.execution.callback import ControllerCallback
from ray.train.v2._internal.execution.controller.state import ReschedulingState, RestartingState
from ray.train.v2._internal.execution.scaling_policy.autoscaling_coordinator_client import (
    TrainAutoscalingCoordinatorClient,
)

from cluster.failure import Failure, failure
from pipelines.errors import first_line

_ANSWER_SECONDS = 5


class Trainer(TorchTrainer):  # type: ignore[misc]
    """Ray Train's, without the actor that deals out Ray's own data sets: a process at each start, for no set."""

    def _create_default_callbacks(self) -> list[Any]:
        return [callback for callback in super()._create_default_callbacks() if type(callback) is not DatasetsCallback]


class Reporter(ControllerCallback):  # type: ignore[misc]
    """Sends the controller's own handle, and why workers have to be started again."""

    def __init__(self, mailbox: Any) -> None:
        self._mailbox = mailbox
        self._requester = ""

    def after_controller_start(self, train_run_context: Any) -> None:
        self._requester = _requester(train_run_context.run_id)
        self._mailbox.put.remote({"kind": "controller", "handle": ray.get_runtime_context().current_actor})
        self._look_again()

    def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
        del previous_state
        if isinstance(current_state, RestartingState | ReschedulingState):
            found = reason(current_state.training_failed_error)
            kind = "crash" if isinstance(current_state, RestartingState) else "start failed"
            self._mailbox.put.remote({"kind": kind, "reason": found.text, "cause": found.cause})
            self._look_again()

    def _look_again(self) -> None:
        """At the cluster's nodes: elastic workers are counted by what was there up to 20 s ago."""
        coordinator = TrainAutoscalingCoordinatorClient(self._requester)._autoscaling_coordinator
        try:
            ray.get(coordinator.get_reserved_resources.remote(self._requester, recompute=True), timeout=_ANSWER_SECONDS)
        except ray.exceptions.RayError:  # then it is the older view, and a start that fails and is tried again
            return


def reason(error: BaseException) -> Failure:
    """Of a failure of Ray Train's."""
    if isinstance(error, ray.train.WorkerGroupError):
        return failure(error.worker_failures)
    if isinstance(error, ray.train.ControllerError):
        line = first_line(error.controller_failure)
        return Failure(line, line)
    return Failure(first_line(error), type(error).__name__)


def end(controller: Any, trainer: Any) -> None:
    """Ends a run at once: its workers die with the controller. Their reserved places are given back."""
    if controller is not None:
        ray.kill(controller)
    TrainAutoscalingCoordinatorClient(_requester(trainer.train_run_context.run_id)).cancel_resource_request()


def _requester(run: str) -> str:
    return f"train-{run}"
