"""Gradients over real process groups (gloo), shares uneven and empty."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F

from cluster import exchange, init
from cluster.vgg import VGG
from cluster.world import World


def net() -> VGG:
    model = VGG("A", 4, 32, 0.05, dropout=0.0)
    init.randomise(model, "kaiming", 0.01, seed=2)
    return model


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(5, 3, 32, 32, generator=generator), torch.arange(5) % 4


def worker(rank: int, shares: list[list[int]], folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=len(shares))
    world = World(rank, len(shares), torch.device("cpu"), 1)
    model = net()
    images, labels = batch()
    mine = shares[rank]
    parallel = exchange.parallel(model, world)  # kept: without it the gradients are not exchanged
    losses = F.cross_entropy(parallel(images[mine]), labels[mine], reduction="none")
    exchange.mean_loss(losses, len(images), world).backward()
    torch.save({name: p.grad for name, p in model.named_parameters()}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("shares", [[[0, 1, 2], [3, 4]], [[0], [1, 2, 3, 4], []]])
def test_gradients_are_those_of_one_worker(shares: list[list[int]], tmp_path: Path) -> None:
    mp.spawn(worker, (shares, str(tmp_path)), nprocs=len(shares))
    model = net()
    images, labels = batch()
    F.cross_entropy(model(images), labels).backward()
    for rank in range(len(shares)):
        gradients = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-4, atol=1e-6)
