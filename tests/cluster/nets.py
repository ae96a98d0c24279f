"""Nets that were never trained, whose scores nevertheless spread."""

import torch

from cluster import init
from cluster.checkpoint import Card
from cluster.nets import Trained


def random_net(
    net: str,
    *,
    classes: tuple[str, ...] = ("ant", "bee", "cat"),
    flip: bool = True,
    batch_norm: bool = False,
    seed: int = 0,
) -> Trained:
    """Of input size 64, S from 64 to 96, and an assumed mean and deviation of 110, 120, 100 and 50."""
    card = Card(net, classes, 64, 0.1, (110.0, 120.0, 100.0), 50.0, (64, 96), flip, batch_norm)
    built = card.build()
    init.randomise(built, "kaiming", 0.01, seed)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        built.fc3.weight.mul_(5)
        for name, values in built.state_dict().items():
            if name.endswith(("bias", "running_mean")):
                values.uniform_(-0.1, 0.1, generator=draw)
            elif name.endswith("running_var"):
                values.uniform_(0.5, 2.0, generator=draw)
    return Trained(card, built.state_dict(), f"{seed:032x}")
