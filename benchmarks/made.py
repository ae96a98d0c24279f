"""Made-up nets, settings and batches, of full size or, in a rehearsal, of a small one."""

import copy
import importlib.util
import shutil
from functools import cache

import torch
from torch import Tensor, nn

from benchmarks.setting import Setting
from cluster import init
from cluster.settings import StageSettings
from cluster.vgg import VGG
from pipelines import transfer
from pipelines.order import Order
from pipelines.stream import Batch

_SMALL_WIDTH = 0.05


def settings(setting: Setting, net: str, batch: int, **changes: object) -> StageSettings:
    side = setting.pick(224, 32)
    width = _SMALL_WIDTH if setting.small else 1.0
    own = {"net": net, "scale": side, "input_size": side, "width": width, "batch": batch, "micro_batch": batch}
    return StageSettings.model_validate(own | changes)


def classes(setting: Setting) -> int:
    return setting.pick(1000, 10)


def net(setting: Setting, s: StageSettings) -> VGG:
    """On the CPU, the same one each time; its biases count, too."""
    return copy.deepcopy(_drawn(s.net, classes(setting), s.input_size, s.width, s.dropout))


@cache
def _drawn(net: str, classes: int, side: int, width: float, dropout: float) -> VGG:
    """A large one takes seconds to draw."""
    made = VGG(net, classes, side, width, dropout)
    init.randomise(made, "kaiming", 0.01, seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0.0, 0.1, generator=generator)
    return made


def quick_net(setting: Setting, s: StageSettings) -> VGG:
    """On the device, where a large one is drawn at once; for measurements."""
    with setting.device:
        made = VGG(s.net, classes(setting), s.input_size, s.width, s.dropout)
    for parameter in made.parameters():
        if parameter.dim() > 1:
            nn.init.kaiming_normal_(parameter)
    return made.train()


def images(setting: Setting, s: StageSettings, n: int, seed: int = 3) -> Tensor:
    """(n, 3, H, W) float32, on the CPU."""
    return torch.randn(n, 3, s.input_size, s.input_size, generator=torch.Generator().manual_seed(seed))


def order(s: StageSettings) -> Order:
    """Of an epoch of four batches."""
    return Order((s.batch,) * 4, s.batch, seed=5)


def batch(setting: Setting, s: StageSettings, seed: int = 3) -> Batch:
    """A whole one, on the device."""
    rows = torch.arange(s.batch)
    labels = transfer.onto(rows * 7 % classes(setting), setting.device)
    return Batch(images(setting, s, s.batch, seed).to(setting.device), labels, rows, s.batch)


def lacking_to_compile(setting: Setting) -> str | None:
    """What torch.compile would need to be tried, if it is not there; on a CPU it takes minutes."""
    if not setting.cuda:
        return "GPU"
    if importlib.util.find_spec("triton") is None:
        return "triton"
    return None if any(map(shutil.which, ("gcc", "cc", "clang"))) else "C compiler"
