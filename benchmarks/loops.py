"""Training steps to be timed: written by hand, and the project's own."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import made, matrix
from benchmarks.contenders import WAYS, Contender
from benchmarks.matrix import Precision
from benchmarks.setting import Setting
from cluster import optimise
from cluster.metrics import Meter
from cluster.step import Step
from pipelines import transfer
from pipelines.stream import Batch

_RATE = 1e-8  # nothing diverges, and takes other time with what is not finite


@dataclass(frozen=True)
class Case:
    """`how`: eager, compile or CUDA graphs, which are compiled, too. `ways`: of contenders. `engines`: how many of
    cuDNN's are tried (0: all); None: its own guess is taken."""

    net: str = "D"
    precision: Precision = "bf16"
    channels_last: bool = True
    batch: int = 256
    how: str = "eager"
    ways: str | None = None
    engines: int | None = 10  # PyTorch's default

    @property
    def text(self) -> str:
        layout = "channels last" if self.channels_last else "channels first"
        engines = {None: "cuDNN's guess", 0: "all engines"}.get(self.engines)
        return ", ".join(filter(None, (layout, self.how, self.ways, engines)))


def bare_step(setting: Setting, case: Case) -> Callable[[], None]:
    """Forward, backward and update, as one writes it by hand."""
    matrix.choose(case.precision)
    torch.backends.cudnn.benchmark = case.engines is not None
    if setting.cuda and case.engines is not None:
        torch.backends.cudnn.benchmark_limit = case.engines
    s = made.settings(setting, case.net, case.batch, learning_rate=_RATE)
    net = made.quick_net(setting, s)
    layout = torch.channels_last if case.channels_last else torch.contiguous_format
    net.to(memory_format=layout)  # type: ignore[call-overload]
    optimiser = optimise.sgd(net, s)
    bf16 = case.precision == "bf16"
    images = _images(setting, s.input_size, case.batch).to(
        torch.bfloat16 if bf16 else torch.float32, memory_format=layout
    )
    labels = torch.arange(case.batch, device=setting.device) % made.classes(setting)
    model: nn.Module = net if case.ways is None else Contender(net, WAYS[case.ways])
    if case.how != "eager":
        model.compile(mode="default" if case.how == "compile" else "reduce-overhead")

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        if case.how == "CUDA graphs":
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        with torch.autocast(setting.device.type, torch.bfloat16, enabled=bf16):
            scores = model(images)
        F.cross_entropy(scores.float(), labels).backward()  # type: ignore[no-untyped-call]
        optimiser.step()

    return step


def own_step(setting: Setting, case: Case) -> Callable[[], None]:
    """What the training loop does in a step, but for waiting for images: see `cluster.train`."""
    changes = {"learning_rate": _RATE, "compile": case.how != "eager", "precision": "bf16"}
    s = made.settings(setting, case.net, case.batch, **changes)
    net = made.quick_net(setting, s)
    step = Step(net, setting.world, s, made.order(s))
    optimiser, meter = optimise.sgd(net, s), Meter(setting.world)
    parameters = list(net.parameters())
    rows = torch.arange(case.batch)
    images, own_labels = _images(setting, s.input_size, case.batch), rows % made.classes(setting)
    number = 0

    def call() -> None:
        nonlocal number
        labels = transfer.onto(own_labels, setting.device)
        scores, losses = step.gradients(Batch(images, labels, rows, len(rows)), number)
        norm = optimise.clip(parameters, s.clip_norm)
        optimiser.step()
        meter.add(scores, labels, losses, 0, norm)
        number += 1

    return call


def _images(setting: Setting, side: int, n: int) -> Tensor:
    return torch.randn(n, 3, side, side, device=setting.device)
