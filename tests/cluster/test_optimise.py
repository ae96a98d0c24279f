"""The optimiser against the update written out in NumPy, and what is frozen, clipped and kept."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from cluster import layers, optimise
from cluster.settings import StageSettings
from cluster.vgg import VGG
from pipelines.errors import CheckpointError

Arrays = dict[str, np.ndarray[Any, np.dtype[np.float64]]]


def settings(**changes: object) -> StageSettings:
    given = {"net": "A", "scale": 32, "input_size": 32, "width": 0.02, "init": {"from": "x"}}
    return StageSettings.model_validate(given | changes)


def net() -> VGG:
    torch.manual_seed(0)
    return VGG("A", 3, 32, 0.02)


def give_gradients(model: VGG, step: int) -> Arrays:
    """Random ones, to all parameters that want any."""
    torch.manual_seed(100 + step)
    gradients = {}
    for name, parameter in model.named_parameters():
        gradient = torch.randn_like(parameter)
        if parameter.requires_grad:
            parameter.grad = gradient
            gradients[name] = gradient.double().numpy()
    return gradients


def by_hand(start: Arrays, gradients: list[Arrays], s: StageSettings, rate: float) -> Arrays:
    """Sutskever et al. 2013 in torch's form: v <- m v + g + decay w;  w <- w - rate (v, or g + decay w + m v)."""
    weights, speed = dict(start), dict.fromkeys(start, 0.0)
    factors = layers.factors("A", s.learning_rates)
    for of_step in gradients:
        for name, gradient in of_step.items():
            decay = s.weight_decay if s.decay_biases or name.endswith("weight") else 0.0
            pull = gradient + decay * weights[name]
            speed[name] = s.momentum * speed[name] + pull
            move = pull + s.momentum * speed[name] if s.nesterov else speed[name]
            weights[name] = weights[name] - rate * factors[name.partition(".")[0]] * move
    return weights


def arrays(model: VGG) -> Arrays:
    return {name: parameter.detach().double().numpy() for name, parameter in model.named_parameters()}


@examples(deadline=None, max_examples=25)
@given(
    momentum=st.sampled_from([0.0, 0.5, 0.9]),
    nesterov=st.booleans(),
    decay_biases=st.booleans(),
    freeze=st.sampled_from([[], ["block1", "fc3"], ["block1", "block3", "conv4_1"]]),
    learning_rates=st.sampled_from([{}, {"fc2": 10.0}, {"classifier": 0.1, "fc1": 3.0, "block2": 2.0}]),
)
def test_updates_are_those_written_out_by_hand(nesterov: bool, **changes: Any) -> None:
    s = settings(weight_decay=0.1, nesterov=nesterov and changes["momentum"] > 0, **changes)
    model = net()
    start = arrays(net())
    optimise.freeze(model, s)
    optimiser = optimise.sgd(model, s)
    gradients = []
    for step in range(4):
        optimiser.zero_grad(set_to_none=True)
        gradients.append(give_gradients(model, step))
        optimise.set_rate(optimiser, 0.03)
        optimiser.step()
    expected = by_hand(start, gradients, s, 0.03)
    for name, weights in arrays(model).items():
        np.testing.assert_allclose(weights, expected[name], rtol=1e-4, atol=1e-5)


def updated(threads: int, fused: bool) -> list[torch.Tensor]:
    """Weights of odd sizes, so large that threads share them, after three updates."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        torch.manual_seed(0)
        parameters = [torch.nn.Parameter(torch.randn(33_000 + 37 * k)) for k in range(8)]
        optimiser = torch.optim.SGD(
            parameters, lr=0.01, momentum=0.9, weight_decay=5e-4, nesterov=True, fused=fused, foreach=False
        )
        for _ in range(3):
            for parameter in parameters:
                parameter.grad = torch.randn_like(parameter)
            optimiser.step()
    finally:
        torch.set_num_threads(before)
    return [parameter.detach() for parameter in parameters]


def test_the_fused_update_is_torchs_plain_one_to_rounding_and_the_same_on_any_number_of_threads() -> None:
    assert all(group["fused"] for group in optimise.sgd(net(), settings()).param_groups)
    one, plain = updated(1, fused=True), updated(1, fused=False)
    for threads in (2, 3):
        assert all(torch.equal(a, b) for a, b in zip(one, updated(threads, fused=True), strict=True))
    for a, b in zip(one, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


def test_frozen_layers_do_not_change_and_take_part_in_nothing() -> None:
    s = settings(freeze=["features"], weight_decay=0.5)
    model, before = net(), net().state_dict()
    optimise.freeze(model, s)
    optimiser = optimise.sgd(model, s)
    images = torch.randn(4, 3, 32, 32)
    for _ in range(3):
        optimiser.zero_grad(set_to_none=True)
        model(images).square().sum().backward()
        optimise.clip(model.parameters(), 1.0)
        optimiser.step()
    for name, weights in model.state_dict().items():
        assert torch.equal(weights, before[name]) == name.startswith("conv"), name
    assert all((p.grad is None) == name.startswith("conv") for name, p in model.named_parameters())
    assert optimise.momentum(optimiser, model).keys() == {
        f"fc{n}.{kind}" for n in (1, 2, 3) for kind in ("weight", "bias")
    }


@pytest.mark.parametrize("limit", [None, 0.5, 1e6])
def test_clipping_scales_the_whole_gradient_and_tells_its_norm_before(limit: float | None) -> None:
    model = net()
    before = np.concatenate([g.ravel() for g in give_gradients(model, 0).values()])
    norm = optimise.clip(model.parameters(), limit)
    after = np.concatenate([p.grad.double().numpy().ravel() for p in model.parameters() if p.grad is not None])
    size = np.linalg.norm(before)
    assert float(norm) == pytest.approx(size, rel=1e-6)
    np.testing.assert_allclose(after, before * min(1.0, (limit or np.inf) / size), rtol=1e-6)
    if limit != 0.5:
        assert np.array_equal(after, before)


def test_a_gradient_of_zeros_is_left_and_one_that_is_not_finite_is_told() -> None:
    model = net()
    for value, told in ((0.0, 0.0), (float("nan"), float("nan")), (float("inf"), float("inf"))):
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        assert model.fc1.bias.grad is not None
        model.fc1.bias.grad += value
        assert float(optimise.clip(model.parameters(), 1.0)) == pytest.approx(told, nan_ok=True)
        if value == 0:
            assert all(bool((p.grad == 0).all()) for p in model.parameters() if p.grad is not None)


def test_the_norm_has_the_same_bits_on_any_number_of_threads_and_float32_does_not_spoil_it() -> None:
    torch.manual_seed(0)
    big = torch.nn.Parameter(torch.empty(1500, 2000))
    conv = torch.nn.Parameter(torch.empty(128, 64, 3, 3).contiguous(memory_format=torch.channels_last))
    for parameter in (big, conv):
        parameter.grad = torch.randn_like(parameter)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(float(optimise.clip([big, conv], None)))
    finally:
        torch.set_num_threads(before)
    assert len(set(found)) == 1
    exact = sum(float(p.grad.double().square().sum()) for p in (big, conv) if p.grad is not None) ** 0.5
    assert found[0] == pytest.approx(exact, rel=1e-6)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_an_optimiser_that_gets_its_momentum_back_goes_on_to_the_same_bits(layout: torch.memory_format) -> None:
    """The momentum comes back as a file gives it, contiguous."""
    s = settings(freeze=["block1"], learning_rates={"fc3": 2.0})
    alone, resumed = (net().to(memory_format=layout) for _ in range(2))
    optimise.freeze(alone, s)
    optimiser = optimise.sgd(alone, s)
    assert optimise.momentum(optimiser, alone) == {}
    for step in range(4):
        if step == 2:
            resumed.load_state_dict(alone.state_dict())
            kept = {k: v.clone().contiguous() for k, v in optimise.momentum(optimiser, alone).items()}
        give_gradients(alone, step)
        optimiser.step()
    optimise.freeze(resumed, s)
    second = optimise.sgd(resumed, s)
    optimise.restore(second, resumed, kept)
    for step in (2, 3):
        give_gradients(resumed, step)
        second.step()
    assert all(torch.equal(a, b) for a, b in zip(alone.parameters(), resumed.parameters(), strict=True))


def test_momentum_of_other_layers_is_refused_and_none_at_all_is_a_beginning() -> None:
    s, model = settings(), net()
    optimiser = optimise.sgd(model, s)
    optimise.restore(optimiser, model, {})
    with pytest.raises(CheckpointError, match=r"does not fit the trained layers: .*fc9"):
        optimise.restore(optimiser, model, {"fc9": torch.zeros(1)})
    wrong = {name: torch.zeros(1) for name, _ in model.named_parameters()}
    with pytest.raises(CheckpointError, match=r"does not fit conv1_1\.weight: \(1,\) and \(1, 3, 3, 3\)"):
        optimise.restore(optimiser, model, wrong)


def test_a_gradient_laid_out_in_another_way_is_found_before_it_does_harm() -> None:
    parameter = torch.nn.Parameter(torch.randn(4, 4, 3, 3).contiguous(memory_format=torch.channels_last))
    parameter.grad = torch.randn(4, 4, 3, 3)
    with pytest.raises(AssertionError, match="lies in memory unlike"):
        optimise.clip([parameter], None)
    parameter.grad = parameter.grad.contiguous(memory_format=torch.channels_last)
    assert float(optimise.clip([parameter], None)) > 0
