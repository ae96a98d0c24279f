"""Sums and counts, over batches and workers, divided once at the end."""

from dataclasses import dataclass

import torch
from torch import Tensor

from cluster.world import World


@dataclass(frozen=True)
class Totals:
    """Over `images`: the sum of their losses, how many had the right class first, or among the first five, how many
    could not be decoded, so that a plain picture stood in, and the sum of the norms of their steps' gradients."""

    images: int
    loss_sum: float
    top1: int
    top5: int
    unreadable: int = 0
    norm_sum: float = 0.0

    def __add__(self, other: "Totals") -> "Totals":
        return Totals(
            self.images + other.images,
            self.loss_sum + other.loss_sum,
            self.top1 + other.top1,
            self.top5 + other.top5,
            self.unreadable + other.unreadable,
            self.norm_sum + other.norm_sum,
        )

    @property
    def loss(self) -> float:
        return self.loss_sum / self.images

    @property
    def accuracy(self) -> float:
        return self.top1 / self.images

    @property
    def accuracy5(self) -> float:
        return self.top5 / self.images

    @property
    def gradient_norm(self) -> float:
        """Of steps, each weighted by its images."""
        return self.norm_sum / self.images


class Meter:
    """Adds up on the device; `read` waits for it once."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._sums = torch.zeros(6, dtype=torch.float64, device=world.device)

    def add(
        self, scores: Tensor, labels: Tensor, losses: Tensor, unreadable: int = 0, norm: Tensor | None = None
    ) -> None:
        """`scores` (n, classes), `labels` (n,), `losses` (n,); `norm` () of the gradient of the step."""
        with torch.no_grad():
            ranks = label_ranks(scores, labels)
            known = torch.tensor([len(labels), unreadable], dtype=torch.float64).to(scores.device)
            norms = known[0] * norm if norm is not None else torch.zeros_like(known[0])
            found = torch.stack([losses.double().sum(), (ranks < 1).sum().double(), (ranks < 5).sum().double()])
            self._sums += torch.cat([known[:1], found, known[1:], norms[None]])

    def read(self) -> Totals:
        """The totals of all workers since the last read; every worker has to call it."""
        images, loss_sum, top1, top5, unreadable, norm_sum = self.world.add_up(self._sums).tolist()
        self._sums = torch.zeros_like(self._sums)
        return Totals(int(images), loss_sum, int(top1), int(top5), int(unreadable), norm_sum)


def label_ranks(scores: Tensor, labels: Tensor) -> Tensor:
    """(n,): how many classes are ahead of the right one. A tie counts against the net, and so does NaN."""
    right = scores.gather(1, labels[:, None])
    ahead = (~(scores < right)).sum(dim=1)  # counts the right class itself, too, which is not behind itself
    return ahead - 1
