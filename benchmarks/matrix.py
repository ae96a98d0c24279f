"""What a device's matrix units reach, measured with large products; and the switches of their precision."""

from typing import Literal

import torch

from benchmarks.setting import Setting, seconds

Precision = Literal["bf16", "tf32", "float32"]

_SIDES: dict[Precision, tuple[int, ...]] = {"bf16": (4096, 8192, 16384), "tf32": (4096, 8192), "float32": (4096, 8192)}
_IN_A_ROW = 10


def choose(precision: Precision) -> None:
    """Whether float32 products and convolutions may be done in TF32; by the older switches alone, since PyTorch 2.9 to
    2.13 refuse to read one kind after the other was set."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"


def peak(setting: Setting, precision: Precision) -> float:
    """FLOP/s: the best of several sizes, of random numbers, since with zeros a GPU runs faster."""
    choose(precision)
    kind = torch.bfloat16 if precision == "bf16" else torch.float32
    best = 0.0
    for side in (64,) if setting.small else _SIDES[precision]:
        a, b = torch.randn(2, side, side, device=setting.device).to(kind)
        out = torch.empty_like(a)
        taken = seconds(lambda a=a, b=b, out=out: torch.mm(a, b, out=out), setting.device, 3, 3, _IN_A_ROW)  # type: ignore[misc]
        best = max(best, 2 * side**3 / taken)
    return best
