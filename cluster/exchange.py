"""Gradients between workers: DistributedDataParallel with shares of any size, or sums in one fixed order.

Those of fully-connected layers may go another way: see `factors`.

Floating-point sums depend on their order. `Pairwise` and `add_up_in_order` add the virtual shards' gradients as one
binary tree, of which each worker has a part: the bits are the same on any number of workers that is a power of two.
"""

from collections.abc import Collection, Sequence

import torch
import torch.distributed as dist
import xxhash
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from cluster.world import World
from pipelines.errors import TrainingError
from pipelines.figures import cpu_model

_SPREAD = -7046029254386353131  # 2**64 over the golden ratio, as an int64: Fibonacci hashing


def parallel(
    net: nn.Module,
    world: World,
    apart: Collection[str] = (),
    bf16: bool = False,
    bucket_megabytes: int | None = None,
) -> nn.Module:
    """`net`, whose gradients are averaged over the workers during the backward pass.

    All workers have to have the same weights, see `check_same`; nothing is sent here. `apart`: the layers whose
    gradients are left alone, since `factors` sees to them. `bf16`: gradients are rounded to it, sent and added so.
    `bucket_megabytes`: of gradients that are sent together; None: PyTorch's own sizes, 1 first and then 25 MiB. Of
    others none was faster on links of 10 and 25 Gbit/s; at 1, by gloo, 1 and 5 MiB were by a tenth
    (benchmarks/README.md).
    """
    names = [name for name, _ in net.named_parameters()]
    left = [name for name in names if name.rpartition(".")[0] in apart]
    if world.size == 1 or not any(p.requires_grad for name, p in net.named_parameters() if name not in left):
        return net
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(net, left)  # type: ignore[no-untyped-call]
    model = DistributedDataParallel(
        net,
        device_ids=[world.device] if world.device.type == "cuda" else None,
        broadcast_buffers=False,  # Statistics sees to them
        gradient_as_bucket_view=True,
        init_sync=False,
        bucket_cap_mb=bucket_megabytes,
    )
    if bf16:
        model.register_comm_hook(world, _averaged_in_bf16)
    return model


def _averaged_in_bf16(
    world: World,
    bucket: dist.GradBucket,  # type: ignore[name-defined]
) -> torch.futures.Future[Tensor]:
    """As torch's bf16_compress_hook, which refuses gloo."""
    whole = bucket.buffer()
    rounded = (whole / world.size).to(torch.bfloat16)
    work = dist.all_reduce(rounded, async_op=True)
    return work.get_future().then(lambda _: whole.copy_(rounded))  # type: ignore[no-any-return]


def mean_loss(losses: Tensor, total: int, world: World) -> Tensor:
    """The loss whose gradient, averaged over workers, is that of the mean over the global batch of `total` images.

    `losses`: (n,) of this worker's share, or a part of it, which may be empty.
    """
    return losses.sum() * (world.size / total)


def differing(net: nn.Module, world: World) -> str | None:
    """Which weights are not the same to the last bit on all workers, if there are such; every worker has to call it."""
    if world.size == 1:
        return None
    state = net.state_dict()
    mine = torch.stack([_hashed(tensor) for tensor in state.values()]).to(world.device)
    least, most = mine.clone(), mine
    dist.all_reduce(least, dist.ReduceOp.MIN)
    dist.all_reduce(most, dist.ReduceOp.MAX)
    if torch.equal(least, most):
        return None
    names = [name for name, a, b in zip(state, least.tolist(), most.tolist(), strict=True) if a != b]
    return names[0] + " and others" * (len(names) > 1)


def check_same(net: nn.Module, world: World) -> None:
    """Raises TrainingError, on all workers, unless all begin with the same weights."""
    if (names := differing(net, world)) is not None:
        raise TrainingError(f"the workers begin with different weights ({names}): do all nodes see the same storage?")


def _hashed(tensor: Tensor) -> Tensor:
    """() int64, of the tensor's bits and their places."""
    plain = tensor.detach().contiguous()
    if plain.is_cuda:
        return hashed_on_device(plain)
    return torch.tensor(xxhash.xxh3_64_intdigest(plain.view(-1).view(torch.uint8).numpy().data) - 2**63)


def hashed_on_device(tensor: Tensor) -> Tensor:
    """() int64, as `_hashed`, but by the device; the same on all kinds of them, and however the tensor lies in memory.

    Sums of the bits by rows and by columns, each sum times a factor of its own. A single sum would not do: what one
    weight gains by a rounding another one loses. It takes no memory to speak of, and reads the tensor twice."""
    bits = tensor.view(torch.int32) if tensor.dtype == torch.float32 else tensor
    matrix = bits.reshape(len(bits) if bits.dim() else 1, -1)
    sums = [matrix.sum(side, dtype=torch.int64) for side in (0, 1)]
    return torch.stack([(each * _odd(len(each), each.device)).sum() for each in sums]).sum()


def _odd(n: int, device: torch.device) -> Tensor:
    """(n,) int64: factors that differ, and spread over all bits."""
    return (torch.arange(n, device=device) * _SPREAD) | 1


def alike(world: World) -> bool:
    """Whether all workers may be expected to multiply to the same bits: the same devices, libraries and threads."""
    word = xxhash.xxh3_64_intdigest(_kind(world).encode()) >> 1
    return least(word, world) == most(word, world)


def _kind(world: World) -> str:
    if world.device.type == "cuda":
        device = f"{torch.cuda.get_device_name(world.device)} {torch.version.cuda}"
    else:
        device = f"{cpu_model()} {torch.backends.cpu.get_cpu_capability()} {torch.get_num_threads()} threads"
    return f"{torch.__version__} {device}"


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
    if world.size == 1 or not tensors:
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
