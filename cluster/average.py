"""A running average of a net's weights, which often does better than the last ones (Polyak and Juditsky 1992)."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Average:
    """weights <- d weights + (1 - d) those of the net, after each step; on the net's device, the same on all workers.

    The decay d is min(decay, (1 + t) / (10 + t)) after step t (TensorFlow's ExponentialMovingAverage with num_updates),
    so that the random first weights are soon forgotten. Buffers, such as a normalisation's running statistics, are
    averaged likewise; counters are copied.
    """

    def __init__(self, net: nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights = {name: tensor.detach().clone() for name, tensor in net.state_dict().items()}

    def update(self, net: nn.Module, step: int) -> None:
        """After step `step` of the stage, counted from 1."""
        share = 1 - min(self.decay, (1 + step) / (10 + step))
        current = net.state_dict()
        assert current.keys() == self.weights.keys()
        with torch.no_grad():
            real = [name for name, tensor in self.weights.items() if tensor.is_floating_point()]
            torch._foreach_lerp_([self.weights[name] for name in real], [current[name] for name in real], share)
            for name in self.weights.keys() - set(real):
                self.weights[name].copy_(current[name])

    def restore(self, weights: Mapping[str, Tensor]) -> None:
        """Copies what a checkpoint has kept of `weights` back."""
        with torch.no_grad():
            for name, tensor in self.weights.items():
                tensor.copy_(weights[name])

    @contextmanager
    def inside(self, net: nn.Module) -> Iterator[None]:
        """Puts the average into the net, at the same addresses, until the block ends; its own weights come back."""
        self._swap(net)
        try:
            yield
        finally:
            self._swap(net)

    def _swap(self, net: nn.Module) -> None:
        with torch.no_grad():
            for name, tensor in net.state_dict().items():
                kept = tensor.clone()
                tensor.copy_(self.weights[name])
                self.weights[name].copy_(kept)
