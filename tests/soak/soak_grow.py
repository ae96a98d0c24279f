"""A cluster that begins without a worker: Ray's autoscaler, with nodes that it starts on this machine.

It takes root, for a pod with a network of its own, since these nodes look for the head at its usual port; and iproute2.
"""

import json
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID

from tests.k8s.pods import Group, Pod, hindrance

PATIENCE_SECONDS = 300
IDLE_SECONDS = 12
TOKEN = "a-token-of-32-characters-or-more"
PROVIDER = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"
AUTOSCALER = {
    "cluster_name": "grows",
    "max_workers": 4,
    "idle_timeout_minutes": IDLE_SECONDS / 60,
    "provider": {"type": "external", "module": PROVIDER, "launch_multiple": True, "head_node_id": FAKE_HEAD_NODE_ID},
    "head_node_type": "ray.head.default",
    "available_node_types": {
        "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
        "cpu": {"resources": {"CPU": 1, "object_store_memory": 10**8}, "node_config": {}, "max_workers": 4},
    },
    **{name: {} for name in ("auth", "docker", "file_mounts")},
    **{f"{kind}_commands": [] for kind in ("initialization", "setup", "head_setup", "worker_setup")},
    **{f"{kind}_start_ray_commands": [] for kind in ("head", "worker")},
    **{name: [] for name in ("cluster_synced_files", "rsync_exclude", "rsync_filter")},
}
ENVIRONMENT = {
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": TOKEN,
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_enable_autoscaler_v2": "1",  # as the operator says it: autoscalerOptions.version v2
    "RAY_FAKE_CLUSTER": "1",
    "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
    "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
    "AUTOSCALER_UPDATE_INTERVAL_S": "1",
}
JOB = """
name: tiny
data: {{train: {train}, val: {val}}}
storage: {storage}
train: {{net: A, scale: 34, input_size: 32, width: 0.05, batch: 16, pixel_std: 64, flip: false, epochs: 2}}
stages: {{a: {{}}}}
evaluations: {{one: {{models: [a]}}}}
"""
NODES = "import ray; ray.init(logging_level='ERROR'); print('alive:', sum(node['Alive'] for node in ray.nodes()))"


@pytest.fixture
def head() -> Iterator[Pod]:
    if (reason := hindrance()) is not None:
        pytest.skip(reason)
    if shutil.which("ip") is None:
        pytest.skip("there is no ip: on Debian, apt install iproute2")
    home = Path(tempfile.mkdtemp(prefix="verydeep-"))
    (home / "autoscaler.json").write_text(json.dumps(AUTOSCALER))
    params = {"num-cpus": "0", "object-store-memory": "100000000", "autoscaling-config": str(home / "autoscaler.json")}
    group = Group(True, params, {"cpu": "2", "memory": "4Gi"}, ENVIRONMENT)
    pod = Pod(group, home / "h", "127.0.0.1:6379", {}, network=False)
    try:
        pod.start()
        deadline = time.monotonic() + PATIENCE_SECONDS
        while nodes(pod) != 1:
            assert time.monotonic() < deadline, pod.log.read_text()
        yield pod
    finally:
        pod.kill()
        shutil.rmtree(home, ignore_errors=True)


def nodes(pod: Pod) -> int:
    """How many there are; 0: Ray does not answer."""
    said = re.search(r"alive: (\d+)", pod.execute("python", "-c", NODES).stdout)  # the autoscaler has lines there, too
    return int(said[1]) if said else 0


def test_nodes_come_for_a_job_and_go_after_it(head: Pod, digits: tuple[str, str], tmp_path: Path) -> None:
    file = tmp_path / "tiny.yaml"
    file.write_text(JOB.format(storage=tmp_path, train=digits[0], val=digits[1]))
    run = ["python", "-m", "jobs", str(file), "--set", "cluster.workers=2", "--set", "cluster.gpus_per_worker=0"]
    refused = head.execute(*run)
    assert refused.returncode == 2
    assert "cluster.cpus_per_worker: auto goes by the nodes that are there" in refused.stderr
    done = head.execute(*run, "--set", "cluster.cpus_per_worker=1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 workers with 1 CPU each" in done.stdout
    deadline = time.monotonic() + PATIENCE_SECONDS
    while (left := nodes(head)) != 1:
        assert time.monotonic() < deadline, left
