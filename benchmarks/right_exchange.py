"""The part `right`, of the exchange of gradients by their factors (see `cluster.factors`): what a GPU multiplies, and
the gathering over NCCL, with one worker."""

import copy

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from benchmarks import compare, made
from benchmarks.setting import Setting
from cluster import dropout, factors
from cluster.factors import Factors
from cluster.vgg import VGG

_LAYERS = ("fc1", "fc2", "fc3")
_MOST = {"float32": 1e-6, "bf16": 1e-2}  # plain gradients are rounded to bf16


def check(setting: Setting) -> None:
    """Gradients of a batch in two pieces, by factors and by plain autograd."""
    s = made.settings(setting, "A", setting.pick(16, 4))
    images, keys = made.images(setting, s, s.batch), dropout.row_keys(7, 3, torch.arange(s.batch))
    images = images.to(setting.device, memory_format=torch.channels_last)
    net = made.net(setting, s).to(setting.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    for precision, most in _MOST.items():
        by_factors = copy.deepcopy(net)
        method = Factors(by_factors, _LAYERS, setting.world)
        found = _gradients(by_factors, images, keys.to(setting.device), precision == "bf16", method)
        plain = _gradients(copy.deepcopy(net), images, keys.to(setting.device), precision == "bf16", None)
        name = f"A: gradients of FC layers by factors, {precision}"
        setting.report.check(name, compare.worst(found, plain), most=most)
    _gathering(setting)


def _gradients(net: VGG, images: Tensor, keys: Tensor, bf16: bool, method: Factors | None) -> dict[str, Tensor]:
    net.train()
    if method:
        method.begin([len(images)])
    half = len(images) // 2
    for piece in (slice(0, half), slice(half, None)):
        with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
            scores = net(images[piece], keys[piece]).float()
        if method and piece.start:
            method.last()
        losses = F.cross_entropy(scores, torch.arange(len(scores), device=scores.device), reduction="sum")
        (losses / len(images)).backward()  # type: ignore[no-untyped-call]
    if method:
        method.settle(1)
    state = dict(net.named_parameters())
    gradients = {f"{layer}.{kind}": state[f"{layer}.{kind}"].grad for layer in _LAYERS for kind in ("weight", "bias")}
    return {name: gradient for name, gradient in gradients.items() if gradient is not None}


def _gathering(setting: Setting) -> None:
    backend = "nccl" if setting.cuda else "gloo"
    store = dist.FileStore(str(setting.folder / "gathering"), 1)  # type: ignore[attr-defined]
    dist.init_process_group(backend, store=store, rank=0, world_size=1)
    try:
        own = torch.randn(5, 7, device=setting.device).bfloat16()
        whole = torch.empty_like(own)
        factors.all_gather_single(whole, own, async_op=True).wait()  # type: ignore[attr-defined]
        other = compare.differing({"rows": whole}, {"rows": own})
        setting.report.check(f"numbers with other bits, gathered by {backend}", other, most=0)
    finally:
        dist.destroy_process_group()
