"""What of the driver's environment comes to Ray Train's workers."""

import os
from pathlib import Path
from typing import Any

import pytest
import ray
import ray.train

from cluster import launch
from cluster.controller import Trainer
from cluster.network import Torch
from cluster.settings import ClusterSettings

SET_BY_LAUNCH = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"


def told(config: dict[str, Any]) -> dict[str, Any]:
    """A worker's variables of Ray Train's, and those of its runtime environment."""
    del config
    mine = {name: value for name, value in os.environ.items() if name.startswith(("RAY_TRAIN_", "NCCL_RAS_"))}
    return {"environment": mine, "own": dict(ray.get_runtime_context().runtime_env.get("env_vars", {}))}


def heard(folder: Path) -> dict[str, Any]:
    """By a worker, of this driver."""
    trainer = Trainer(
        told,
        train_loop_config={},
        backend_config=Torch(timeout_s=60),
        scaling_config=ray.train.ScalingConfig(num_workers=1, resources_per_worker={"CPU": 1}),
        run_config=ray.train.RunConfig(name="run", storage_path=str(folder)),
    )
    with launch.environment(ClusterSettings()):
        assert os.environ[SET_BY_LAUNCH] == "300"
        answer: dict[str, Any] = trainer.fit().return_value
    return answer


@pytest.mark.usefixtures("cluster")
def test_workers_hear_what_a_user_has_set_for_the_driver_and_have_nothing_of_their_own_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert heard(tmp_path)["own"] == {}
    of_user = {"RAY_TRAIN_ENABLE_PRINT_PATCH": "0", "NCCL_RAS_ADDR": "127.0.0.1:28028"}
    for name, value in of_user.items():
        monkeypatch.setenv(name, value)
    answer = heard(tmp_path)
    assert answer["own"] == of_user
    assert answer["environment"].items() >= of_user.items()
    assert SET_BY_LAUNCH not in answer["environment"]


def test_a_user_says_how_long_workers_may_take_to_leave_their_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S", raising=False)
    assert Torch(timeout_s=60).leave_seconds == 5
    monkeypatch.setenv("TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S", "17")
    assert Torch(timeout_s=60).leave_seconds == 17
