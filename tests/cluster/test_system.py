"""What a node tells of itself, on this machine."""

import logging
import math
import os
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor

from cluster import system
from cluster.system import Reading, sampled
from cluster.worker import _node_name


def burn(seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


def test_a_burning_process_raises_the_utilisation_and_names_are_those_of_mlflow() -> None:
    reading = Reading()
    burn(0.5)
    values = reading()
    assert values["cpu_utilization_percentage"] > 50 / (psutil.cpu_count() or 1)
    monitor = CPUMonitor()
    monitor.collect_metrics()
    theirs = monitor.aggregate_metrics()
    assert theirs.keys() <= values.keys()
    used = values["system_memory_usage_megabytes"]
    assert used == pytest.approx(theirs["system_memory_usage_megabytes"], rel=0.2)
    assert values["system_memory_usage_percentage"] == pytest.approx(100e6 * used / psutil.virtual_memory().total)
    assert all(math.isfinite(value) and value >= 0 for value in values.values())


def test_what_is_written_to_shared_memory_is_seen() -> None:
    reading = Reading()
    before = reading()
    held = Path("/dev/shm") / f"verydeep-test-{os.getpid()}"
    try:
        held.write_bytes(b"x" * 50_000_000)
        grown = reading()["shared_memory_usage_megabytes"] - before["shared_memory_usage_megabytes"]
        assert 30 < grown < 70
    finally:
        held.unlink()


def test_gpus_are_named_by_number_and_what_one_does_not_tell_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(gpu: Any) -> dict[str, float]:
        raise system.pynvml.NVMLError_NotSupported()

    monkeypatch.setattr(system, "_gpu_memory", lambda gpu: {"memory_usage_megabytes": 10.0 * gpu})
    monkeypatch.setattr(system, "_gpu_utilisation", lambda gpu: {"utilization_percentage": 100})
    monkeypatch.setattr(system, "_gpu_power", refused)
    monkeypatch.setattr(system, "_gpus", lambda: {0: 1, 1: 2})
    values = Reading()()
    assert {key: value for key, value in values.items() if key.startswith("gpu")} == {
        "gpu_0_memory_usage_megabytes": 10.0,
        "gpu_0_utilization_percentage": 100,
        "gpu_1_memory_usage_megabytes": 20.0,
        "gpu_1_utilization_percentage": 100,
    }


def test_a_gpu_that_is_lost_takes_no_other_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def handle(number: int) -> str:
        if number == 1:
            raise system.pynvml.NVMLError_GpuIsLost()
        return f"gpu {number}"

    monkeypatch.setattr(system.pynvml, "nvmlInit", lambda: None)
    monkeypatch.setattr(system.pynvml, "nvmlDeviceGetCount", lambda: 3)
    monkeypatch.setattr(system.pynvml, "nvmlDeviceGetHandleByIndex", handle)
    assert system._gpus() == {0: "gpu 0", 2: "gpu 2"}


def test_samples_come_while_the_block_lasts_and_a_failure_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    found: list[dict[str, float]] = []
    with sampled(found.append, 0.01):
        deadline = time.monotonic() + 30
        while len(found) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
    assert len(found) >= 3
    time.sleep(0.1)
    count = len(found)
    time.sleep(0.1)
    assert len(found) == count

    def fails(values: dict[str, float]) -> None:
        raise OSError("no such thing")

    with caplog.at_level(logging.WARNING), sampled(fails, 0.01):
        while not caplog.messages and time.monotonic() < deadline:
            time.sleep(0.01)
    assert caplog.messages == ["there are no more system metrics of this node: OSError: no such thing"]


def test_nodes_are_named_by_their_hosts_unless_these_are_shared() -> None:
    def node(name: str, host: str, alive: bool = True) -> dict[str, Any]:
        return {"NodeID": name * 20, "NodeManagerHostname": host, "Alive": alive}

    nodes = [node("a", "one"), node("b", "two"), node("c", "two"), node("d", "one", alive=False)]
    assert [_node_name(each["NodeID"], nodes) for each in nodes[:3]] == ["one", "two-bbbbbbbb", "two-cccccccc"]
