"""The counter-based generator: random words as a pure function of (seed, epoch, row, purpose).

Philox4x32-10 of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011), vectorised over rows.
Seed, epoch, row and purpose enter as separate words; nothing is summed or multiplied together, so no two
of their combinations share a stream.
"""

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint32]  # (n, 4)

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))  # SC 2011, table 2
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_LOW = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)


class Purpose(IntEnum):
    """What words are drawn for; a new purpose gets a new number, an old number keeps its meaning."""

    SCALE_AND_CROP = 1
    FLIP_AND_COLOUR = 2
    GROUP_ORDER = 3
    WINDOW_ORDER = 4
    PREPARATION_ORDER = 5
    SPLIT = 6
    DIGITS = 7
    DROPOUT = 8


def philox(counter: Words, key: tuple[int, int]) -> Words:
    """Philox4x32-10. `counter`: (n, 4) words; returns (n, 4) words."""
    c0, c1, c2, c3 = (counter[:, i].astype(np.uint64) for i in range(4))
    k0, k1 = key
    for _ in range(_ROUNDS):
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (p1 >> _SHIFT) ^ c1 ^ np.uint64(k0), p1 & _LOW, (p0 >> _SHIFT) ^ c3 ^ np.uint64(k1), p0 & _LOW
        k0, k1 = (k0 + _WEYL[0]) & 0xFFFFFFFF, (k1 + _WEYL[1]) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3], axis=1).astype(np.uint32)


def words(seed: int, epoch: int, rows: NDArray[np.integer], purpose: Purpose) -> Words:
    """Four random words for each row, (n, 4). `seed` has 64 bits, `epoch` 32, rows 48, the purpose 16."""
    rows64 = np.asarray(rows, dtype=np.uint64)
    counter = np.empty((len(rows64), 4), dtype=np.uint32)
    counter[:, 0] = rows64 & _LOW
    counter[:, 1] = (rows64 >> _SHIFT) & np.uint64(0xFFFF)
    counter[:, 1] |= np.uint32(int(purpose) << 16)
    counter[:, 2] = np.uint32(epoch)
    counter[:, 3] = 0
    return philox(counter, (seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF))


def below(word: NDArray[np.uint32], bound: NDArray[np.integer] | int) -> NDArray[np.int64]:
    """Whole numbers uniform on {0, ..., bound - 1}; the bias is below bound / 2**32."""
    return ((word.astype(np.uint64) * np.asarray(bound, dtype=np.uint64)) >> _SHIFT).astype(np.int64)


def uniform(word: NDArray[np.uint32]) -> NDArray[np.float64]:
    """Real numbers uniform on the open interval (0, 1)."""
    return (word.astype(np.float64) + 0.5) / 2.0**32


def normal(word_a: NDArray[np.uint32], word_b: NDArray[np.uint32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Two independent standard normal variates from two words (Box and Muller)."""
    radius, angle = np.sqrt(-2.0 * np.log(uniform(word_a))), 2.0 * np.pi * uniform(word_b)
    return radius * np.cos(angle), radius * np.sin(angle)


def permutation(n: int, seed: int, epoch: int, purpose: Purpose, which: int = 0) -> NDArray[np.int64]:
    """A random order of {0, ..., n - 1}; `which` (16 bits and more) tells permutations of one purpose apart."""
    first = np.uint64(which) << np.uint64(24)  # room for 2**24 entries each
    assert n <= 1 << 24, n
    w = words(seed, epoch, first + np.arange(n, dtype=np.uint64), purpose)
    return np.argsort((w[:, 0].astype(np.uint64) << _SHIFT) | w[:, 1], kind="stable").astype(np.int64)
