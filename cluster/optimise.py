"""SGD with momentum and weight decay: parameter groups, the gradient's norm, and the state that a checkpoint keeps."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn, optim

from cluster import layers
from cluster.settings import StageSettings
from cluster.vgg import VGG
from pipelines.errors import CheckpointError


def freeze(net: VGG, settings: StageSettings) -> None:
    """Before anything is wrapped around the net: its frozen layers' parameters want no gradients any more."""
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(layers.layer_of(name) not in settings.frozen)


def sgd(net: VGG, settings: StageSettings) -> optim.SGD:
    """Over all parameters that want gradients, in groups of one `factor` of the learning rate and one weight decay."""
    s = settings
    factors = layers.factors(s.net, s.learning_rates)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in net.named_parameters():
        if parameter.requires_grad:
            decays = s.decay_biases or parameter.dim() > 1  # biases and normalisations are vectors
            key = (factors[layers.layer_of(name)], s.weight_decay if decays else 0.0)
            groups.setdefault(key, []).append(parameter)
    described: list[dict[str, Any]] = [
        {"params": parameters, "factor": factor, "weight_decay": decay}
        for (factor, decay), parameters in groups.items()
    ]
    # CPU and CUDA both have the fused update. On a CPU it takes a third of the plain one's time, is equal to it but for
    # the rounding of a tensor's last few elements, and has the same bits on any number of threads.
    optimiser = optim.SGD(described, lr=s.learning_rate, momentum=s.momentum, nesterov=s.nesterov, fused=True)
    set_rate(optimiser, s.learning_rate)
    return optimiser


def set_rate(optimiser: optim.SGD, rate: float) -> None:
    for group in optimiser.param_groups:
        group["lr"] = rate * group["factor"]


def clip(parameters: Iterable[nn.Parameter], limit: float | None) -> Tensor:
    """Scales the gradients of all parameters, as one vector, down to the norm `limit`, unless that is None.

    Returns the norm before (0-dimensional, float32); nothing waits for the device. To be called before each update.
    """
    gradients = [_gradient(p, p.grad) for p in parameters if p.grad is not None]
    # By rows, since float32 sums of millions lose digits (0.1 % at FC-1's size), and so that no CPU reduction is cut
    # up by the number of threads: the bits are the same on workers with other threads.
    norms = [torch.linalg.vector_norm(g, dim=tuple(range(1, g.dim())) or None) for g in gradients]
    norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(rows) for rows in norms]))
    if limit is not None:
        torch._foreach_mul_(gradients, torch.clamp(limit / norm, max=1.0))
    return norm


def _gradient(parameter: Tensor, gradient: Tensor) -> Tensor:
    """The fused update goes through memory as it lies: of a channels-last weight and a contiguous gradient it would,
    without a word, make nonsense."""
    strides = zip(parameter.shape, parameter.stride(), gradient.stride(), strict=True)
    assert all(n == 1 or own == its for n, own, its in strides), "a gradient lies in memory unlike its parameter"
    return gradient


def momentum(optimiser: optim.SGD, net: nn.Module) -> dict[str, Tensor]:
    """The momentum's running sums by parameter name, not copied; empty before the first step, and without momentum."""
    found = {}
    for name, parameter in net.named_parameters():
        buffer = optimiser.state.get(parameter, {}).get("momentum_buffer")
        if buffer is not None:
            found[name] = buffer
    return found


def restore(optimiser: optim.SGD, net: nn.Module, momentum: Mapping[str, Tensor]) -> None:
    """Copies what `momentum` returned back. Raises CheckpointError if it is of other parameters."""
    trained = {name: parameter for name, parameter in net.named_parameters() if parameter.requires_grad}
    if momentum and (strange := trained.keys() ^ momentum.keys()):
        raise CheckpointError(
            f"the checkpoint's momentum does not fit the trained layers: {', '.join(sorted(strange))}"
        )
    for name, saved in momentum.items():
        if saved.shape != trained[name].shape:
            shapes = f"{tuple(saved.shape)} and {tuple(trained[name].shape)}"
            raise CheckpointError(f"the checkpoint's momentum does not fit {name}: {shapes}")
        buffer = torch.empty_like(trained[name])  # laid out in memory as the parameter is
        optimiser.state[trained[name]]["momentum_buffer"] = buffer.detach().copy_(saved)
