"""Pods of a Ray cluster as processes of this machine, with the command lines that the operator makes of a manifest.

What KubeRay 1.7.0 does to a group's `rayStartParams`, resources and environment stands in its
ray-operator/controllers/ray/common/pod.go: `setMissingRayStartParams`, `generateRayStartCommand`, `convertParamMap`,
`configureRedisFT`, `setContainerEnvVars`.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import psutil

BIN = Path(sys.executable).parent
ROOT = Path(__file__).parent.parent.parent
START_SECONDS, END_SECONDS = 120, 30

_SUFFIXES = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_VALUED = ("log-color", "include-dashboard", "include-log-monitor")  # that take `true` and `false` as words
_MOUNT = 'mkdir -p /tmp/ray && mount --bind "$0" /tmp/ray && exec "$@"'
_OF_A_POD = ("RAY_", "REDIS_", "MLFLOW_")  # what this process's environment would tell Ray otherwise


@dataclass(frozen=True)
class Group:
    """`limits`: of the first container, by resource; `environment`: of the same, with the Secrets' values in place."""

    head: bool
    params: Mapping[str, str]
    limits: Mapping[str, str]
    environment: Mapping[str, str] = field(default_factory=dict)


def groups(cluster: Mapping[str, Any], secrets: Mapping[str, Mapping[str, str]]) -> tuple[Group, list[Group]]:
    """The head's and the workers' of a RayCluster's spec, or of a RayJob's `rayClusterSpec`, without Redis.

    `secrets`: values by name and key; that of the token is called `token` here, since the operator names it.
    """
    own = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets["token"]["auth_token"]}
    assert cluster["authOptions"] == {"mode": "token"}
    workers = [
        _group(group, secrets, {**own, "RAY_gcs_rpc_server_reconnect_timeout_s": "600"})
        for group in cluster["workerGroupSpecs"]
    ]
    return _group(cluster["headGroupSpec"], secrets, own, head=True), workers


def with_redis(head: Group, address: str, password: str) -> Group:
    """As the operator makes it of `gcsFaultToleranceOptions`."""
    tables = {"RAY_REDIS_ADDRESS": address, "REDIS_PASSWORD": password, "RAY_external_storage_namespace": "uid"}
    params = {**head.params, "redis-password": "$REDIS_PASSWORD"}
    return replace(head, params=params, environment={**head.environment, **tables})


def _group(
    spec: Mapping[str, Any], secrets: Mapping[str, Mapping[str, str]], own: Mapping[str, str], head: bool = False
) -> Group:
    container = spec["template"]["spec"]["containers"][0]
    environment = {entry["name"]: _value(entry, secrets) for entry in container["env"]}
    return Group(head, spec["rayStartParams"], container["resources"]["limits"], {**environment, **own})


def _value(entry: Mapping[str, Any], secrets: Mapping[str, Mapping[str, str]]) -> str:
    if "value" in entry:
        return str(entry["value"])
    reference = entry["valueFrom"]["secretKeyRef"]
    return secrets[reference["name"]][reference["key"]]


def quantity(text: str) -> int:
    """Of Kubernetes, rounded up as its `Value` does: 200m is 1, 2Gi is 2147483648."""
    number, suffix = re.fullmatch(r"([0-9.]+)([A-Za-z]*)", str(text)).groups()  # type: ignore[union-attr]
    exact = Decimal(number) / 1000 if suffix == "m" else Decimal(number) * (_SUFFIXES[suffix] if suffix else 1)
    return int(exact.to_integral_value(rounding="ROUND_CEILING"))


def start_command(group: Group, address: str) -> str:
    """What the operator's container runs of it with bash; `address`: of the head's service, with the port."""
    params = {**({"dashboard-host": "0.0.0.0"} if group.head else {"address": address}), **group.params}
    params = {"metrics-export-port": "8080", "dashboard-agent-listen-port": "52365", **params, "block": "true"}
    params.setdefault("num-cpus", str(quantity(group.limits["cpu"])))
    params.setdefault("memory", str(quantity(group.limits["memory"])))
    if "nvidia.com/gpu" in group.limits:
        params.setdefault("num-gpus", str(quantity(group.limits["nvidia.com/gpu"])))
    flags = [_flag(name, value) for name, value in sorted(params.items())]
    return " ".join(["ulimit -n ${RAY_START_ULIMIT_OPEN_FILES:-65536}; ray start", *["--head"][: group.head], *flags])


def _flag(name: str, value: str) -> str:
    if name in _VALUED or value.lower() not in ("true", "false"):
        return f"--{name}={value}"
    return f"--{name}" if value.lower() == "true" else ""


class Pod:
    """A group's container as processes that see no others, and have a /tmp/ray of their own: the command line is in
    bash, with the number 1. It takes root, as namespaces do.

    `home`: stands for the pod's volumes, and holds its log. Ports that two pods of one machine would both take are
    free ones instead. `network`: the machine's; without, nothing but the pod itself can be reached from it.
    """

    def __init__(self, group: Group, home: Path, address: str, ports: Mapping[str, str], network: bool = True) -> None:
        self.group, self.home, self.log = group, home, home / "pod.log"
        self._spaces = ["--pid", "--mount"] if network else ["--pid", "--mount", "--net"]
        self.session = home / "ray"
        self.session.mkdir(parents=True)
        self.port = free_port()  # of the agent, which answers the probes
        own = {"dashboard-agent-listen-port": str(self.port), "metrics-export-port": str(free_port()), **ports}
        self.command = start_command(replace(group, params={**group.params, **own}), address)
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(_OF_A_POD)},
            "RAY_ADDRESS": address,
            **group.environment,
            "HOME": str(home),
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
        }
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        apart = ["unshare", *self._spaces, "--fork", "--kill-child", "--mount-proc", "sh", "-c"]
        apart += [_MOUNT if "--net" not in self._spaces else f"ip link set lo up && {_MOUNT}", str(self.session)]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*apart, "/bin/bash", "-c", "--", self.command],  # utils.GetContainerCommand
                cwd=ROOT, env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip

    def wait_healthy(self) -> None:
        """As the readiness probe does: GET /api/healthz of the agent, without a token."""
        deadline = time.monotonic() + START_SECONDS
        while answer(f"http://127.0.0.1:{self.port}/api/healthz").status != 200:
            assert self._started.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.5)

    def execute(self, *command: str) -> subprocess.CompletedProcess[str]:
        """In the container, as a hook is run, or `kubectl exec`."""
        inside = ["nsenter", "--target", str(self._first.pid), *self._spaces]
        return subprocess.run(
            [*inside, *command], cwd=ROOT, env=self.environment, capture_output=True, text=True, check=False
        )

    def processes(self) -> list[psutil.Process]:
        try:
            return psutil.Process(self._started.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    def kill(self) -> None:
        """All at once, as when a node is lost."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(END_SECONDS)
            psutil.wait_procs(self.processes(), END_SECONDS)

    def end(self, grace_seconds: float) -> float:
        """SIGTERM, and SIGKILL after so long, as Kubernetes does. Returns how long it took."""
        began = time.monotonic()
        self._first.send_signal(signal.SIGTERM)
        try:
            self._started.wait(grace_seconds)
        except subprocess.TimeoutExpired:
            self.kill()
        return time.monotonic() - began

    @property
    def _started(self) -> "subprocess.Popen[bytes]":
        assert self._process is not None
        return self._process

    @property
    def _first(self) -> psutil.Process:
        """The container's process number 1, which comes a moment after `unshare`."""
        deadline = time.monotonic() + START_SECONDS
        while not (found := psutil.Process(self._started.pid).children()):
            assert self._started.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.05)
        return found[0]


@dataclass(frozen=True)
class Answer:
    status: int  # 0: none came
    body: str = ""


def answer(url: str, token: str | None = None, body: object | None = None, method: str | None = None) -> Answer:
    """As the operator asks: JSON, with the token in a header of Ray's own, and no patience for more than 2 s."""
    headers = {"Content-Type": "application/json", **({"x-ray-authorization": f"Bearer {token}"} if token else {})}
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            return Answer(response.status, response.read().decode())
    except urllib.error.HTTPError as error:
        return Answer(error.code, error.read().decode(errors="replace"))
    except OSError:
        return Answer(0)


def hindrance() -> str | None:
    """Why there can be no pods here."""
    try:
        subprocess.run(
            ["unshare", "--pid", "--fork", "--mount-proc", "true"], check=True, capture_output=True, text=True
        )
    except FileNotFoundError:
        return "there is no unshare: on Debian, apt install util-linux"
    except subprocess.CalledProcessError as error:
        return f"namespaces of processes are not allowed: {error.stderr.strip()}"
    return None


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])
