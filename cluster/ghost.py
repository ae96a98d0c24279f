"""Batch norm whose statistics do not depend on the number of workers: those of virtual shards ("ghost batches", Hoffer
et al. 2017, arXiv 1705.08741, algorithm 1), averaged in one fixed order for the running ones."""

import torch
from torch import Tensor, nn

from cluster.exchange import Pairwise, add_up_in_order
from cluster.world import World


class Statistics:
    """The running statistics of a net's batch norms; for a net that has none, nothing.

    Frozen ones keep theirs, and use them.

    During a step the layers' buffers take each shard's own statistics. `take` collects them, and `settle` writes what
    the buffers were before, moved by the layers' momentum towards the mean over the global batch.
    """

    def __init__(self, net: nn.Module, world: World) -> None:
        norms = [layer for layer in net.modules() if isinstance(layer, nn.BatchNorm2d)]
        self._layers = [layer for layer in norms if layer.weight.requires_grad]
        self._frozen = [layer for layer in norms if not layer.weight.requires_grad]
        self._world = world
        self._shares = [layer.momentum for layer in self._layers for _ in range(2)]
        self._before: list[Tensor] = []
        self._counts: list[Tensor] = []
        self._sums = Pairwise()
        for layer in self._layers:
            layer.momentum = 1.0  # what a pass leaves in the buffers is the shard's alone

    def begin(self) -> None:
        """After the net was set to train."""
        for layer in self._frozen:
            layer.eval()
        self._before = [buffer.clone() for buffer in self._buffers()]
        self._counts = [count.clone() for count in self._tracked()]
        self._sums = Pairwise()

    def take(self, weight: float) -> None:
        """After a shard's forward pass. `weight`: its images over those of the global batch, 0 for an empty shard."""
        if self._layers:
            self._sums.add([b * weight if weight else torch.zeros_like(b) for b in self._buffers()])

    def settle(self) -> None:
        """After the worker's last shard; every worker has to call it."""
        if not self._layers:
            return
        means = self._sums.total()
        add_up_in_order(means, self._world)
        for buffer, before, mean, share in zip(self._buffers(), self._before, means, self._shares, strict=True):
            assert share is not None
            buffer.copy_(before + share * (mean - before))
        for count, before in zip(self._tracked(), self._counts, strict=True):
            count.copy_(before + 1)

    def restore(self) -> None:
        """Back to what they were at `begin`."""
        for buffer, before in zip(self._buffers() + self._tracked(), self._before + self._counts, strict=True):
            buffer.copy_(before)

    def _buffers(self) -> list[Tensor]:
        found = [(layer.running_mean, layer.running_var) for layer in self._layers]
        return [buffer for pair in found for buffer in pair if buffer is not None]

    def _tracked(self) -> list[Tensor]:
        return [layer.num_batches_tracked for layer in self._layers if layer.num_batches_tracked is not None]
