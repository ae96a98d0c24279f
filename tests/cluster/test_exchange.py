"""Gradients over real process groups (gloo), shares uneven and empty."""

import pytest
import torch
import torch.nn.functional as F

from cluster import exchange, init
from cluster.vgg import VGG
from cluster.world import World
from tests.cluster.groups import together


def net() -> VGG:
    model = VGG("A", 4, 32, 0.05, dropout=0.0)
    init.randomise(model, "kaiming", 0.01, seed=2)
    return model


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(5, 3, 32, 32, generator=generator), torch.arange(5) % 4


def gradients(world: World, shares: list[list[int]]) -> dict[str, torch.Tensor | None]:
    model = net()
    images, labels = batch()
    mine = shares[world.rank]
    parallel = exchange.parallel(model, world)  # kept: without it the gradients are not exchanged
    losses = F.cross_entropy(parallel(images[mine]), labels[mine], reduction="none")
    exchange.mean_loss(losses, len(images), world).backward()
    return {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize("shares", [[[0, 1, 2], [3, 4]], [[0], [1, 2, 3, 4], []]])
def test_gradients_are_those_of_one_worker(shares: list[list[int]]) -> None:
    model = net()
    images, labels = batch()
    F.cross_entropy(model(images), labels).backward()
    for found in together(len(shares), gradients, shares):
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(found[name], parameter.grad, rtol=1e-4, atol=1e-6)
