"""Agreement over real process groups (gloo)."""

import random
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from cluster.agree import Agreement, Wish
from cluster.world import World

STEPS = 200


def wishes(rank: int) -> list[Wish]:
    """Mostly none, as in a run."""
    rare = random.Random(rank)
    return [Wish(rare.choice((1, 2, 3))) if rare.random() < 0.1 else Wish.NONE for _ in range(STEPS)]


def worker(rank: int, size: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=size)
    agreement = Agreement(World(rank, size, torch.device("cpu"), 1))
    gradients = torch.full((10_000,), 1.0 + rank)
    agreed = []
    for wish in wishes(rank):
        agreed.append(agreement.exchange(wish))
        total = gradients.clone()
        dist.all_reduce(total)  # what a step exchanges beside it
        assert torch.equal(total, torch.full_like(total, size * (size + 1) / 2))
    torch.save([int(wish) for wish in agreed], f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("size", [1, 3])
def test_all_workers_are_granted_the_greatest_wish_one_step_later(size: int, tmp_path: Path) -> None:
    mp.spawn(worker, (size, str(tmp_path)), nprocs=size)
    greatest = [0, *(max(all_wishes) for all_wishes in zip(*map(wishes, range(size)), strict=True))]
    assert set(greatest) == {0, 1, 2, 3}
    for rank in range(size):
        assert torch.load(tmp_path / f"{rank}.pt", weights_only=True) == greatest[:STEPS]
