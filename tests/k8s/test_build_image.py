"""What k8s/build-image asks of which builder, with programs in their place that say what they were asked."""

import os
import subprocess
import tomllib
from pathlib import Path

import pytest

from tests.k8s.pods import ROOT

VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
NEEDED = ("bash", "basename", "dirname", "sed", "awk", "git", "tr", "numfmt", "head", "id", "mktemp")
# Two layers, of 2 and 1 GB; buildah has another way of saying so.
BUILDER = """#!/bin/bash
echo "${0##*/} $*" >>"$CALLS"
case "${0##*/} $*" in
    "docker info"*) exit "${ENGINE:-0}" ;;
    "docker history "*) printf '2000000000\\n1000000000\\n' ;;
    "podman "*"image inspect"*) echo 3000000000 ;;
    "buildah images "*) echo '3 GB' ;;
esac
"""


@pytest.fixture
def builders(tmp_path: Path) -> Path:
    """A folder that is all of PATH, without any builder."""
    for name in NEEDED:
        found = subprocess.run(["which", name], capture_output=True, text=True, check=True).stdout.strip()
        (tmp_path / name).symlink_to(found)
    return tmp_path


def build(builders: Path, *there: str, **variables: str) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """What it did and what it called, on a machine that has those builders."""
    for name in there:
        (builders / name).write_text(BUILDER)
        (builders / name).chmod(0o755)
    calls = builders / "calls"
    env = {"PATH": str(builders), "CALLS": str(calls), "HOME": os.environ["HOME"], **variables}
    done = subprocess.run([ROOT / "k8s" / "build-image"], env=env, capture_output=True, text=True, check=False)
    return done, calls.read_text().splitlines() if calls.exists() else []


@pytest.mark.parametrize("builder", ["docker", "podman", "buildah"])
def test_each_builder_builds_names_and_measures(builder: str, builders: Path) -> None:
    done, calls = build(builders, builder)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"verydeep:{VERSION}: 3000 MB of at most 8000 MB"
    (command,) = [call for call in calls if " build " in call]
    assert command.startswith(f"{builder} build --file k8s/Dockerfile")
    assert command.endswith(f"--tag verydeep:{VERSION} .")
    assert f"--build-arg VERSION={VERSION}" in command
    assert "BASE=" not in command
    assert ("--layers" in command) == (builder == "buildah")


def test_a_docker_without_an_engine_is_passed_over(builders: Path) -> None:
    done, calls = build(builders, "docker", "podman", "buildah", ENGINE="1")
    assert done.returncode == 0, done.stderr
    assert [call.split()[0] for call in calls] == ["docker", "podman", "podman"]


def test_without_a_builder_one_line_says_what_to_install(builders: Path) -> None:
    done, _ = build(builders, "docker", ENGINE="1")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "apt install podman" in line


def test_what_is_given_takes_the_place_of_what_is_found(builders: Path) -> None:
    done, calls = build(
        builders, "docker", "podman", BUILDER="podman --runtime runc", IMAGE="site/net:1", BASE="debian:12",
        BUILD_FLAGS="--network host --env A=b",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert calls[0].startswith("podman --runtime runc build --network host --env A=b --file k8s/Dockerfile")
    assert "--build-arg BASE=debian:12 " in calls[0]
    assert calls[0].endswith("--tag site/net:1 .")


def test_an_image_above_its_budget_is_a_failure(builders: Path) -> None:
    done, _ = build(builders, "podman", IMAGE_BUDGET_MB="2999")
    assert done.returncode == 1
    assert "larger than its budget, 2999 MB" in done.stderr


def test_a_builder_that_is_not_there_is_named(builders: Path) -> None:
    done, _ = build(builders, BUILDER="kaniko --fast")
    assert done.returncode == 1
    assert done.stderr == "k8s/build-image: there is no program kaniko (BUILDER)\n"
