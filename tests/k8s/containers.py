"""Containers of the image as the manifests' pods describe them: user, root, capabilities, volumes, names, environment.

Each pod has an address of its own on a network without a way out, and reaches the others by the names of their
Services. Volumes of a pod are the engine's; those of claims belong to the pod's group, as the cluster would see to.
"""

import json
import os
import shlex
import shutil
import subprocess
import time
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.k8s.pods import ROOT, Answer, quantity

Secrets = Mapping[str, Mapping[str, str]]
SUBNET = "10.213.77"
_ASK = """
import sys, json, urllib.request, urllib.error
url, headers, body = json.loads(sys.stdin.read())
request = urllib.request.Request(url, None if body is None else json.dumps(body).encode(), headers)
try:
    with urllib.request.urlopen(request, timeout=20) as answer:
        print(json.dumps([answer.status, answer.read().decode()]))
except urllib.error.HTTPError as error:
    print(json.dumps([error.code, error.read().decode(errors="replace")]))
except OSError:
    print(json.dumps([0, ""]))
"""


def image() -> str:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    return os.environ.get("IMAGE") or f"verydeep:{version}"


def engine() -> list[str]:
    """docker or podman, with global flags. Raises LookupError if there is none: buildah runs no pods."""
    given = shlex.split(os.environ.get("BUILDER", ""))
    if given and Path(given[0]).name != "buildah":
        return given
    if shutil.which("docker") and subprocess.run(["docker", "info"], capture_output=True, check=False).returncode == 0:
        return ["docker"]
    if shutil.which("podman"):
        return ["podman"]
    raise LookupError("neither docker nor podman is here to run the image with (Debian, Ubuntu: apt install podman)")


def call(*command: str, given: str | None = None) -> str:
    """Of the engine. Raises RuntimeError with what it said."""
    done = subprocess.run([*engine(), *command], input=given, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{shlex.join(command)[:300]} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout


def confined(context: Mapping[str, Any]) -> list[str]:
    """Flags for a container's securityContext; the pod's, laid under it, has the user."""
    assert context["capabilities"] == {"drop": ["ALL"]}
    assert context["readOnlyRootFilesystem"]
    assert not context["allowPrivilegeEscalation"]
    user = f"{context['runAsUser']}:{context['runAsGroup']}"
    flags = ["--user", user, "--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"]
    if Path(engine()[0]).name == "podman":
        flags.append("--read-only-tmpfs=false")  # /tmp, /run and /var/tmp would be writable without a volume
    return [*flags, *shlex.split(os.environ.get("RUN_FLAGS", ""))]


def environment(container: Mapping[str, Any], secrets: Secrets) -> dict[str, str]:
    found = {}
    for entry in container.get("env", []):
        reference = entry.get("valueFrom", {}).get("secretKeyRef")
        found[entry["name"]] = secrets[reference["name"]][reference["key"]] if reference else entry["value"]
    return found


@dataclass
class Namespace:
    """`names`: of Services, each for the pod that is told to be it. All is gone after `remove`."""

    secrets: Secrets
    configs: Mapping[str, Path]  # folders with the files of ConfigMaps
    names: tuple[str, ...]
    prefix: str = field(default_factory=lambda: f"verydeep-check-{os.getpid()}")
    _containers: list[str] = field(default_factory=list)
    _volumes: list[str] = field(default_factory=list)

    def create(self) -> None:
        call("network", "create", "--internal", "--subnet", f"{SUBNET}.0/24", self.prefix)

    def remove(self) -> None:
        for kind, names in (("rm --force", self._containers), ("volume rm", self._volumes)):
            if names:
                call(*kind.split(), *names)
        call("network", "rm", self.prefix)

    def address(self, name: str) -> str:
        return f"{SUBNET}.{10 + self.names.index(name)}"

    def start(
        self, pod: Mapping[str, Any], container: Mapping[str, Any], service: str, image: str, command: list[str],
        more: Mapping[str, str] | None = None,
    ) -> "Container":  # fmt: skip
        """Runs a pod's container, under the address of a service. `more`: environment that the operator adds."""
        name = self._named(f"{len(self._containers)}-{service}")
        self._containers.append(name)
        variables = {**environment(container, self.secrets), **(more or {})}
        call(
            "run", "--detach", "--name", name, *confined({**pod["securityContext"], **container["securityContext"]}),
            "--network", self.prefix, "--ip", self.address(service),
            *(flag for each in self.names for flag in ("--add-host", f"{each}:{self.address(each)}")),
            *self._mounts(pod, container, service),
            *(flag for key, value in variables.items() for flag in ("--env", f"{key}={value}")),
            image, *command,
        )  # fmt: skip
        return Container(name)

    def _named(self, what: str) -> str:
        return f"{self.prefix}-{what.partition('.')[0]}"

    def _mounts(self, pod: Mapping[str, Any], container: Mapping[str, Any], service: str) -> list[str]:
        volumes, flags, new = {each["name"]: each for each in pod.get("volumes", [])}, [], []
        for mount in container.get("volumeMounts", []):
            volume, path = volumes.get(mount["name"], {}), mount["mountPath"]
            if path == "/dev/shm":
                flags += ["--shm-size", str(quantity(volume["emptyDir"]["sizeLimit"]))]
            elif "configMap" in volume:
                flags += ["--volume", f"{self.configs[volume['configMap']['name']]}:{path}:ro"]
            else:  # a claim; else the pod's own, as a StatefulSet's are
                claim = volume.get("persistentVolumeClaim", {}).get("claimName")
                name = self._named(claim or f"{mount['name']}-of-{service}")
                if name not in self._volumes:
                    new.append(name)
                flags += ["--volume", f"{name}:{path}{':ro' if mount.get('readOnly') else ''}"]
        self._create(new, pod["securityContext"]["fsGroup"])
        return flags

    def _create(self, volumes: list[str], group: int) -> None:
        """Their roots belong to the group, which may write, as kubelet sees to."""
        if not volumes:
            return
        for name in volumes:
            self._volumes.append(name)
            call("volume", "create", name)
        mounts = [flag for name in volumes for flag in ("--volume", f"{name}:/volumes/{name}")]
        flags = shlex.split(os.environ.get("RUN_FLAGS", ""))
        prepare = f"chgrp {group} /volumes/* && chmod 2777 /volumes/*"
        call("run", "--rm", "--user", "0", "--network", "none", *flags, *mounts, image(), "bash", "-c", prepare)


@dataclass(frozen=True)
class Container:
    name: str

    def execute(self, *command: str, given: str | None = None) -> str:
        return call("exec", "--interactive", self.name, *command, given=given)

    def ask(self, url: str, headers: Mapping[str, str] | None = None, body: object | None = None) -> Answer:
        """From inside of it, since the host is not always on the network. Status 0: no answer."""
        said = self.execute("python", "-c", _ASK, given=json.dumps([url, dict(headers or {}), body]))
        return Answer(*json.loads(said))

    def state(self) -> tuple[bool, int]:
        """Whether it runs, and with what it ended if not."""
        running, code = call("inspect", "--format", "{{.State.Running}} {{.State.ExitCode}}", self.name).split()
        return running == "true", int(code)

    def log(self) -> str:
        done = subprocess.run([*engine(), "logs", self.name], capture_output=True, text=True, check=False)
        return (done.stdout + done.stderr)[-4000:]

    def wait_ended(self, seconds: float) -> None:
        """With success."""
        until(lambda: not self.state()[0], seconds, self.log)
        assert self.state()[1] == 0, self.log()

    def wait_for(self, condition: Callable[[], bool], seconds: float) -> None:
        """While it runs."""

        def reached() -> bool:
            assert self.state()[0], self.log()
            return condition()

        until(reached, seconds, self.log)

    def succeeds(self, *command: str) -> bool:
        try:
            self.execute(*command)
        except RuntimeError:
            return False
        return True


def until(condition: Callable[[], bool], seconds: float, log: Callable[[], str]) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, log()
        time.sleep(1)
