"""What Kubernetes does to the pods of a Ray cluster while a job trains: a head is lost, and a new one started, whose
tables are in Redis; a worker's pod is ended.

It takes root, for pods, and a redis-server.
"""

import itertools
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from cluster.course import PREEMPTED
from tests.k8s.pods import Pod, free_port, groups, hindrance, with_redis
from tests.k8s.test_ray import SECRETS, Cluster, hook, manifest, without_mlflow

pytestmark = pytest.mark.timeout(1800)
PATIENCE_SECONDS = 600
STARTS = 3
AWAY_SECONDS = 75  # more than the 60 for which Ray's processes look for the head by default
EPOCHS = 40
JOB = """#!/usr/bin/env -S python -m jobs
name: tiny
data: digits
storage: {storage}
cluster: {{workers: [1, 2], cpus_per_worker: 2}}
train:
  {{net: A, scale: 34, input_size: 32, width: 0.05, batch: 16, pixel_std: 64, flip: false, epochs: {epochs},
   init: {{random: kaiming}}, plateau: {{patience: 1000}}}}
stages:
  first: {{}}
  second: {{init: {{from: first}}, epochs: 2}}
evaluations:
  both: {{models: [first, second]}}
"""


@dataclass
class Recovering:
    """`cluster` is of the worker with the driver; it has another head after `replace_head`."""

    cluster: Cluster
    ports: dict[str, str]
    others: list[Pod]

    def replace_head(self, seconds: float) -> Cluster:
        """Kills it with all that it is made of, and starts one with new volumes after so many seconds."""
        old = self.cluster.head
        old.kill()
        time.sleep(seconds)
        for number in itertools.count():
            home = old.home.with_name(f"new{number}")
            new = Pod(old.group, home, old.environment["RAY_ADDRESS"], self.ports)
            self.cluster = Cluster(self.cluster.home, new, self.cluster.worker, self.cluster.url)
            new.start()
            try:
                new.wait_healthy()
                break
            except AssertionError:  # on a busy machine it gives up, and Kubernetes would start it again
                new.kill()
                if number == STARTS:
                    raise
        return self.cluster

    def kill(self) -> None:
        for pod in (*self.others, self.cluster.worker, self.cluster.head):
            pod.kill()


@pytest.fixture
def recovering() -> Iterator[Recovering]:
    """k8s/jobs/demo.yaml's cluster with Redis, but for MLflow's server."""
    if (reason := hindrance()) is not None:
        pytest.skip(reason)
    if (program := shutil.which("redis-server")) is None:
        pytest.skip("there is no redis-server: on Debian, apt install redis-server")
    home, port, dashboard, redis = Path(tempfile.mkdtemp(prefix="verydeep-")), free_port(), free_port(), free_port()
    ports, address = {"port": str(port), "dashboard-port": str(dashboard)}, f"127.0.0.1:{port}"
    head, (worker,) = groups(manifest("jobs/demo.yaml", "RayJob")["rayClusterSpec"], SECRETS)
    head, password = without_mlflow(head), "of-redis"
    without_driver = {name: value for name, value in worker.params.items() if name != "resources"}
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, home, ignore_errors=True)
        options = ["--port", str(redis), "--requirepass", password, "--save", "", "--dir", str(home)]
        server = subprocess.Popen([program, *options], stdout=subprocess.DEVNULL)
        stack.callback(server.wait, 30)
        stack.callback(server.terminate)
        pods = [
            Pod(with_redis(head, f"127.0.0.1:{redis}", password), home / "h", address, ports),
            Pod(without_mlflow(worker), home / "w", address, {}),
            Pod(replace(without_mlflow(worker), params=without_driver), home / "other", address, {}),
        ]
        found = Recovering(Cluster(home, pods[0], pods[1], f"http://127.0.0.1:{dashboard}"), ports, pods[2:])
        stack.callback(found.kill)
        for pod in pods:
            pod.start()
            pod.wait_healthy()
        yield found


def begun(cluster: Cluster, folder: Path) -> None:
    """A job that trains on both workers, in its second epoch."""
    file = folder / "tiny.yaml"
    file.write_text(JOB.format(storage=folder / "storage", epochs=EPOCHS))
    file.chmod(0o755)
    cluster.post("job", str(file))
    deadline = time.monotonic() + PATIENCE_SECONDS
    while "first  epoch 2/" not in (said := cluster.log("job")):
        assert cluster.info("job")["status"] in ("PENDING", "RUNNING"), said
        assert time.monotonic() < deadline, said
        time.sleep(0.5)


def check_end(cluster: Cluster) -> list[str]:
    """That it was a success and no epoch was done twice. Returns what it warned of."""
    info, said = cluster.ended("job", PATIENCE_SECONDS), cluster.log("job")
    assert info["status"] == "SUCCEEDED", said
    epochs = [int(number) for number in re.findall(r"first  epoch (\d+)/\d+  loss", said)]
    assert epochs == list(range(1, EPOCHS + 1)), "each once"
    return re.findall(r"warning: (.*)", said)


def test_a_job_outlives_the_head(recovering: Recovering, tmp_path: Path) -> None:
    """The workers train on without it, and nothing is done twice."""
    begun(recovering.cluster, tmp_path)
    began = time.monotonic()
    cluster = recovering.replace_head(AWAY_SECONDS)
    healthy = time.monotonic()
    while (answer := cluster.ask("/api/jobs/job")).status != 200:
        assert time.monotonic() < healthy + PATIENCE_SECONDS, answer
        time.sleep(0.5)
    print(f"a head after {healthy - began:.0f} s, which knows the job {time.monotonic() - healthy:.0f} s later")
    assert check_end(cluster) == []


def test_a_workers_pod_that_is_ended_costs_no_step(recovering: Recovering, tmp_path: Path) -> None:
    """By the drain that `ray start` begins when it gets SIGTERM."""
    begun(recovering.cluster, tmp_path)
    (other,) = recovering.others
    hook(other)
    took = other.end(PATIENCE_SECONDS)
    print(f"the pod had ended {took:.0f} s after SIGTERM")
    assert check_end(recovering.cluster) == [f"{PREEMPTED}; training starts again from the newest checkpoint"]
