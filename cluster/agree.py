"""What all workers do at the same step, though each hears of it at another time.

A worker's wish (a stop that it was asked for, a checkpoint that is due) goes into a small reduction at every step; the
greatest wish of all is known one step later, to all of them, and no step waits for it.
"""

from datetime import timedelta
from enum import IntEnum
from typing import Protocol

import torch
import torch.distributed as dist

from cluster.world import World


class Wish(IntEnum):
    """In rising order: of several workers' wishes the greatest is granted."""

    NONE = 0
    SAVE = 1  # write a checkpoint and go on
    STOP = 2  # write a checkpoint and end


class Control(Protocol):
    """What the world outside of the loop wants of it."""

    def wish(self) -> Wish:
        """Of this worker alone. It is asked at every step, so the answer has to be at hand."""


class Undisturbed:
    """Nobody wants anything."""

    def wish(self) -> Wish:
        return Wish.NONE


class Agreement:
    """The wishes of all workers, by way of gloo: the reduction is of one number on the CPU and touches no device."""

    def __init__(self, world: World) -> None:
        """All workers make it together."""
        self._size = world.size
        self._group: dist.ProcessGroup | None = None
        if world.size > 1 and world.device.type == "cuda":
            self._group = dist.new_group(timeout=timedelta(seconds=world.patience_seconds), backend="gloo")
        self._wish = torch.zeros(1, dtype=torch.int32)
        self._pending: dist.Work | None = None

    def exchange(self, mine: Wish) -> Wish:
        """Takes this worker's wish and returns the greatest of those that were given at the call before.

        Every worker has to call it equally often.
        """
        if self._pending is not None:
            self._pending.wait()
        agreed = Wish(int(self._wish))
        self._wish = torch.tensor([mine], dtype=torch.int32)
        if self._size > 1:
            self._pending = dist.all_reduce(self._wish, dist.ReduceOp.MAX, self._group, async_op=True)
        return agreed
