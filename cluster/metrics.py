"""Sums and counts, over batches and workers, divided once at the end."""

from dataclasses import dataclass

import torch
from torch import Tensor

from cluster.world import World
from pipelines import transfer

_HELD_BATCHES = 16  # whose scores are kept, in bytes 64 times images of a share times classes


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
    """Adds up on the device; `read` waits for it once.

    Batches are looked at some together: in the middle of training a dozen small operations take 0.3 to 0.5 ms a step on
    a CPU, whose caches are the net's, ten times as long as by themselves.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self._held: list[tuple[Tensor, Tensor, Tensor]] = []
        self._norms: list[Tensor] = []
        self._none = torch.zeros((), device=world.device)
        self._sums = torch.zeros(5, dtype=torch.float64, device=world.device)  # images, losses, norms, top-1, top-5
        self._unreadable = 0

    def add(
        self, scores: Tensor, labels: Tensor, losses: Tensor, unreadable: int = 0, norm: Tensor | None = None
    ) -> None:
        """`scores` (n, classes), `labels` (n,), `losses` (n,), and the `norm` () of their step's gradient: not to be
        changed later."""
        self._held.append((scores.detach(), labels, losses.detach()))
        self._norms.append(self._none if norm is None else norm)
        self._unreadable += unreadable
        if len(self._held) == _HELD_BATCHES:
            self._look()

    def read(self) -> Totals:
        """The totals of all workers since the last read; every worker has to call it."""
        self._look()
        sums = torch.cat([self._sums, self._placed([self._unreadable])])
        self._sums, self._unreadable = torch.zeros_like(self._sums), 0
        images, loss_sum, norm_sum, top1, top5, unreadable = self.world.add_up(sums).tolist()
        return Totals(int(images), loss_sum, int(top1), int(top5), int(unreadable), norm_sum)

    def _placed(self, counts: list[int]) -> Tensor:
        return transfer.onto(torch.tensor(counts, dtype=self._sums.dtype), self.world.device)

    def _look(self) -> None:
        if not self._held:
            return
        counts = self._placed([len(labels) for _, labels, _ in self._held])
        scores, labels, losses = map(torch.cat, zip(*self._held, strict=True))
        norms = torch.stack(self._norms).double()
        self._held, self._norms = [], []
        ranks = label_ranks(scores, labels)
        found = [counts.sum(), losses.double().sum(), counts @ norms, (ranks < 1).sum(), (ranks < 5).sum()]
        self._sums += torch.stack([number.double() for number in found])


def label_ranks(scores: Tensor, labels: Tensor) -> Tensor:
    """(n,): how many classes are ahead of the right one. A tie counts against the net, and so does NaN."""
    right = scores.gather(1, labels[:, None])
    ahead = (~(scores < right)).sum(dim=1)  # counts the right class itself, too, which is not behind itself
    return ahead - 1
