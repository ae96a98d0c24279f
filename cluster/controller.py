"""What Ray Train's controller starts, what it tells the driver, and how the driver ends it. Private interfaces of Ray
Train stay here.

The controller is an actor that starts the group of workers, looks after it and starts it again.
"""

import os
from collections.abc import Mapping
from typing import Any

import ray
import ray._private.state
import ray._raylet
import ray.exceptions
import ray.train
from ray._common.constants import RAY_WARN_BLOCKING_GET_INSIDE_ASYNC_ENV_VAR
from ray.core.generated.gcs_pb2 import PlacementGroupTableData
from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.constants import (
    COLLECTIVE_TIMEOUT_S_ENV_VAR,
    ENABLE_PREEMPTION_WATCHER_ENV_VAR,
    HEALTH_CHECK_INTERVAL_S_ENV_VAR,
    WORKER_GROUP_START_TIMEOUT_S_ENV_VAR,
    WORKER_HEALTH_CHECK_TIMEOUT_S_ENV_VAR,
    get_env_vars_to_propagate,
)
from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerGroupCallback
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.controller.state import ReschedulingState, RestartingState
from ray.train.v2._internal.execution.scaling_policy.autoscaling_coordinator_client import (
    TrainAutoscalingCoordinatorClient,
)
from ray.train.v2._internal.execution.worker_group import WorkerGroup
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.util.placement_group import PlacementGroup, remove_placement_group

from cluster.failure import Failure, failure
from cluster.mailbox import Address
from pipelines.errors import first_line

_ANSWER_SECONDS = 5
# Always set, by cluster/launch.py or here, and read by the controller alone.
_OF_THE_CONTROLLER = {
    COLLECTIVE_TIMEOUT_S_ENV_VAR,
    ENABLE_PREEMPTION_WATCHER_ENV_VAR,
    HEALTH_CHECK_INTERVAL_S_ENV_VAR,
    RAY_WARN_BLOCKING_GET_INSIDE_ASYNC_ENV_VAR,
    WORKER_GROUP_START_TIMEOUT_S_ENV_VAR,
    WORKER_HEALTH_CHECK_TIMEOUT_S_ENV_VAR,
}


class Workers(WorkerGroup):  # type: ignore[misc]
    """Ray Train's, with only those of the driver's variables that are for workers, too: a process with variables of its
    own, or any other runtime environment, is one that Ray starts in two steps, each of which imports it, and not one
    that waits for work already. So there are none unless a user has set them for the driver."""

    @staticmethod
    def _get_worker_runtime_env(custom_runtime_env: Any) -> Any:
        of_user = {k: v for k, v in get_env_vars_to_propagate().items() if k not in _OF_THE_CONTROLLER}
        if not of_user:
            return custom_runtime_env
        return {**custom_runtime_env, "env_vars": {**of_user, **custom_runtime_env.get("env_vars", {})}}


class Controller(TrainController):  # type: ignore[misc]
    worker_group_cls = Workers

    def __init__(self, environment: Mapping[str, str], **arguments: Any) -> None:
        os.environ.update(environment)
        super().__init__(**arguments)


class Trainer(DataParallelTrainer):  # type: ignore[misc]
    """Ray Train's, without two of the processes that it starts each time: one deals out Ray's own data sets, of which
    there are none; the other gives places back when the controller has died, which `end` does, too.

    `controller`: its handle, as soon as it is started.
    """

    controller: Any = None

    def _create_default_callbacks(self) -> list[Any]:
        needless = (DatasetsCallback, PlacementGroupCleanerCallback)
        return [callback for callback in super()._create_default_callbacks() if type(callback) not in needless]

    def _initialize_and_run_controller(self, **arguments: Any) -> Any:
        """As Ray Train does it, in any thread."""
        environment = {RAY_WARN_BLOCKING_GET_INSIDE_ASYNC_ENV_VAR: "0", **get_env_vars_to_propagate()}
        here = {ray._raylet.RAY_NODE_ID_KEY: ray.get_runtime_context().get_node_id()}
        actor = ray.remote(num_cpus=0, label_selector=here)(Controller)
        self.controller = actor.remote(environment, **arguments)
        ray.get(self.controller.run.remote())
        return ray.get(self.controller.get_result.remote())


class Reporter(ControllerCallback, WorkerGroupCallback):  # type: ignore[misc]
    """Sends which nodes the workers are on, and why they have to be started again."""

    def __init__(self, mailbox: Address) -> None:
        self._mailbox = mailbox
        self._requester = ""

    def after_controller_start(self, train_run_context: Any) -> None:
        self._requester = _requester(train_run_context.run_id)
        self._look_again()

    def after_worker_group_start(self, worker_group: Any) -> None:
        nodes = {worker.metadata.node_id for worker in worker_group.get_workers()}
        self._mailbox.put({"kind": "nodes", "nodes": sorted(nodes)})

    def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
        del previous_state
        if isinstance(current_state, RestartingState | ReschedulingState):
            found = reason(current_state.training_failed_error)
            kind = "crash" if isinstance(current_state, RestartingState) else "start failed"
            self._mailbox.put({"kind": kind, "reason": found.text, "cause": found.cause})
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


def end(trainer: Trainer) -> None:
    """Ends a run at once, if it has not ended: its workers die with the controller."""
    if trainer.controller is not None:
        ray.kill(trainer.controller)


def give_back(trainer: Trainer) -> None:
    """The process of a run that has ended, however it did, and the places that its workers had or that it had asked
    for: Ray removes a controller's placement group only when the driver has ended, too."""
    if trainer.controller is None:
        return
    end(trainer)
    creator = trainer.controller._actor_id.binary()
    for table in ray._private.state.state._connect_and_get_accessor().get_placement_group_table():
        group = PlacementGroupTableData.FromString(table)
        if group.creator_actor_id == creator and group.state != PlacementGroupTableData.REMOVED:
            remove_placement_group(PlacementGroup(ray._raylet.PlacementGroupID(group.placement_group_id)))
    TrainAutoscalingCoordinatorClient(_requester(trainer.train_run_context.run_id)).cancel_resource_request()


def _requester(run: str) -> str:
    return f"train-{run}"
