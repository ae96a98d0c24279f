"""SGD with momentum and weight decay, and the learning rate as a pure function of the validation accuracies so far."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn, optim

from cluster.settings import Plateau


@dataclass(frozen=True)
class Schedule:
    """Where the plateau rule stands: how often the rate was divided, and whether training is over."""

    drops: int
    finished: bool

    def rate(self, first: float, factor: float) -> float:
        return first / factor**self.drops


def schedule(accuracies: Sequence[float], rule: Plateau) -> Schedule:
    """The plateau rule (paper, section 3.1) after epochs with these validation accuracies.

    When the best accuracy has not risen by at least `min_gain` for `patience` epochs, the rate is divided; after
    `drops` divisions, the next plateau ends training.
    """
    drops, best, since = 0, float("-inf"), 0
    for accuracy in accuracies:
        if accuracy > best and accuracy >= best + rule.min_gain:
            best, since = accuracy, 0
            continue
        since += 1
        if since >= rule.patience:
            if drops == rule.drops:
                return Schedule(drops, finished=True)
            drops, since = drops + 1, 0
    return Schedule(drops, finished=False)


def sgd(net: nn.Module, rate: float, momentum: float, weight_decay: float) -> optim.SGD:
    return optim.SGD(net.parameters(), lr=rate, momentum=momentum, weight_decay=weight_decay)


def set_rate(optimiser: optim.SGD, rate: float) -> None:
    for group in optimiser.param_groups:
        group["lr"] = rate


def momentum(optimiser: optim.SGD, net: nn.Module) -> dict[str, Tensor]:
    """The momentum of each parameter by its name; of those that have taken no step yet there is none."""
    buffers = {name: optimiser.state[p].get("momentum_buffer") for name, p in net.named_parameters()}
    return {name: buffer for name, buffer in buffers.items() if buffer is not None}


def restore(optimiser: optim.SGD, net: nn.Module, momentum: dict[str, Tensor]) -> None:
    """Sets what `momentum` gave."""
    for name, parameter in net.named_parameters():
        if name in momentum:
            buffer = torch.empty_like(parameter)
            optimiser.state[parameter]["momentum_buffer"] = buffer.copy_(momentum[name])
