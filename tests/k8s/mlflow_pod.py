"""MLflow's server and the backup of its database as processes of this machine, by what the manifests say."""

import base64
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.cluster.mlflow_server import Postgres, binary, free_port, wait_for

K8S = Path(__file__).parent.parent.parent / "k8s"
BIN = Path(sys.executable).parent
# $1 and $2 alone can be written, and what has a mount of its own, such as /dev/shm. The rest is the command.
_READ_ONLY = (
    'mount --bind "$1" "$1" && mount --bind "$2" "$2" && mount -o remount,bind,ro / && shift 2 && exec "$@"',
    "sh",
)
SECRETS = {
    "postgresql": {"password": "Zq3-of-PostgreSQL"},
    "mlflow": {"username": "admin", "password": "Zq3-of-the-admin", "secret-key": "Zq3-of-the-cookies"},
}


def documents(file: str) -> dict[str, dict[str, Any]]:
    """Of a manifest, by kind."""
    return {document["kind"]: document for document in yaml.safe_load_all((K8S / file).read_text(encoding="utf-8"))}


@dataclass(frozen=True)
class Here:
    """What is elsewhere here than in the cluster. `places`: texts of the manifests with what stands for them."""

    places: Mapping[str, str]

    def __call__(self, text: str) -> str:
        """Only whole paths are meant: /tmp, and /tmp/x, but not /home/tmp."""
        names = "|".join(re.escape(name) for name in sorted(self.places, key=len, reverse=True))
        return re.sub(rf"(?<![\w/])(?:{names})(?!\w)", lambda found: self.places[found[0]], text)

    def command(self, container: Mapping[str, Any]) -> list[str]:
        return [self(word) for word in container["command"]]

    def environment(self, container: Mapping[str, Any]) -> dict[str, str]:
        """All that the process gets, but for where programs are."""
        found = {"PATH": f"{BIN}:{Path(binary('pg_dump')).parent}:/usr/bin:/bin"}
        for variable in container["env"]:
            if "value" in variable:
                found[variable["name"]] = self(variable["value"])
            else:
                reference = variable["valueFrom"]["secretKeyRef"]
                found[variable["name"]] = SECRETS[reference["name"]][reference["key"]]
        return found


@dataclass(frozen=True)
class Answer:
    status: int
    body: str


class MlflowPod:
    """The Deployment's one pod: its init container, then its server. `volumes`: the folders artifacts, config and tmp
    stand for the pod's; they stay when it ends, as the cluster's do, but for tmp."""

    def __init__(self, volumes: Path, database: Postgres) -> None:
        found = documents("60-mlflow.yaml")
        spec = found["Deployment"]["spec"]["template"]["spec"]
        (self.upgrade,), (self.server,) = spec["initContainers"], spec["containers"]
        self.grace_seconds: int = spec.get("terminationGracePeriodSeconds", 30)
        self.service = found["Service"]
        self.port, self.volumes, self.database = free_port(), volumes, database
        for name in ("artifacts", "config", "tmp", "work"):
            (volumes / name).mkdir()
        self.here = self._mapping()
        for name, text in found["ConfigMap"]["data"].items():
            (volumes / "config" / name).write_text(self.here(text))
        self.log = volumes.parent / "pod.log"
        self._process: subprocess.Popen[bytes] | None = None
        kept = [str(volumes / "artifacts"), str(volumes / "tmp")]
        private = ["unshare", "--mount", "--", "sh", "-c", *_READ_ONLY, *kept]
        tried = subprocess.run([*private, "true"], capture_output=True, check=False)
        self.read_only = tried.returncode == 0  # else: in a container without privileges, or not root
        self._private = private if self.read_only else []

    def _mapping(self) -> Here:
        mounts = {mount["name"]: mount["mountPath"] for mount in self.server["volumeMounts"]}
        folders = {path: str(self.volumes / name) for name, path in mounts.items()}
        at = {"postgresql:5432": f"127.0.0.1:{self.database.port}", "port=5000": f"port={self.port}"}
        return Here({**folders, **at})

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Through to where Kubernetes would call it ready."""
        with self.log.open("ab") as log:
            upgrade = self._run(self.upgrade, log)
            assert upgrade.wait() == 0, self.log.read_text()[-2000:]
            self._process = self._run(self.server, log)
        wait_for(self._healthy)

    def _run(self, container: Mapping[str, Any], log: Any) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [*self._private, *self.here.command(container)],
            env={**self.here.environment(container), "TMPDIR": self.here("/tmp")},  # Python's is /tmp unless told so
            cwd=self.volumes / "work",
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )

    def _healthy(self) -> bool:
        """As kubelet asks: by the pod's address, without a password."""
        assert self._process is not None
        assert self._process.poll() is None, self.log.read_text()[-2000:]
        path = self.server["readinessProbe"]["httpGet"]["path"]
        return self.ask(path, host="10.244.1.7:5000").status == 200

    def mounts(self) -> str:
        assert self._process is not None
        return Path(f"/proc/{self._process.pid}/mountinfo").read_text()

    def ask(self, path: str, host: str, user: tuple[str, str] | None = None) -> Answer:
        """Status 0: no answer."""
        headers = {"Host": host}
        if user is not None:
            headers["Authorization"] = "Basic " + base64.b64encode(":".join(user).encode()).decode()
        try:
            with urllib.request.urlopen(urllib.request.Request(self.uri + path, headers=headers), timeout=20) as answer:
                return Answer(answer.status, answer.read().decode())
        except urllib.error.HTTPError as error:
            return Answer(error.code, error.read().decode())
        except OSError as error:
            return Answer(0, str(error))

    def end(self) -> float:
        """By SIGTERM, as a pod is ended, with what is in its emptyDir; how many seconds it took."""
        assert self._process is not None
        began = time.monotonic()
        self._process.terminate()
        self._process.wait(self.grace_seconds)
        self._process = None
        took = time.monotonic() - began
        shutil.rmtree(self.volumes / "tmp")
        (self.volumes / "tmp").mkdir()
        return took

    def kill(self) -> None:
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None
