"""Programs of several workers on this machine, started by torchrun: `python -m PROGRAM TASK ANSWER`, a file each."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from pydantic import BaseModel

from cluster.world import World
from pipelines.errors import BenchError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


A = TypeVar("A", bound="Task")


class Task(BaseModel):
    """What every worker is told: whether it has a GPU, and how many threads."""

    cuda: bool
    threads: int


def run(program: str, task: Task, workers: int, folder: Path) -> dict[str, Any]:
    """What worker 0 answers. `folder`: for the files. Raises BenchError with the reason for which a worker failed."""
    task_file, answer_file = folder / "task.json", folder / "answer.json"
    task_file.write_text(task.model_dump_json(by_alias=True))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={workers}"]
    command = [*torchrun, "-m", program, str(task_file), str(answer_file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BenchError(reason(done.stderr))
    return json.loads(answer_file.read_bytes())  # type: ignore[no-any-return]


@contextmanager
def joined(cuda: bool, threads: int) -> Iterator[World]:
    """In a worker: its place among the others, by the environment's MASTER_ADDR, RANK and so on."""
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    torch.set_num_threads(threads)
    dist.init_process_group("nccl" if cuda else "gloo")
    yield World(dist.get_rank(), dist.get_world_size(), device, threads)
    dist.destroy_process_group()


def work(kind: type[A], run: Callable[[A, World], "DataclassInstance"]) -> None:
    """A worker's main function. `run` finds the answer to a task of this kind."""
    task_file, answer_file = sys.argv[1:]
    given = kind.model_validate_json(Path(task_file).read_bytes())
    with joined(given.cuda, given.threads) as world:
        answer = run(given, world)
        if world.rank == 0:
            Path(answer_file).write_text(json.dumps(asdict(answer)))


def reason(text: str) -> str:
    """The first error that a worker's output tells of, or else its last line."""
    lines = [re.sub(r"^\[rank\d+\]:\s*", "", line.strip()) for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"[\w.]+(Error|Exception): ", line)]
    return next(iter(errors or lines[-1:]), "it failed and gave no reason")
