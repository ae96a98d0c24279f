"""`ray job stop` in the middle of a stage, with Ray's patience of 3 s and with more: what is lost. `make soak`."""

import json
import re
import subprocess
import time
from pathlib import Path

import pytest

from cluster import checkpoint
from pipelines.location import Location
from tests.jobs.test_ray_job import ROOT, home, ray_environment

JOB = """#!/usr/bin/env -S python -m jobs
name: {name}
data: {{train: {train}, val: {val}}}
cluster: {{workers: 2, cpus_per_worker: 1}}
train:
  {{net: A, scale: 34, input_size: 32, width: 0.25, batch: 16, learning_rate: 0.001, flip: false, pixel_std: 64,
   epochs: 1000, plateau: {{patience: 1000}}, init: {{random: kaiming}}}}
stages:
  a: {{}}
"""
PATIENCE_SECONDS = 400
__all__ = ["home", "ray_environment"]  # fixtures


@pytest.mark.parametrize("wait_seconds", [3, 60])
def test_a_job_that_is_stopped_loses_at_most_what_came_after_its_last_checkpoint(
    wait_seconds: int, digits: tuple[str, str], home: Path, ray_environment: dict[str, str]
) -> None:
    name = f"stopped-{wait_seconds}"
    job = home / f"{name}.yaml"
    job.write_text(JOB.format(name=name, train=digits[0], val=digits[1]))
    job.chmod(0o755)

    def ray(*arguments: str) -> str:
        command = ["ray", "job", *arguments]
        done = subprocess.run(command, cwd=ROOT, env=ray_environment, capture_output=True, text=True, check=False)
        return done.stdout + done.stderr

    patience = {"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(wait_seconds)}} if wait_seconds != 3 else {}
    wanted = ["--no-wait", "--submission-id", name, "--runtime-env-json", json.dumps(patience), "--", str(job)]
    deadline = time.monotonic() + PATIENCE_SECONDS
    while "submitted successfully" not in (said := ray("submit", *wanted)):
        assert time.monotonic() < deadline, said  # the node is there before its agent is
        time.sleep(5)
    while not re.search(r"epoch 2/1000  step", ray("logs", name)):
        assert time.monotonic() < deadline, ray("logs", name)
        time.sleep(0.5)
    asked = time.monotonic()
    ray("stop", name)  # waits for its end
    seconds = time.monotonic() - asked
    log = ray("logs", name)
    assert "STOPPED" in ray("status", name) or "was stopped" in ray("status", name)
    told = [(int(e), int(s)) for e, s in re.findall(r"a  epoch (\d+)/1000  step (\d+)/", log)][-1]
    (folder,) = (home / "verydeep/runs" / name).glob("a-*")
    kept = checkpoint.progress(Location.of(folder))
    written = "verydeep: interrupted: SIGTERM; the same command goes on where this one stopped" in log
    at = (len(kept.epochs) + 1, kept.step)
    print(f"patience {wait_seconds} s: ended {seconds:.1f} s after ray job stop, with a checkpoint: {written}; at {at}")
    assert at >= (told if written else (told[0], 0))
    assert written or wait_seconds == 3
