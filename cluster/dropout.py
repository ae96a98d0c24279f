"""Dropout that depends on the image and the step alone: the same on any number of workers and any device.

An image's key is two words of the counter-based generator, a function of (seed, step, row). Whether a unit is kept
follows from hashing (key, layer, unit), in whole numbers below 2**63, which are the same everywhere.
"""

import numpy as np
import torch
from torch import Tensor

from pipelines import keys
from pipelines.keys import Purpose

_WORD = 0xFFFFFFFF
# A 32-bit mixing function found by search: https://github.com/skeeto/hash-prospector. Both factors are below 2**31, so
# that no product leaves an int64.
_FACTORS = (0x2C1B3C6D, 0x297A2D39)


def row_keys(seed: int, step: int, rows: Tensor) -> Tensor:
    """(n,) int64, the keys of the images of `rows` (n,) in step `step`; on the CPU."""
    words = keys.words(seed, step, rows.numpy(), Purpose.DROPOUT)[:, :2]
    return torch.from_numpy(np.ascontiguousarray(words).view(np.int64)[:, 0])


def kept(row_keys: Tensor, layer: int, units: int, share: float) -> Tensor:
    """(n, units) bool: each True with probability 1 - `share`, independently."""
    numbers = torch.arange(units, dtype=torch.int64, device=row_keys.device)
    hashed = _mixed((layer << 24) | numbers, 0)
    low, high = row_keys & _WORD, (row_keys >> 32) & _WORD
    return _mixed(low[:, None] ^ hashed, high[:, None]) >= int(share * 2**32)


def drop(x: Tensor, row_keys: Tensor, layer: int, share: float) -> Tensor:
    """`x` (n, units) with a `share` of it set to 0, and the rest scaled so that its mean stays."""
    return x * kept(row_keys, layer, x.shape[1], share) * (1 / (1 - share))


def _mixed(x: Tensor, other: Tensor | int) -> Tensor:
    """Hashes words, and `other` along with them half-way."""
    x = x ^ (x >> 15)
    x *= _FACTORS[0]
    x &= _WORD
    x ^= other
    x ^= x >> 12
    x *= _FACTORS[1]
    x &= _WORD
    x ^= x >> 15
    return x
