"""Gradients between workers: DistributedDataParallel, with shares of any size."""

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from cluster.world import World


def parallel(net: nn.Module, world: World) -> nn.Module:
    """`net`, whose gradients are averaged over the workers during the backward pass."""
    if world.size == 1:
        return net
    devices = [world.device] if world.device.type == "cuda" else None
    return DistributedDataParallel(net, device_ids=devices, gradient_as_bucket_view=True)


def mean_loss(losses: Tensor, total: int, world: World) -> Tensor:
    """The loss whose gradient, averaged over workers, is that of the mean over the global batch of `total` images.

    `losses`: (n,) of this worker's share, which may be empty.
    """
    return losses.sum() * (world.size / total)
