"""Training that goes on through what happens to its workers, nodes and driver: `make soak`, some minutes."""

import os
import random
import signal
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from ray._raylet import GcsClient
from ray.cluster_utils import Cluster
from ray.core.generated import autoscaler_pb2

from cluster import course
from cluster.place import Shape
from cluster.settings import ClusterSettings
from cluster.train import Stage
from pipelines.shards import DataSet
from tests.cluster.chaos import send, train_workers
from tests.cluster.runs import Listener, carried_out, in_epoch, saved, stage
from tests.jobs.crash import CrashedJob, Kill, job

EPOCHS = 60
ELASTIC = ClusterSettings(workers=(1, 2), collective_timeout_seconds=10)


@pytest.fixture
def nodes() -> Iterator[Cluster]:
    """A Ray of two nodes of one CPU each; the driver's is the first."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TRAIN_METRICS_ENABLED", "0")
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("PYTHONPATH", str(Path(__file__).parent.parent.parent))
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        cluster.add_node(num_cpus=1)
        ray.init(address=cluster.address, log_to_driver=False)
        yield cluster
        ray.shutdown()
        cluster.shutdown()


def wide(data: tuple[str, str], folder: Path, epochs: int = EPOCHS) -> Stage:
    return stage(data, folder, epochs, width=0.25, plateau={"patience": 1000})


def check_ledger(listener: Listener, data: str, folder: Path, epochs: int = EPOCHS) -> list[tuple[int, int]]:
    """Every row of each epoch counted once. Returns the steps that had to be done again."""
    assert len(saved(folder).progress.epochs) == epochs
    rows, again = listener.ledger()
    by_epoch: dict[int, list[int]] = defaultdict(list)
    for (epoch, _), trained in rows.items():
        by_epoch[epoch] += trained
    every = list(range(DataSet.open(data).rows))
    assert sorted(by_epoch) == list(range(1, epochs + 1))
    assert all(sorted(trained) == every for trained in by_epoch.values())
    return again


def other_node(cluster: Cluster) -> Any:
    (node,) = cluster.worker_nodes
    return node


def test_a_node_that_is_lost_and_comes_back(
    nodes: Cluster, digits: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(course, "_ROOM_SECONDS", 1.0)
    monkeypatch.setattr(course, "_COOL_DOWN_SECONDS", 3.0)
    lost = Listener(
        (in_epoch(2), lambda: nodes.remove_node(other_node(nodes), allow_graceful=False)),
        (lambda r: r["kind"] == "epoch" and r["epoch"] > 3, lambda: nodes.add_node(num_cpus=1)),
    )
    carried_out(wide(digits, tmp_path), Shape(2, 1, 0, 1), ELASTIC, lost)
    print(*lost.texts(), sep="\n")
    print(f"training again {lost.seconds_lost(0):.1f} s after the node was lost; groups of {lost.counts()}")
    assert lost.counts() == [2, 1, 2]
    again = check_ledger(lost, digits[0], tmp_path)
    assert again
    assert {epoch for epoch, _ in again} == {2}, "growing loses nothing"


def test_a_node_that_is_drained_costs_no_step(nodes: Cluster, digits: tuple[str, str], tmp_path: Path) -> None:
    def drain() -> None:
        reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
        deadline = int(time.time() * 1000) + 120_000
        accepted, why = GcsClient(address=nodes.address).drain_node(other_node(nodes).node_id, reason, "", deadline)
        assert accepted, why

    drained = Listener((in_epoch(2), drain))
    carried_out(wide(digits, tmp_path), Shape(2, 1, 0, 1), ELASTIC, drained)
    print(*drained.texts(), sep="\n")
    print(f"training again {drained.seconds_lost(0):.1f} s after the notice")
    assert drained.counts() == [2, 1], "the node that goes gets no worker"
    assert drained.texts() == [f"{course.PREEMPTED}; training starts again from the newest checkpoint"]
    assert check_ledger(drained, digits[0], tmp_path) == []


@pytest.mark.parametrize("workers", [1, 2])
def test_a_worker_that_hangs_is_replaced(workers: int, nodes: Cluster, digits: tuple[str, str], tmp_path: Path) -> None:
    """The others notice when it does not answer; where there are none, Ray does."""
    hung: list[int] = []

    def stop() -> None:
        hung.append(train_workers(os.getpid())[-1])
        send(signal.SIGSTOP, *hung)

    listener = Listener((in_epoch(2), stop))
    fixed = ClusterSettings(workers=(workers, workers), collective_timeout_seconds=10, stall_minutes=0.25)
    carried_out(wide(digits, tmp_path, 6), Shape(workers, 1, 0, workers), fixed, listener)
    print(*listener.texts(), sep="\n")
    print(f"training again {listener.seconds_lost(0):.1f} s after the hang")
    assert listener.counts() == [workers, workers]
    assert not Path(f"/proc/{hung[0]}").exists()
    check_ledger(listener, digits[0], tmp_path, 6)


def test_twenty_kills_at_random_moments_change_no_bit(tmp_path: Path) -> None:
    seed = int(os.environ.get("SEED", "0"))
    rng = random.Random(seed)
    alone = CrashedJob(tmp_path, "alone", job(tmp_path, "alone", 40))
    alone.run()
    killed = CrashedJob(tmp_path, "killed", job(tmp_path, "killed", 40))
    killed.run(Kill.draw(rng) for _ in range(20))
    expected, found = alone.weights(tmp_path), killed.weights(tmp_path)
    assert all(torch.equal(found[key], expected[key]) for key in expected)
