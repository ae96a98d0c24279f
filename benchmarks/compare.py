"""How far two results are from one another."""

from collections.abc import Mapping

import torch
from torch import Tensor


def relative(found: Tensor, expected: Tensor) -> float:
    """The norm of their difference over that of what is expected, in float64, on the latter's device."""
    right = expected.detach().double()
    return float(torch.linalg.vector_norm(found.detach().to(right) - right) / torch.linalg.vector_norm(right))


def distances(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, float]:
    assert found.keys() == expected.keys(), found.keys() ^ expected.keys()
    return {name: relative(found[name], right) for name, right in expected.items()}


def worst(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    return max(distances(found, expected).values())


def differing(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> int:
    """Elements with other bits, wherever they lie in memory; both of the same type."""
    assert found.keys() == expected.keys(), found.keys() ^ expected.keys()
    return sum(_differing(found[name], right) for name, right in expected.items())


def _differing(found: Tensor, expected: Tensor) -> int:
    a, b = (tensor.detach().cpu().contiguous() for tensor in (found, expected))
    assert a.dtype == b.dtype, (a.dtype, b.dtype)
    whole = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    return int((a.view(whole) != b.view(whole)).sum())
