"""Where batches go, as a value."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Seat:
    """Worker `rank` of `world`, its device, and the threads it may use."""

    rank: int
    world: int
    device: torch.device
    threads: int

    @property
    def device_id(self) -> int | None:
        return self.device.index or 0 if self.device.type == "cuda" else None
