"""Which worker this is, as a value."""

from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from pipelines.seat import Seat

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """Worker `rank` of `size`, its device, the CPU threads that are its own, and how long it waits for the others."""

    rank: int
    size: int
    device: torch.device
    threads: int
    patience_seconds: float = 60.0

    @classmethod
    def single(cls, threads: int = 1) -> "World":
        return cls(0, 1, torch.device("cpu"), threads)

    @property
    def seat(self) -> Seat:
        """The same for the input side, which knows of no process groups."""
        return Seat(self.rank, self.size, self.device, self.threads)

    def meet(self) -> None:
        """Waits for all workers and their devices; every worker has to call it."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        if self.size > 1:
            dist.barrier()

    def add_up(self, values: Tensor) -> Tensor:
        """The sum of `values` over all workers; every worker has to call it."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def from_first(self, value: T) -> T:
        """Worker 0's `value`; every worker has to call it."""
        box = [value]
        if self.size > 1:
            dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]
