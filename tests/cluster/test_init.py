"""Random weights have the deviations that torch's own initialisers give."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from cluster import init
from cluster.vgg import VGG


def kaiming_out(weight: Tensor) -> Tensor:
    return nn.init.kaiming_normal_(weight, mode="fan_out", nonlinearity="relu")


def kaiming_in(weight: Tensor) -> Tensor:
    return nn.init.kaiming_normal_(weight, mode="fan_in", nonlinearity="relu")


def normal(weight: Tensor) -> Tensor:
    return nn.init.normal_(weight, 0, 0.01)


@pytest.mark.parametrize(
    ("how", "convolutions", "linear"),
    [
        ("normal", normal, normal),
        ("glorot", nn.init.xavier_normal_, nn.init.xavier_normal_),
        ("kaiming", kaiming_in, kaiming_in),
        ("torchvision", kaiming_out, normal),
    ],
)
def test_deviations_are_torchs(
    how: str, convolutions: Callable[[Tensor], Tensor], linear: Callable[[Tensor], Tensor]
) -> None:
    net = VGG("C", 100, 64, 0.25)  # fan in and fan out differ, kernels of 1 and 3
    init.randomise(net, how, 0.01, seed=1)
    torch.manual_seed(2)
    weights = [(name, p.detach()) for name, p in net.named_parameters() if name.endswith("weight") and p.numel() > 4000]
    assert len(weights) == 14
    for name, weight in weights:
        theirs = (convolutions if name.startswith("conv") else linear)(torch.empty_like(weight))
        assert float(weight.std()) == pytest.approx(float(theirs.std()), rel=0.05), name
    assert all(bool((p == 0).all()) for name, p in net.named_parameters() if name.endswith("bias"))
