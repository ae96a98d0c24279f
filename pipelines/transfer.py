"""From the CPU's memory to a GPU's."""

import torch
from torch import Tensor


def onto(values: Tensor, device: torch.device) -> Tensor:
    """`values`, which lie on the CPU, on the device, which is not waited for.

    A plain `to` would, until all is done that it was given before: a GPU would then stand still at every step until
    the next one's operations come. Pinned memory is not used again before the GPU has read it.
    """
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values.to(device)
