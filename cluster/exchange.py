"""Gradients between workers: DistributedDataParallel with shares of any size, or sums in one fixed order.

Floating-point sums depend on their order. `Pairwise` and `add_up_in_order` add the virtual shards' gradients as one
binary tree, of which each worker has a part: the bits are the same on any number of workers that is a power of two.
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from cluster.world import World
from pipelines.errors import TrainingError


def parallel(net: nn.Module, world: World) -> nn.Module:
    """`net`, whose gradients are averaged over the workers during the backward pass.

    All workers have to have the same weights, see `check_same`; nothing is sent here.
    """
    if world.size == 1:
        return net
    return DistributedDataParallel(
        net,
        device_ids=[world.device] if world.device.type == "cuda" else None,
        broadcast_buffers=False,  # Statistics sees to them
        gradient_as_bucket_view=True,
        init_sync=False,
    )


def mean_loss(losses: Tensor, total: int, world: World) -> Tensor:
    """The loss whose gradient, averaged over workers, is that of the mean over the global batch of `total` images.

    `losses`: (n,) of this worker's share, or a part of it, which may be empty.
    """
    return losses.sum() * (world.size / total)


def check_same(net: nn.Module, world: World) -> None:
    """Raises TrainingError, on all workers, unless all have the same weights to the last bit."""
    if world.size == 1:
        return
    sums = [_bits(tensor).sum(dtype=torch.int64) for tensor in net.state_dict().values()]
    mine = torch.stack(sums).to(world.device)
    least, most = mine.clone(), mine
    dist.all_reduce(least, dist.ReduceOp.MIN)
    dist.all_reduce(most, dist.ReduceOp.MAX)
    if not torch.equal(least, most):
        names = [name for name, a, b in zip(net.state_dict(), least.tolist(), most.tolist(), strict=True) if a != b]
        raise TrainingError(
            f"the workers begin with different weights ({names[0]} and others): do all nodes see the same storage?"
        )


def _bits(tensor: Tensor) -> Tensor:
    return tensor.detach().view(torch.int32) if tensor.dtype == torch.float32 else tensor.detach()


def least(value: int, world: World) -> int:
    """The least of all workers' values; every worker has to call it."""
    return _reduced(value, dist.ReduceOp.MIN, world)


def most(value: int, world: World) -> int:
    return _reduced(value, dist.ReduceOp.MAX, world)


def _reduced(value: int, how: dist.ReduceOp.RedOpType, world: World) -> int:
    values = torch.tensor(value, device=world.device)
    if world.size > 1:
        dist.all_reduce(values, how)
    return int(values)


class Pairwise:
    """Sums of lists of tensors, the leaves, added as a binary tree; it holds at most log2(leaves) + 1 lists."""

    def __init__(self) -> None:
        self._partial: list[list[Tensor]] = []
        self._leaves = 0

    def add(self, leaf: list[Tensor]) -> None:
        """Takes the tensors, which it may change."""
        self._partial.append(leaf)
        self._leaves += 1
        whole = self._leaves
        while whole % 2 == 0:
            _add(self._partial[-2], self._partial.pop())
            whole //= 2

    def total(self) -> list[Tensor]:
        """Of all leaves, whose number is a power of two."""
        assert len(self._partial) == 1, self._leaves
        return self._partial[0]


def add_up_in_order(tensors: list[Tensor], world: World) -> None:
    """Replaces `tensors` by their sum over all workers, a power of two: the tree of `Pairwise`, continued.

    In round k a worker adds up with the one whose rank differs in bit k. Both get the same bits, as a + b = b + a.
    """
    if world.size == 1:
        return
    mine = torch.cat([tensor.reshape(-1) for tensor in tensors])
    theirs = torch.empty_like(mine)
    distance = 1
    while distance < world.size:
        peer = world.rank ^ distance
        swap = [dist.P2POp(dist.isend, mine, peer), dist.P2POp(dist.irecv, theirs, peer)]
        for work in dist.batch_isend_irecv(swap):
            work.wait()
        mine += theirs
        distance *= 2
    parts = torch.split(mine, [tensor.numel() for tensor in tensors])
    for tensor, summed in zip(tensors, parts, strict=True):
        tensor.copy_(summed.view(tensor.shape))


def _add(sums: Sequence[Tensor], others: Sequence[Tensor]) -> None:
    for tensor, other in zip(sums, others, strict=True):
        tensor.add_(other)
