"""A host that falls silent, of two that have a network of their own: namespaces on a switch, one of which is cut off.

It takes Linux, root and iproute2. Unlike a node whose processes end, nothing tells the others: no connection is closed.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.attempt import Stage
from cluster.checkpoint import files_of
from cluster.place import Shape
from cluster.settings import CheckpointSettings, ClusterSettings
from pipelines.location import Location
from tests.cluster.chaos import send
from tests.cluster.runs import Listener, carried_out
from tests.cluster.test_train import settings
from tests.soak.soak_failures import check_ledger

ROOT = Path(__file__).parent.parent.parent
EPOCHS = 3
CHECKPOINT_SECONDS = 2
LIMIT_SECONDS = 120.0  # from the silence to the next step
PATIENCE_SECONDS = 480
PORT = 6379
LOOPBACK = "127.0.1.1"  # what a host's own name stands for on Debian

_ENTER = 'hostname "$0" && mount --bind "$1" /etc/hosts && shift && exec "$@"'


def ip(*arguments: str) -> str:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, timeout=30, check=False)
    if done.returncode:
        raise OSError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout


@contextmanager
def namespace(name: str) -> Iterator[str]:
    """A network namespace; whatever runs in it is killed at the end."""
    ip("netns", "add", name)
    try:
        ip("-n", name, "link", "set", "lo", "up")
        yield name
    finally:
        deadline = time.monotonic() + 20
        while (pids := processes(name)) and time.monotonic() < deadline:
            send(signal.SIGKILL, *pids)
            time.sleep(0.1)
        ip("netns", "del", name)


def processes(name: str) -> list[int]:
    return [int(pid) for pid in ip("netns", "pids", name).split()]


@dataclass(frozen=True)
class Host:
    """A namespace with a name and an address of its own, and a folder for its Ray."""

    namespace: str
    name: str
    address: str
    folder: Path

    def command(self, *command: str) -> list[str]:
        """Runs it there: the host's name stands for a loopback address, as on Debian."""
        inside = ["unshare", "--uts", "--mount", "sh", "-c", _ENTER, self.name, str(self.folder / "hosts"), *command]
        return ["ip", "netns", "exec", self.namespace, *inside]

    def environment(self) -> dict[str, str]:
        taken = ("RAY_ADDRESS", "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME", "MLFLOW_TRACKING_URI")
        return {
            **{name: value for name, value in os.environ.items() if name not in taken},
            "RAY_TMPDIR": str(self.folder),
            "RAY_TRAIN_METRICS_ENABLED": "0",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
        }

    def start_ray(self, *arguments: str) -> None:
        options = ["--node-ip-address", self.address, "--num-cpus", "1", "--object-store-memory", "200000000"]
        ray = [sys.executable, "-m", "ray.scripts.scripts", "start", "--temp-dir", str(self.folder / "ray")]
        with (self.folder / "start.log").open("wb") as log:  # no pipe, which its daemons would hold open
            subprocess.run(
                self.command(*ray, *options, *arguments),
                env=self.environment(),
                stdout=log,
                stderr=log,
                timeout=120,
                check=True,
            )


@dataclass(frozen=True)
class Network:
    switch: str
    hosts: tuple[Host, Host]


@contextmanager
def network() -> Iterator[Network]:
    """Two hosts on a switch, with nothing in common but the files. It leaves nothing behind."""
    with ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="vd"))  # short, since Ray's sockets lie below it
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        switch = stack.enter_context(namespace(f"vd{os.getpid()}-switch"))
        ip("-n", switch, "link", "add", "bridge", "type", "bridge")
        ip("-n", switch, "link", "set", "bridge", "up")
        hosts = []
        for number in (1, 2):
            here = stack.enter_context(namespace(f"vd{os.getpid()}-{number}"))
            host = Host(here, f"host{number}", f"10.77.0.{number}", folder / str(number))
            host.folder.mkdir()
            (host.folder / "hosts").write_text(f"127.0.0.1 localhost\n{LOOPBACK} {host.name}\n")
            ip("-n", here, "link", "add", "eth0", "type", "veth", "peer", "name", f"port{number}", "netns", switch)
            ip("-n", switch, "link", "set", f"port{number}", "master", "bridge", "up")
            ip("-n", here, "addr", "add", f"{host.address}/24", "dev", "eth0")
            ip("-n", here, "link", "set", "eth0", "up")
            ip("-n", here, "route", "add", "default", "dev", "eth0")  # without one, Ray finds no address
            hosts.append(host)
        yield Network(switch, (hosts[0], hosts[1]))


def hindrance() -> str | None:
    """Why such a network cannot be made here."""
    if os.geteuid() != 0:
        return "network namespaces take root"
    missing = [tool for tool in ("ip", "unshare", "mount", "hostname") if shutil.which(tool) is None]
    if missing:
        return f"there is no {missing[0]}: on Debian, apt install iproute2 util-linux hostname"
    try:
        with network() as made:
            for host in made.hosts:
                subprocess.run(host.command("true"), check=True, capture_output=True, text=True, timeout=30)
    except OSError as error:
        return f"network namespaces are not allowed: {error}"
    except subprocess.CalledProcessError as error:
        return f"network namespaces are not allowed: {error.stderr.strip()}"
    return None


@pytest.fixture(scope="module", autouse=True)
def allowed() -> None:
    if (reason := hindrance()) is not None:
        pytest.skip(reason)


def test_a_network_that_fails_leaves_no_process_and_no_namespace() -> None:
    before = ip("netns", "list")
    with pytest.raises(RuntimeError, match="in the middle"), network() as made:  # noqa: PT012
        folder = made.hosts[1].folder
        sleeping = subprocess.Popen(made.hosts[1].command("sleep", "1000"), start_new_session=True)
        while not processes(made.hosts[1].namespace):
            assert sleeping.poll() is None
            time.sleep(0.05)
        raise RuntimeError("in the middle")
    assert sleeping.wait(10) == -signal.SIGKILL
    assert not folder.exists()
    assert ip("netns", "list") == before


def test_training_goes_on_without_a_host_that_falls_silent(digits: tuple[str, str], tmp_path: Path) -> None:
    """With the settings as they are by default but for the number of workers.

    That the two train together at all shows that gloo takes the interface of the node's address: each host's name
    stands for a loopback address, by which it would not find the other. (`_choose_interface` between hosts.)
    """
    heard, log = tmp_path / "heard.json", tmp_path / "log"
    with network() as made:
        first, second = made.hosts
        first.start_ray("--head", "--port", str(PORT), "--include-dashboard=false")
        second.start_ray("--address", f"{first.address}:{PORT}")
        driver = [sys.executable, "-m", "tests.soak.soak_silent", first.address, made.switch, *digits, str(tmp_path)]
        try:
            with log.open("wb") as out:
                done = subprocess.run(
                    first.command(*driver),
                    cwd=ROOT,
                    env=first.environment(),
                    stdout=out,
                    stderr=out,
                    timeout=PATIENCE_SECONDS,
                    check=False,
                )
        finally:
            print(log.read_text())
    assert done.returncode == 0
    answer = json.loads(heard.read_text())
    assert answer["names"] == {first.address: LOOPBACK, second.address: LOOPBACK}
    listener = Listener()
    listener.records = answer["records"]
    (cut,) = answer["done"]
    silent = answer["silent"]
    begun = next(i for i, record in enumerate(listener.records) if i >= cut and record["kind"] == "workers")
    after = listener.records[begun:]
    step = next(record for record in after if record["kind"] in ("tick", "point"))
    seconds = [record["time"] - silent for record in (after[0], step)]
    print(f"new workers {seconds[0]:.1f} s after the silence, a step after {seconds[1]:.1f} s")
    assert listener.counts() == [2, 1]
    assert seconds[1] < LIMIT_SECONDS
    again = check_ledger(listener, digits[0], tmp_path / "stage", EPOCHS)
    print(f"from step {step['step']} of {step['steps']} of epoch {step['epoch']}; {len(again)} steps done again")
    assert {epoch for epoch, _ in again} <= {step["epoch"]}
    whole, steps = answer["checkpoint"]
    assert steps > 0, "in the middle of an epoch"
    assert step["step"] > 1
    assert (step["epoch"] - 1, step["step"] - 1) >= (whole, steps), "from that, or one that was under way"


def _drive(address: str, switch: str, training: str, validation: str, folder: Path) -> None:
    """The driver, on the first host."""
    ray.init(address=f"{address}:{PORT}", _node_ip_address=address, log_to_driver=False)
    names = {node["NodeManagerAddress"]: _own_address(node["NodeID"]) for node in _nodes(2)}
    small = settings(epochs=EPOCHS, batch=4, dropout=0.5, width=0.5, scale=[64, 80], input_size=64)
    checkpoints = CheckpointSettings(every_minutes=CHECKPOINT_SECONDS / 60)
    stage = Stage("a", small, training, validation, str(folder / "stage"), checkpoints=checkpoints, ledger=True)
    answer: dict[str, Any] = {"names": names}

    def checkpoint() -> tuple[int, int]:
        """Epochs and steps that are behind the newest one."""
        return max(files_of(Location.of(stage.folder)), default=(0, 0))

    def late(record: dict[str, Any]) -> bool:
        """In the middle of an epoch, some steps after a checkpoint in it."""
        if record["kind"] not in ("tick", "point") or record["epoch"] < 2:
            return False
        whole, steps = checkpoint()
        return whole == record["epoch"] - 1 and 0 < steps < record["step"] - 2

    def cut() -> None:
        ip("-n", switch, "link", "set", "port2", "down")
        answer.update(silent=time.time(), checkpoint=checkpoint())

    listener = Listener((late, cut))
    begun = time.time()

    def listen(record: dict[str, Any]) -> None:
        if record["kind"] not in ("tick", "rows", "parts"):
            print(f"{time.time() - begun:6.1f}", record, flush=True)
        listener(record)

    carried_out(stage, Shape(2, 1, 0, 1), ClusterSettings(workers=(1, 2)), listen)
    answer.update(done=listener.done, records=listener.records)
    (folder / "heard.json").write_text(json.dumps(answer))


def _nodes(count: int) -> list[dict[str, str]]:
    deadline = time.monotonic() + 60
    while len(nodes := [node for node in ray.nodes() if node["Alive"]]) < count:
        assert time.monotonic() < deadline, f"{len(nodes)} of {count} nodes"
        time.sleep(0.5)
    return nodes


def _own_address(node: str) -> str:
    """What the node's own name stands for there."""
    there = NodeAffinitySchedulingStrategy(node, soft=False)
    task = ray.remote(lambda: socket.gethostbyname(socket.gethostname()))
    return str(ray.get(task.options(num_cpus=0, scheduling_strategy=there).remote(), timeout=60))


if __name__ == "__main__":
    _drive(*sys.argv[1:5], Path(sys.argv[5]))
    os._exit(0)  # leaving a cluster in due form takes its nodes
