"""Random weights have the deviations that torch's own initialisers give; others are copied where they fit."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cluster import init
from cluster.vgg import VGG
from pipelines.errors import CheckpointError


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


def test_layers_that_are_left_out_stay_random_and_may_be_of_another_size() -> None:
    a, e = VGG("A", 7, 64, 0.1), VGG("E", 5, 32, 0.1)
    before = {key: value.clone() for key, value in e.state_dict().items()}
    names = init.copy_from(e, "A", a.state_dict(), {"fc1", "fc3", "conv3_1"})
    assert names == ["conv1_1", "conv2_1", "conv3_2", "fc2"]
    for key, value in e.state_dict().items():
        assert torch.equal(value, (a.state_dict() if key.split(".")[0] in names else before)[key])


def test_with_the_classifier_alone_batch_norm_may_differ() -> None:
    a, b = VGG("A", 5, 32, 0.1, batch_norm=True), VGG("B", 5, 32, 0.1)
    convs = {name for name in a.state_dict() if name.startswith("conv")}
    assert init.copy_from(b, "A", a.state_dict(), {key.split(".")[0] for key in convs}) == ["fc1", "fc2", "fc3"]


LEFT_OUT = st.sets(st.sampled_from(["conv1_1", "conv2_1", "conv3_1", "conv3_2", "fc1", "fc2", "fc3"]))
SHAPES = st.fixed_dictionaries(
    {
        "classes": st.sampled_from([4, 5]),
        "input_size": st.sampled_from([32, 64]),
        "width": st.sampled_from([0.05, 0.1]),
        "batch_norm": st.booleans(),
    }
)


@given(LEFT_OUT, SHAPES, SHAPES)
@settings(max_examples=60, deadline=None)
def test_layers_can_be_copied_if_and_only_if_what_they_depend_on_is_equal(
    left_out: set[str], source: dict[str, Any], target: dict[str, Any]
) -> None:
    needed = [key for key, _ in init.to_be_equal(init.copied("A", "B", left_out))]
    theirs, ours = VGG("A", **source), VGG("B", **target)
    if all(source[key] == target[key] for key in needed):
        init.copy_from(ours, "A", theirs.state_dict(), left_out)
    else:
        with pytest.raises(CheckpointError):
            init.copy_from(ours, "A", theirs.state_dict(), left_out)


@pytest.mark.parametrize("batch_norm", [False, True])
def test_for_pixels_of_another_deviation_the_same_function_is_copied(batch_norm: bool) -> None:
    source, target = (VGG("A", 5, 32, 0.1, batch_norm=batch_norm) for _ in range(2))
    init.randomise(source, "kaiming", 0.01, seed=1)
    init.copy_from(target, "A", source.state_dict(), gain=58.0 / 2.0)
    pixels = torch.randint(256, (3, 3, 32, 32)) - 120.0
    torch.testing.assert_close(target.eval()(pixels / 58.0), source.eval()(pixels / 2.0), rtol=1e-4, atol=1e-4)
