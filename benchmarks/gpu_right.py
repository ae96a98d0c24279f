"""Whether a GPU computes what the CPU does.

Gradients of a deep net are no place to look for rounding: it tips ReLUs and maxima, and whole terms come and go. With
errors of e in the maps a gradient is about sqrt(e) off: the CPU's own float32 gradients of net A at 224 pixels are
0.002 to 0.015 of their norm away from those of float64, its bf16 ones 0.3. So whole nets are compared in float64, where
nothing tips, and in float32 and bf16 single layers, each by itself.
"""

import copy
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import compare, made, matrix, right_exchange, right_input, right_step
from benchmarks.setting import Piece, Setting
from cluster import dropout
from cluster.layers import FC
from cluster.table import convolutions
from cluster.vgg import VGG

_FLOAT64_MOST = 1e-10
_SCORES_MOST = {"float32": 1e-4, "bf16": 1e-2}
_TIPPED_MOST = 0.05  # float32 gradients of a whole net; of TF32 they would be 0.1 and more
_LAYER_MOST = {"float32": 2e-5, "bf16": 1e-2}
_DENSE_MOST = 1e-4
_NETS = "Scores and gradients of whole nets, relative to the CPU's float64"
_LAYERS = "Single layers, relative to the GPU's float64: the worst over output and gradients"
_ROWS = 4096


def run(setting: Setting) -> None:
    setting.each(
        (
            _piece(setting, "dropout masks", 3, _dropout),
            _piece(setting, "net A", 8, partial(_net, name="A", n=setting.pick(4, 2))),
            _piece(setting, "single layers", 4, _layers),
            _piece(setting, "dense form", 3, _dense),
            *right_step.pieces(setting),
            _piece(setting, "exchange by factors", 6, right_exchange.check),
            _piece(setting, "input", 10, right_input.check),
            _piece(setting, "net D", 8, partial(_net, name="D", n=2)),
            *_exchanges(setting),
            right_step.compiled_piece(setting),
        )
    )


def _exchanges(setting: Setting) -> tuple[Piece, ...]:
    """Between several workers, where there are GPUs for them."""
    count = right_exchange.workers(setting)
    if count < 2:
        setting.report.note("exchange by factors between workers: there is one GPU")
        return ()
    return (_piece(setting, f"exchange by factors, {count} workers", 40, right_exchange.check_many),)


def _piece(setting: Setting, name: str, seconds: float, call: Callable[[Setting], None]) -> Piece:
    def begin() -> None:
        matrix.choose("float32")  # and not as a step before may have left it
        torch.backends.cudnn.benchmark = torch.backends.cudnn.deterministic = False
        call(setting)

    return Piece(name, seconds, begin)


def _net(setting: Setting, name: str, n: int) -> None:
    """Forward and backward, with dropout keyed by rows."""
    s = made.settings(setting, name, n)
    net, images, keys = made.net(setting, s), made.images(setting, s, n), dropout.row_keys(7, 3, torch.arange(n))
    reference = _outcome(copy.deepcopy(net).double(), images.double(), keys)
    cpu = _told(setting, (name, "CPU", "float32"), _outcome(copy.deepcopy(net), images, keys), reference)
    on_device = copy.deepcopy(net).to(setting.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    images, keys = images.to(setting.device, memory_format=torch.channels_last), keys.to(setting.device)
    single = _told(setting, (name, "GPU", "float32"), _outcome(on_device, images, keys), reference)
    half = _told(setting, (name, "GPU", "bf16"), _outcome(on_device, images, keys, bf16=True), reference)
    double = _told(setting, (name, "GPU", "float64"), _outcome(on_device.double(), images.double(), keys), reference)
    check = setting.report.check
    check(f"{name}: float64 scores and gradients", max(double), most=_FLOAT64_MOST)
    check(f"{name}: float32 scores", single[0], most=_SCORES_MOST["float32"])
    check(f"{name}: float32 scores, times the CPU's error", single[0] / cpu[0], most=5, goal=True)
    check(f"{name}: float32 gradients of the whole net", single[1], most=max(_TIPPED_MOST, 4 * cpu[1]))
    check(f"{name}: bf16 scores", half[0], most=_SCORES_MOST["bf16"] * setting.pick(1, 3))  # narrow nets


def _outcome(net: VGG, images: Tensor, keys: Tensor, bf16: bool = False) -> tuple[Tensor, dict[str, Tensor]]:
    net.train().zero_grad()
    with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
        scores = net(images, keys)
    scores = scores if images.dtype == torch.float64 else scores.float()
    F.cross_entropy(scores, torch.arange(len(images), device=images.device)).backward()  # type: ignore[no-untyped-call]
    return scores.detach().cpu(), {name: p.grad.cpu() for name, p in net.named_parameters() if p.grad is not None}


def _told(
    setting: Setting,
    of: tuple[str, str, str],
    found: tuple[Tensor, dict[str, Tensor]],
    reference: tuple[Tensor, dict[str, Tensor]],
) -> tuple[float, float]:
    """Distances of the scores, and of the parameter whose gradient is worst. `of`: net, place, precision."""
    scores = compare.relative(found[0], reference[0])
    each = compare.distances(found[1], reference[1])
    place = max(each, key=lambda name: each[name])
    middle = sorted(each.values())[len(each) // 2]
    labels = dict(zip(("net", "place", "precision"), of, strict=True))
    setting.report.row(_NETS, **labels, scores=scores, gradient=each[place], of=place, median_gradient=middle)
    return scores, each[place]


def _layers(setting: Setting) -> None:
    """Each convolution and FC layer of net D, as it lies in memory in training."""
    s = made.settings(setting, "D", 8)
    net = made.net(setting, s).to(setting.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    found: dict[str, dict[str, float]] = {}
    side = s.input_size
    for conv in convolutions("D"):
        layer = net.get_submodule(conv.name)
        assert isinstance(layer, torch.nn.Conv2d)
        found[conv.name] = _layer(
            layer, (s.batch, layer.in_channels, side >> (conv.block - 1), side >> (conv.block - 1))
        )
    for name in FC:
        layer = net.get_submodule(name)
        assert isinstance(layer, torch.nn.Linear)
        found[name] = _layer(layer, (s.batch, layer.in_features))
    for name, errors in found.items():
        setting.report.row(_LAYERS, layer=name, **errors)
    for precision, most in _LAYER_MOST.items():
        setting.report.check(f"D: {precision}, the worst layer", max(e[precision] for e in found.values()), most=most)


def _layer(layer: torch.nn.Module, shape: tuple[int, ...]) -> dict[str, float]:
    """By precision: the worst of output, input's gradient and parameters' gradients."""
    device = next(layer.parameters()).device
    x = torch.randn(shape, generator=torch.Generator(device).manual_seed(4), device=device)
    if len(shape) == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    double = _passed(copy.deepcopy(layer).double(), x.double(), bf16=False)
    single, half = (_passed(copy.deepcopy(layer), x, bf16) for bf16 in (False, True))
    return {"float32": compare.worst(single, double), "bf16": compare.worst(half, double)}


def _passed(layer: torch.nn.Module, x: Tensor, bf16: bool) -> dict[str, Tensor]:
    x = x.detach().requires_grad_()
    with torch.autocast(x.device.type, torch.bfloat16, enabled=bf16):
        out = layer(x)
    gradient = torch.randn(out.shape, generator=torch.Generator(x.device).manual_seed(5), device=x.device)
    out.backward(gradient.to(out))
    found = {name: p.grad for name, p in layer.named_parameters()} | {"x": x.grad}
    return {"out": out.detach(), **{name: gradient for name, gradient in found.items() if gradient is not None}}


def _dropout(setting: Setting) -> None:
    """Masks bit for bit, whatever the key's bits; and what is left of a layer's output."""
    rows = setting.pick(_ROWS, 64)
    units = setting.pick(4096, 100)
    extreme = torch.tensor([0, -1, 2**63 - 1, -(2**63), 2**32 - 1, 2**31])
    keys = torch.cat([extreme, dropout.row_keys(7, 123_456, torch.arange(rows) * 1_000_003)])
    other, x = 0, torch.randn(len(keys), units, generator=torch.Generator().manual_seed(6))
    for layer, share in ((1, 0.5), (2, 0.5), (2, 0.1), (3, 0.7)):
        mask = dropout.kept(keys, layer, units, share)
        other += compare.differing({"mask": dropout.kept(keys.to(setting.device), layer, units, share)}, {"mask": mask})
        there = dropout.drop(x.to(setting.device), keys.to(setting.device), layer, share)
        other += compare.differing({"x": there}, {"x": dropout.drop(x, keys, layer, share)})
    setting.report.check(f"dropout: elements unlike the CPU's, of {len(keys)} rows and 3 layers", other, most=0)


def _dense(setting: Setting) -> None:
    s = made.settings(setting, "D", 8)
    net = made.net(setting, s).to(setting.device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    images = made.images(setting, s, s.batch).to(setting.device, memory_format=torch.channels_last)
    with torch.inference_mode():
        dense, plain = net.dense()(images).mean(dim=(2, 3)), net(images)
    setting.report.check("D: the dense form's scores of crops", compare.relative(dense, plain), most=_DENSE_MOST)
