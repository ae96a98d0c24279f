"""The part `right`, of the exchange of gradients by their factors (see `cluster.factors`), beside their sums: on one
worker, whose rows go through a process group of its own (over NCCL on a GPU), and on a worker for each GPU."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from benchmarks import compare, made
from benchmarks.setting import Setting
from cluster import bench_exchange, dropout, torchrun, turns
from cluster.factors import Factors
from cluster.layers import FC
from cluster.vgg import VGG

_MOST = {"float32": 1e-6, "bf16": 1e-2}  # sums are of gradients that are rounded to bf16
_FEWEST = 2  # workers of a rehearsal


def check(setting: Setting) -> None:
    """Gradients of a batch in two pieces, on one worker."""
    s = made.settings(setting, "A", setting.pick(16, 4))
    images, keys = made.images(setting, s, s.batch), dropout.row_keys(7, 3, torch.arange(s.batch))
    images = images.to(setting.device, memory_format=torch.channels_last)
    keys = keys.to(setting.device)
    net = made.net(setting, s).to(setting.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    with _group(setting) as backend:
        for precision, most in _MOST.items():
            bf16 = precision == "bf16"
            gathered = _gathered(setting, copy.deepcopy(net), images, keys, bf16)
            summed = _summed(setting, copy.deepcopy(net), images, keys, bf16)
            name = f"A: FC gradients, gathered as factors by {backend} and summed by it, {precision}"
            setting.report.check(name, compare.worst(gathered, summed), most=most)


def workers(setting: Setting) -> int:
    """Those of `check_many`: as many as there are GPUs, if these are several."""
    return torch.cuda.device_count() if setting.cuda else _FEWEST


def check_many(setting: Setting) -> None:
    """As `verydeep bench exchange` does it, in float32."""
    count = workers(setting)
    s = made.settings(setting, "A", 8 * count + 1, precision="float32")  # of which one worker has one more
    threads = max(1, setting.threads // count)
    task = turns.Task(
        settings=s,
        classes=made.classes(setting),
        ways=bench_exchange.WAYS,
        rounds=1,
        cuda=setting.cuda,
        threads=threads,
    )
    answer = torchrun.run(turns.__name__, task, count, setting.folder)
    (difference,) = answer["differences"].values()
    name = f"A: FC gradients by factors and by sums, of {count} workers"
    setting.report.check(name, difference, most=bench_exchange.TOLERANCE)


@contextmanager
def _group(setting: Setting) -> Iterator[str]:
    """A process group of this process alone, on its device; the backend's name."""
    backend = "nccl" if setting.cuda else "gloo"
    store = dist.HashStore()  # type: ignore[attr-defined]
    device = setting.device if setting.cuda else None
    dist.init_process_group(backend, store=store, rank=0, world_size=1, device_id=device)
    try:
        yield backend
    finally:
        dist.destroy_process_group()


def _gathered(setting: Setting, net: VGG, images: Tensor, keys: Tensor, bf16: bool) -> dict[str, Tensor]:
    method = Factors(net, FC, setting.world, grouped=True)
    method.begin([len(images)])
    _pass(net, images, keys, bf16, method)
    method.settle(1)
    return _gradients(net)


def _summed(setting: Setting, net: VGG, images: Tensor, keys: Tensor, bf16: bool) -> dict[str, Tensor]:
    devices = [setting.device] if setting.cuda else None
    _pass(DistributedDataParallel(net, device_ids=devices, gradient_as_bucket_view=True), images, keys, bf16)
    return _gradients(net)


def _pass(model: nn.Module, images: Tensor, keys: Tensor, bf16: bool, method: Factors | None = None) -> None:
    """Forward and backward, of one half and then the other."""
    model.train()
    half = len(images) // 2
    for piece in (slice(0, half), slice(half, None)):
        last = piece.start > 0
        with model.no_sync() if isinstance(model, DistributedDataParallel) and not last else nullcontext():
            with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
                scores = model(images[piece], keys[piece]).float()
            if method and last:
                method.last()
            losses = F.cross_entropy(scores, torch.arange(len(scores), device=scores.device), reduction="sum")
            (losses / len(images)).backward()  # type: ignore[no-untyped-call]


def _gradients(net: VGG) -> dict[str, Tensor]:
    wanted = [f"{layer}.{kind}" for layer in FC for kind in ("weight", "bias")]
    found = {name: net.get_parameter(name).grad for name in wanted}
    return {name: gradient.clone() for name, gradient in found.items() if gradient is not None}
