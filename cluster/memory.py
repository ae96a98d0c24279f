"""How many images fit the memory of a device, forward and backward."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from cluster.vgg import VGG
from cluster.world import World
from pipelines.stream import MOST_LENT
from pipelines.tune import MOST_AHEAD

# Beside what is there before the first step, in sizes of the weights: momentum and DDP's buckets, the average, and two
# checkpoints' copies of weights, momentum and average.
_RESERVED = 9
# Batches of images, which the input side makes only later: those that are made ahead, those that the program may still
# be reading, and the one that is being handed on.
_BATCHES = MOST_AHEAD + MOST_LENT + 1
_CPU_SHARE = 0.5  # of a worker's part of the machine's memory, for activations
_CGROUP = Path("/sys/fs/cgroup/memory.max")


def by_trial(net: VGG, losses: Callable[[Tensor, Tensor], Tensor], most: int, share: int) -> int:
    """The first of `most`, half of it, a quarter, ... images with which the net does not run out of memory, or 0.

    `losses(images, keys)`: (n,), a forward pass. Gradients are cleared. `share`: the images of this worker in a batch.
    """
    images = most
    with _reserved(net, share):
        while images:
            try:
                _try(net, losses, images)
            except torch.cuda.OutOfMemoryError:
                images = _half(images)
            else:
                break
            finally:
                net.zero_grad()
                torch.cuda.empty_cache()
    return images


def _try(net: VGG, losses: Callable[[Tensor, Tensor], Tensor], n: int) -> None:
    device = net.fc1.weight.device
    images = torch.zeros(n, 3, net.input_size, net.input_size, device=device)
    losses(images, torch.zeros(n, dtype=torch.int64, device=device)).sum().backward()  # type: ignore[no-untyped-call]


def _half(images: int) -> int:
    """Rounded up, so that as few passes as possible take its place; of one image, none."""
    return -(-images // 2) if images > 1 else 0


@contextmanager
def _reserved(net: VGG, share: int) -> Iterator[None]:
    """Keeps memory from being used that training will need beside activations."""
    held = torch.empty(reserved_bytes(net, share), dtype=torch.uint8, device=net.fc1.weight.device)
    yield
    del held


def reserved_bytes(net: VGG, share: int) -> int:
    weights = sum(p.numel() * p.element_size() for p in net.parameters())
    images = share * 3 * net.input_size**2 * torch.float32.itemsize
    return _RESERVED * weights + _BATCHES * images


def by_estimate(net: VGG, most: int, world: World) -> int:
    """The first of `most`, half of it, a quarter, ... whose activations take no more than a part of the memory.

    Where the kernel ends a process without a word there is nothing to try. The bound follows from the machine's whole
    memory, and not from what is free at the moment, so that a run that is started again computes in the same pieces.
    """
    bound = _CPU_SHARE * machine_bytes() * min(1.0, world.threads / (os.cpu_count() or 1))
    each = activation_bytes(net)
    images = most
    while images > 1 and images * each > bound:
        images = _half(images)
    return images


def activation_bytes(net: VGG) -> int:
    """Per image, what a forward pass keeps for the backward pass, in float32."""
    with torch.device("meta"):
        twin = VGG(net.net, net.classes, net.input_size, net.width, net.dropout.p, net.batch_norm)
        one, two = (_kept_bytes(twin, torch.empty(n, 3, net.input_size, net.input_size)) for n in (1, 2))
    return two - one  # the weights are among what is kept


def _kept_bytes(net: nn.Module, images: Tensor) -> int:
    kept: dict[int, torch.UntypedStorage] = {}  # a storage that several operations keep counts once

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        net(images)
    return sum(storage.nbytes() for storage in kept.values())


def machine_bytes() -> int:
    """The machine's memory, or what the container may have of it."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = _CGROUP.read_text().strip() if _CGROUP.exists() else "max"
    return machine if limit == "max" else min(machine, int(limit))
