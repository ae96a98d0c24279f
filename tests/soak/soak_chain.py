"""A chain whose driver is killed again and again: side by side, and no epoch that had finished is trained twice:
`make soak`, some minutes."""

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cluster import checkpoint
from jobs.store import read_json
from pipelines.location import Location
from tests.cluster.chaos import send

ROOT = Path(__file__).parent.parent.parent
PATIENCE_SECONDS = 300
EPOCHS = 4
JOB = """
name: {name}
data: {{train: {data}/train, val: {data}/val}}
storage: {storage}
cluster: {{workers: 1, cpus_per_worker: 1, side_by_side: 2}}
checkpoints: {{every_minutes: 0.02}}
train:
  {{scale: 34, input_size: 32, width: 0.05, batch: 16, learning_rate: 0.01, dropout: 0.0, flip: false, pixel_std: 64,
   epochs: {epochs}, plateau: {{patience: 1000}}, init: {{random: kaiming}}}}
stages:
  a: {{net: A}}
  deep: {{net: [B, C, D, E], init: {{from: a}}}}
{more}
evaluations:
  table: {{models: [a, deep]}}
  fused: {{models: [deep-D, deep-E], fuse: true, scales: several}}
"""
STAGES = ("a", "deep-B", "deep-C", "deep-D", "deep-E")
EPOCH = re.compile(r"^(\S+)  epoch (\d+)/\d+  loss .* validation ", re.M)


def test_a_chain_killed_three_times_trains_no_finished_epoch_twice(digits: tuple[str, str], tmp_path: Path) -> None:
    data = Path(digits[0]).parent
    file = tmp_path / "chain.yaml"
    file.write_text(JOB.format(name="chain", data=data, storage=tmp_path, epochs=EPOCHS, more=""))
    trained: dict[str, list[int]] = defaultdict(list)
    said = []
    for _ in range(3):
        before = done(tmp_path, "chain")
        with driver(file, tmp_path) as (process, log):
            wait(process, log, lambda log=log: len(EPOCH.findall(log.read_text())) >= 3)
            time.sleep(random.uniform(0, 2))
            send(signal.SIGKILL, process.pid)
            process.wait()
        said.append(log.read_text())
        check(said[-1], before, trained)
    before = done(tmp_path, "chain")
    with driver(file, tmp_path) as (process, log):
        assert process.wait(PATIENCE_SECONDS) == 0, log.read_text()[-3000:]
    said.append(log.read_text())
    check(said[-1], before, trained)
    assert done(tmp_path, "chain") == dict.fromkeys(STAGES, EPOCHS)
    assert sum(map(len, trained.values())) >= 9, "three lines of each run that was killed"
    assert any(map(overlapping, said)), "two at a time"
    another_stage_alone_is_trained(file, data, tmp_path)


def another_stage_alone_is_trained(file: Path, data: Path, storage: Path) -> None:
    """By another job, which adds one to the stages of the first."""
    more = "  jitter: {net: E, scale: [32, 40], init: {from: deep-E}, epochs: 1}"
    other = storage / "other.yaml"
    other.write_text(JOB.format(name="other", data=data, storage=storage, epochs=EPOCHS, more=more))
    with driver(other, storage) as (process, log):
        assert process.wait(PATIENCE_SECONDS) == 0, log.read_text()[-3000:]
    said = log.read_text()
    assert EPOCH.findall(said) == [("jitter", "1")]
    assert said.count("in job chain") == len(STAGES)


def check(said: str, before: dict[str, int], trained: dict[str, list[int]]) -> None:
    """That no epoch was trained that a checkpoint held before; notes those that were."""
    for stage, epoch in EPOCH.findall(said):
        assert int(epoch) > before[stage], f"{stage} has trained epoch {epoch} again"
        trained[stage].append(int(epoch))


def done(storage: Path, job: str) -> dict[str, int]:
    """The epochs of each stage that the storage holds."""
    epochs: dict[str, int] = defaultdict(int)
    for folder in (storage / "runs" / job).glob("*-" + "[0-9a-f]" * 12):
        finished = read_json(Location.of(folder / "done.json"))
        progress = checkpoint.progress(Location.of(folder))
        epochs[folder.name[:-13]] = len(finished["epochs"]) if finished else len(progress.epochs)
    return epochs


def overlapping(said: str) -> bool:
    """Whether a stage began before another one had ended."""
    under_way: set[str] = set()
    for stage, what in re.findall(r"^(\S+): (net|done)", said, re.M):
        if what == "done":
            under_way.discard(stage)
            continue
        under_way.add(stage)
        if len(under_way) > 1:
            return True
    return False


def wait(process: "subprocess.Popen[bytes]", log: Path, until: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not until():
        assert process.poll() is None, log.read_text()[-3000:]
        assert time.monotonic() < deadline, log.read_text()[-3000:]
        time.sleep(0.05)


@contextmanager
def driver(file: Path, storage: Path) -> Iterator[tuple["subprocess.Popen[bytes]", Path]]:
    """`verydeep run` with a Ray of its own."""
    ray = tempfile.mkdtemp(prefix="vd")  # short, since Ray's sockets lie below it
    log = Path(tempfile.mkstemp(dir=storage, suffix=".log")[1])
    environment = {
        **{key: value for key, value in os.environ.items() if key not in ("MLFLOW_TRACKING_URI", "RAY_ADDRESS")},
        "RAY_TMPDIR": ray,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
    }
    with log.open("ab") as out:
        process = subprocess.Popen([sys.executable, "-m", "jobs", str(file)], env=environment, stdout=out, stderr=out)
    try:
        yield process, log
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(ray, ignore_errors=True)
