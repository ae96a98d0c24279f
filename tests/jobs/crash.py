"""A job as users run it, `verydeep run`, whose workers and driver are killed in the middle of it."""

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.distributed as dist

from cluster import checkpoint
from cluster.attempt import Stage
from cluster.train import Outcome, train
from cluster.world import World
from jobs import check, schema
from pipelines.location import Location
from tests.cluster.chaos import send, train_workers
from tests.cluster.runs import saved

ROOT = Path(__file__).parent.parent.parent
PATIENCE_SECONDS = 300

JOB = """
name: {name}
data: {data}
storage: {storage}
cluster: {{workers: 2, cpus_per_worker: 1}}
checkpoints: {{every_minutes: 0.01}}
train:
  {{net: A, scale: 34, input_size: 32, width: 0.05, batch: 16, learning_rate: 0.01, dropout: 0.5, flip: false,
   pixel_std: 64, epochs: {epochs}, plateau: {{patience: 1000}}, init: {{random: kaiming}}}}
stages:
  first: {{}}
  second: {{init: {{from: first}}}}
"""


def left_alone(world: World, job: Path, place: Path) -> dict[str, torch.Tensor]:
    """What the last stage of a job comes to on workers without Ray, to which nothing happens; its data are there."""
    checked, start, folder = check.check(schema.load(job)), None, place
    for name in checked.order:
        folder, settings = place / name, checked.job.stages[name]
        stage = Stage(name, settings, checked.data.train, checked.data.val, str(folder), start)
        assert train(stage, world, lambda record: None) is Outcome.FINISHED
        dist.barrier()  # worker 0 has written
        start = checkpoint.path_of(Location.of(folder), saved(folder).progress.best, 0).absolute
    return saved(folder).weights


@dataclass(frozen=True)
class Kill:
    """Of a worker, all workers or the driver, or a stop that it is politely asked for: `seconds` after the workers are
    there, or after an epoch's next quarter is done."""

    whom: Literal["worker", "workers", "driver", "stop"]
    late: bool
    seconds: float

    @classmethod
    def draw(cls, rng: random.Random) -> "Kill":
        return cls(rng.choice(("worker", "workers", "driver")), rng.random() < 0.8, rng.uniform(0, 4))


def job(storage: Path, name: str, epochs: int, data: str = "digits") -> str:
    """`data`: as it stands in the file."""
    return JOB.format(name=name, storage=storage, epochs=epochs, data=data)


class CrashedJob:
    def __init__(self, storage: Path, name: str, text: str) -> None:
        self.file = storage / f"{name}.yaml"
        self.file.write_text(text)
        self._log = storage / f"{name}.log"
        self._ray = tempfile.mkdtemp(prefix="vd")  # short, since Ray's sockets lie below it
        self._process = self._start()

    def run(self, kills: Iterable[Kill] = ()) -> str:
        """To its end, killed on the way. Returns what it said."""
        try:
            for kill in kills:
                self._kill(kill)
            self._process.wait(PATIENCE_SECONDS)
        finally:
            self._process.kill()
            self._process.wait()
            shutil.rmtree(self._ray, ignore_errors=True)
        text = self._log.read_text()
        assert self._process.returncode == 0, text[-3000:]
        return text

    def weights(self, storage: Path) -> dict[str, torch.Tensor]:
        """What the last stage came to."""
        (folder,) = (storage / "runs" / self.file.stem).glob("second-*")
        return saved(folder).weights

    def _start(self) -> subprocess.Popen[bytes]:
        environment = {
            **{key: value for key, value in os.environ.items() if key not in ("MLFLOW_TRACKING_URI", "RAY_ADDRESS")},
            "RAY_TMPDIR": self._ray,  # a Ray of its own, whatever else runs here
            "TMPDIR": self._ray,  # what one that is killed leaves goes with it
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
        }
        with self._log.open("ab") as log:
            command = [sys.executable, "-c", "from tests.forks import program; program()", "run", str(self.file)]
            return subprocess.Popen(command, env=environment, stdout=log, stderr=log)

    def _kill(self, kill: Kill) -> None:
        said = self._log.stat().st_size
        self._wait(lambda: len(train_workers(self._process.pid)) == 2)
        if kill.late:
            self._wait(lambda: b"images/s" in self._log.read_bytes()[said:])
        time.sleep(kill.seconds)
        self._wait(lambda: len(train_workers(self._process.pid)) > 0)  # not between two stages
        workers = train_workers(self._process.pid)
        if kill.whom == "stop":
            send(signal.SIGTERM, self._process.pid)
            assert self._process.wait(PATIENCE_SECONDS) == 130
            self._process = self._start()
        elif kill.whom == "driver":
            send(signal.SIGKILL, self._process.pid)
            self._process.wait()
            self._process = self._start()
        else:
            send(signal.SIGKILL, *(workers if kill.whom == "workers" else [random.choice(workers)]))

    def _wait(self, until: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not until():
            text = self._log.read_text()[-3000:]
            assert self._process.poll() is None, f"over before it was killed as often as it should be: {text}"
            assert time.monotonic() < deadline, text
            time.sleep(0.05)
