"""The running average of weights, against one in NumPy."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cluster.average import Average


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


def step(model: nn.Module, number: int) -> None:
    """Weights and buffers change as training changes them."""
    torch.manual_seed(number)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(torch.randn_like(tensor))
            else:
                tensor.add_(1)


def copies(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in weights.items()}


@pytest.mark.parametrize("decay", [0.5, 0.9, 0.9999])
def test_the_average_is_the_one_written_out(decay: float) -> None:
    model = net()
    average = Average(model, decay)
    expected: dict[str, Any] = {k: v.double().numpy().copy() for k, v in model.state_dict().items()}
    for t in range(1, 31):
        step(model, t)
        average.update(model, t)
        d = min(decay, (1 + t) / (10 + t))
        expected = {k: d * expected[k] + (1 - d) * v.double().numpy() for k, v in model.state_dict().items()}
    counter = "1.num_batches_tracked"
    assert int(average.weights[counter]) == 30
    for name, tensor in average.weights.items():
        if name != counter:
            np.testing.assert_allclose(tensor.double().numpy(), expected[name], rtol=1e-4, atol=1e-5)


def test_first_weights_are_forgotten_soon_and_weights_that_stay_are_their_average() -> None:
    model = net()
    average = Average(model, 0.9999)
    with torch.no_grad():
        model[0].weight.add_(1000.0)  # type: ignore[union-attr, operator]
    for t in range(1, 200):
        average.update(model, t)
    torch.testing.assert_close(average.weights["0.weight"], model.state_dict()["0.weight"])
    assert torch.equal(average.weights["0.bias"], model.state_dict()["0.bias"])


def test_a_restored_average_goes_on_to_the_same_bits() -> None:
    alone, resumed = net(), net()
    average = Average(alone, 0.99)
    for t in range(1, 21):
        if t == 11:
            kept = copies(average.weights)
            resumed.load_state_dict(alone.state_dict())
        step(alone, t)
        average.update(alone, t)
    second = Average(resumed, 0.99)
    second.restore(kept)
    for t in range(11, 21):
        step(resumed, t)
        second.update(resumed, t)
    assert all(torch.equal(average.weights[name], second.weights[name]) for name in average.weights)


def test_a_net_has_the_average_inside_a_block_and_its_own_weights_after_it() -> None:
    model = net()
    average = Average(model, 0.9)
    step(model, 1)
    average.update(model, 1)
    own, mean = copies(model.state_dict()), copies(average.weights)
    places = [tensor.data_ptr() for tensor in model.state_dict().values()]
    with pytest.raises(RuntimeError, match="dtype"), average.inside(model):  # noqa: PT012
        assert all(torch.equal(model.state_dict()[name], mean[name]) for name in mean)
        model(torch.zeros(2, 5, dtype=torch.int64))
    assert all(torch.equal(model.state_dict()[name], own[name]) for name in own)
    assert all(torch.equal(average.weights[name], mean[name]) for name in mean)
    assert places == [tensor.data_ptr() for tensor in model.state_dict().values()]
