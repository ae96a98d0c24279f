"""Ray as the manifests start it: the command lines of a RayJob's head and worker, with its token, as processes."""

import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from tests.k8s.pods import BIN, ROOT, Group, Pod, answer, free_port, groups, hindrance, start_command

MANIFESTS = ROOT / "k8s"
TOKEN, PASSWORD = "a-token-of-32-characters-or-more", "a-password"
SECRETS = {"token": {"auth_token": TOKEN}, "mlflow": {"username": "admin", "password": PASSWORD}}
PATIENCE_SECONDS = 300
EPOCHS = 20
JOB = """#!/usr/bin/env -S python -m jobs
name: tiny
data: {{train: {train}, val: {val}}}
storage: {storage}
cluster: {{workers: 2}}
train:
  {{net: A, scale: 34, input_size: 32, width: 0.05, batch: 16, pixel_std: 64, flip: false, epochs: {epochs},
   init: {{random: kaiming}}, plateau: {{patience: 1000}}}}
stages: {{a: {{}}}}
"""


def manifest(name: str, kind: str) -> dict[str, Any]:
    documents = [each for each in yaml.safe_load_all((MANIFESTS / name).read_text()) if each["kind"] == kind]
    assert len(documents) == 1
    return dict(documents[0]["spec"])


@dataclass(frozen=True)
class Cluster:
    home: Path
    head: Pod
    worker: Pod
    url: str

    def ask(self, path: str, token: str | None = TOKEN, body: object | None = None) -> Any:
        return answer(self.url + path, token, body, None if body is None else "POST")

    def post(self, name: str, entrypoint: str) -> None:
        """As the operator does in HTTPMode, again when it is refused: the agent may not be there yet."""
        resources = json.loads(manifest("jobs/demo.yaml", "RayJob")["entrypointResources"])
        body = {"entrypoint": entrypoint, "submission_id": name, "entrypoint_resources": resources}
        deadline = time.monotonic() + PATIENCE_SECONDS
        while (said := self.ask("/api/jobs/", body=body)).status != 200:
            assert time.monotonic() < deadline, said
            time.sleep(1)

    def info(self, name: str) -> dict[str, Any]:
        said = self.ask(f"/api/jobs/{name}")
        assert said.status == 200, said
        return dict(json.loads(said.body))

    def log(self, name: str) -> str:
        return str(json.loads(self.ask(f"/api/jobs/{name}/logs").body)["logs"])

    def ended(self, name: str, patience_seconds: float = PATIENCE_SECONDS) -> dict[str, Any]:
        deadline = time.monotonic() + patience_seconds
        while (info := self.info(name))["status"] in ("PENDING", "RUNNING"):
            assert time.monotonic() < deadline, self.log(name)
            time.sleep(0.5)
        return info


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """k8s/jobs/demo.yaml's, but for MLflow's server and the head's Redis."""
    if (reason := hindrance()) is not None:
        pytest.skip(reason)
    head, (worker,) = groups(manifest("jobs/demo.yaml", "RayJob")["rayClusterSpec"], SECRETS)
    home, port, dashboard = Path(tempfile.mkdtemp(prefix="verydeep-")), free_port(), free_port()
    address = f"127.0.0.1:{port}"
    pods = [
        Pod(without_mlflow(head), home / "h", address, {"port": str(port), "dashboard-port": str(dashboard)}),
        Pod(without_mlflow(worker), home / "w", address, {}),
    ]
    try:
        for pod in pods:
            pod.start()
            pod.wait_healthy()
        yield Cluster(home, *pods, f"http://127.0.0.1:{dashboard}")
    finally:
        for pod in reversed(pods):
            pod.kill()
        shutil.rmtree(home, ignore_errors=True)


def without_mlflow(group: Group) -> Group:
    """Which has tests of its own: here runs are tracked in files."""
    kept = {name: value for name, value in group.environment.items() if not name.startswith("MLFLOW_")}
    assert len(kept) == len(group.environment) - 3
    return replace(group, environment=kept)


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("storage")


@pytest.fixture(scope="module")
def job(storage: Path, digits: tuple[str, str]) -> str:
    """A chain of one stage, as a file that can be executed."""
    file = storage / "tiny.yaml"
    file.write_text(JOB.format(storage=storage, train=digits[0], val=digits[1], epochs=EPOCHS))
    file.chmod(0o755)
    return str(file)


def test_the_command_lines_are_those_that_the_operator_makes() -> None:
    """Written down from KubeRay's own unit tests and sources."""
    head = Group(True, {"num-cpus": "0", "object-store-memory": "1"}, {"cpu": "1500m", "memory": "1Gi"})
    assert start_command(head, "head:6379") == (
        "ulimit -n ${RAY_START_ULIMIT_OPEN_FILES:-65536}; ray start --head --block "
        "--dashboard-agent-listen-port=52365 --dashboard-host=0.0.0.0 --memory=1073741824 --metrics-export-port=8080 "
        "--num-cpus=0 --object-store-memory=1"
    )
    worker = Group(False, {"resources": "'{\"driver\": 1}'"}, {"cpu": "1500m", "memory": "1G", "nvidia.com/gpu": "8"})
    assert start_command(worker, "head:6379") == (
        "ulimit -n ${RAY_START_ULIMIT_OPEN_FILES:-65536}; ray start --address=head:6379 --block "
        "--dashboard-agent-listen-port=52365 --memory=1000000000 --metrics-export-port=8080 --num-cpus=2 --num-gpus=8 "
        "--resources='{\"driver\": 1}'"
    )


@pytest.mark.parametrize("path", ["/api/jobs/", "/api/version", "/nodes?view=summary"])
def test_without_the_token_the_dashboard_refuses(path: str, cluster: Cluster) -> None:
    statuses = [cluster.ask(path, token).status for token in (None, "another", TOKEN)]
    assert statuses == [401, 403, 200]


def test_the_path_of_the_probes_needs_no_token(cluster: Cluster) -> None:
    for kind, pod in (("headGroupSpec", cluster.head), ("workerGroupSpecs", cluster.worker)):
        spec = manifest("jobs/demo.yaml", "RayJob")["rayClusterSpec"][kind]
        container = (spec[0] if isinstance(spec, list) else spec)["template"]["spec"]["containers"][0]
        for probe in ("livenessProbe", "readinessProbe"):
            asked = container[probe]["httpGet"]
            assert asked["port"] == 52365
            assert answer(f"http://127.0.0.1:{pod.port}{asked['path']}").status == 200


def test_a_job_runs_on_the_worker_stops_with_its_pod_and_goes_on_in_a_retry(cluster: Cluster, job: str) -> None:
    cluster.post("first", job)
    deadline = time.monotonic() + PATIENCE_SECONDS
    while "epoch 2/" not in (said := cluster.log("first")):
        assert cluster.info("first")["status"] in ("PENDING", "RUNNING"), said
        assert time.monotonic() < deadline, said
        time.sleep(0.5)
    assert cluster.info("first")["driver_agent_http_address"].endswith(f":{cluster.worker.port}")

    hook(cluster.worker)
    first = cluster.ended("first")
    assert (first["status"], first["driver_exit_code"]) == ("FAILED", 130)
    assert "its node is being taken away" in cluster.log("first")

    cluster.post("second", job)
    assert cluster.ended("second")["status"] == "SUCCEEDED", cluster.log("second")
    epochs = [re.findall(r"epoch (\d+)/\d+  loss", cluster.log(name)) for name in ("first", "second")]
    assert [int(number) for log in epochs for number in log] == list(range(1, EPOCHS + 1)), "each once"


def test_a_client_with_the_token_submits_and_one_without_is_refused(cluster: Cluster, job: str, tmp_path: Path) -> None:
    """The chain of the test before, which finds that all is done."""
    client = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    client |= {"RAY_API_SERVER_ADDRESS": cluster.url, "PATH": f"{BIN}:{os.environ['PATH']}", "HOME": str(tmp_path)}
    command = ["ray", "job", "submit", "--entrypoint-resources", '{"driver": 1}', "--", "exec", job]
    before = cluster.ask("/api/jobs/").body
    refused = subprocess.run(command, env=client, capture_output=True, text=True, check=False)
    assert refused.returncode != 0
    assert "token authentication is enabled" in refused.stderr
    assert cluster.ask("/api/jobs/").body == before
    told = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}
    done = subprocess.run(command, env={**client, **told}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Checkpoints and results:" in done.stdout


def test_secrets_are_in_no_log_and_on_no_command_line(cluster: Cluster) -> None:
    """After the tests before: jobs have run."""
    logs = [path for path in cluster.home.rglob("*") if path.is_file() and path.suffix in (".log", ".out", ".err")]
    assert any(path.name.startswith("job-driver") for path in logs)
    assert [path for path in logs if TOKEN in path.read_text(errors="replace")] == []
    lines = [line for pod in (cluster.head, cluster.worker) for line in command_lines(pod)]
    assert any("gcs_server" in line for line in lines)
    assert [line for line in lines if TOKEN in line or PASSWORD in line] == []


def test_the_hook_of_an_idle_pod_does_nothing(cluster: Cluster) -> None:
    before = {process.pid for process in cluster.worker.processes()}
    hook(cluster.worker)
    assert before == {process.pid for process in cluster.worker.processes()}


def command_lines(pod: Pod) -> Iterator[str]:
    for process in pod.processes():
        try:
            yield " ".join(process.cmdline())
        except psutil.Error:
            continue


def hook(pod: Pod) -> None:
    """What Kubernetes runs in the container before it ends it; of the manifest."""
    spec = manifest("jobs/demo.yaml", "RayJob")["rayClusterSpec"]["workerGroupSpecs"][0]["template"]["spec"]
    done = pod.execute(*spec["containers"][0]["lifecycle"]["preStop"]["exec"]["command"])
    assert done.returncode == 0, done.stderr
