"""Functions on several workers in a process group (gloo) of this machine, as a run's workers have one."""

from collections.abc import Callable
from multiprocessing import set_forkserver_preload
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from cluster.world import World

# Workers are copies of a process that has imported these: seconds of CPU time.
FORKS = "forkserver"
set_forkserver_preload(["cluster.train", "torch._dynamo", "pandas", "hypothesis", "pytest", "tests.cluster.groups"])


def together(size: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What `function(world, *arguments)` returns on each of `size` workers, by rank, with one thread each."""
    with TemporaryDirectory(prefix="verydeep-") as folder:
        mp.start_processes(_worker, (size, folder, function, arguments), nprocs=size, start_method=FORKS)
        return [torch.load(Path(folder) / f"{rank}.pt", weights_only=True) for rank in range(size)]


def _worker(rank: int, size: int, folder: str, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=size)
    torch.save(function(World(rank, size, torch.device("cpu"), 1), *arguments), f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()
