"""The part `right`, of what a step does beside the net: pieces, equal bits, compiling, update, hashes, checkpoint."""

import copy
import math
import shutil
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks import compare, made
from benchmarks.setting import Piece, Setting
from cluster import checkpoint, exchange, optimise
from cluster.average import Average
from cluster.checkpoint import Card, Checkpoint, Progress
from cluster.settings import StageSettings
from cluster.step import Step
from cluster.vgg import VGG
from cluster.writer import Writer
from pipelines.errors import TrainingError
from pipelines.location import Location

_TIPPED_MOST = 0.05  # see gpu_right: ReLUs and maxima that rounding tips
_UPDATE_MOST = 1e-5
_NORM_MOST = 1e-6
_STEPS = 3
_EXACT = {"reproducible": "exact", "micro_batch": "auto"}  # pieces are virtual shards


def pieces(setting: Setting) -> tuple[Piece, ...]:
    """Those first that are worth most; to compile takes long."""
    parts: tuple[tuple[str, float, Callable[[Setting], None]], ...] = (
        ("micro-batches", 6, _micro_batches),
        ("exact twice", 6, _exact),
        ("compiled net", 20, _compiled),
        ("hashes of weights", 2, _hashes),
        ("update", 6, _update),
        ("checkpoint", 6, _checkpoint),
        ("compiled net, exact", 15, _compiled_exact),
    )
    return tuple(Piece(name, seconds, partial(call, setting)) for name, seconds, call in parts)


def _step(setting: Setting, s: StageSettings, net: VGG | None = None) -> tuple[VGG, Step]:
    own = (net or made.net(setting, s)).to(setting.device)
    return own, Step(own, setting.world, s, made.order(s))


def _gradients(setting: Setting, s: StageSettings, times: int = 1) -> dict[str, Tensor]:
    """Of the same batch; the last time's."""
    net, step = _step(setting, s)
    for _ in range(times):
        step.gradients(made.batch(setting, s), 2)
    return {name: p.grad.cpu() for name, p in net.named_parameters() if p.grad is not None}


def _micro_batches(setting: Setting) -> None:
    batch, piece = setting.pick(32, 6), setting.pick(9, 4)  # which does not divide the batch
    whole, cut = (
        _gradients(setting, made.settings(setting, "A", batch, precision="float32", micro_batch=n))
        for n in (batch, piece)
    )
    setting.report.check("A: gradients of micro-batches", compare.worst(cut, whole), most=_TIPPED_MOST)


def _exact(setting: Setting) -> None:
    """Not a bit may depend on anything but the job."""
    for precision in ("float32", "bf16"):
        s = made.settings(
            setting, "A", setting.pick(32, 10), precision=precision, virtual_shards=setting.pick(8, 2), **_EXACT
        )
        first, second = (_trained(setting, s) for _ in range(2))
        other = compare.differing(second, first)
        setting.report.check(f"A: weights with other bits after {_STEPS} exact steps, {precision}", other, most=0)


def _trained(setting: Setting, s: StageSettings) -> dict[str, Tensor]:
    net, step = _step(setting, s)
    optimiser = optimise.sgd(net, s)
    for number in range(_STEPS):
        step.gradients(made.batch(setting, s, seed=number), number)
        optimise.clip(net.parameters(), s.clip_norm)
        optimiser.step()
    return {name: tensor.cpu() for name, tensor in net.state_dict().items()}


def _update(setting: Setting) -> None:
    """The fused update of channels-last weights, and the gradient's norm, beside plain ones in float64."""
    # Gradients, before and after, of the size of the weights, so that these are rounded little when they are moved.
    s = made.settings(setting, "A", 2, clip_norm=float(setting.pick(5000, 300)))
    start = made.net(setting, s)
    net = copy.deepcopy(start).to(setting.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    twin = copy.deepcopy(start).double()
    optimiser, plain = optimise.sgd(net, s), optimise.sgd(twin, s)
    for group in plain.param_groups:
        group["fused"] = False
    for number in range(_STEPS):
        _draw_gradients(net, twin, seed=number)
        norms = [optimise.clip(n.parameters(), s.clip_norm) for n in (net, twin)]
        setting.report.check(f"A: the gradient's norm, step {number}", compare.relative(*norms), most=_NORM_MOST)
        optimiser.step()
        plain.step()
    moved = {name: p - start.get_parameter(name).double() for name, p in twin.named_parameters()}
    found = {name: p.cpu().double() - start.get_parameter(name).double() for name, p in net.named_parameters()}
    setting.report.check("A: the update", compare.worst(found, moved), most=_UPDATE_MOST)
    sums = compare.worst(optimise.momentum(optimiser, net), optimise.momentum(plain, twin))
    setting.report.check("A: the momentum", sums, most=_UPDATE_MOST)


def _draw_gradients(net: nn.Module, twin: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter, other in zip(net.parameters(), twin.parameters(), strict=True):
        drawn = torch.randn(parameter.shape, generator=generator)
        other.grad = drawn.double()
        parameter.grad = torch.empty_like(parameter).copy_(drawn)  # laid out in memory as the parameter is


def _checkpoint(setting: Setting) -> None:
    """Written where it was trained, and read: on the CPU, and back on the device into another net."""
    s = made.settings(setting, "A", setting.pick(16, 4), average_decay=0.9)
    net, step = _step(setting, s)
    optimiser, average = optimise.sgd(net, s), Average(net, s.average_decay)
    for number in range(2):
        step.gradients(made.batch(setting, s), number)
        optimiser.step()
        average.update(net, number + 1)
    names = tuple(map(str, range(made.classes(setting))))
    card = Card(s.net, names, s.input_size, s.width, (120.0,) * 3, 1.0, s.scale, True)
    folder = setting.folder / "checkpoint"
    writer = Writer(Location.of(str(folder)), keep=1)
    sums = optimise.momentum(optimiser, net)
    writer.save(Checkpoint(card, net.state_dict(), sums, average.weights, Progress(step=2), {}))
    writer.close()
    saved = checkpoint.newest(Location.of(str(folder)))
    assert saved is not None
    assert saved.average is not None
    shutil.rmtree(folder)
    other = compare.differing(saved.weights, net.state_dict()) + compare.differing(saved.momentum, sums)
    other += compare.differing(saved.average, average.weights)
    setting.report.check("A: numbers with other bits in a checkpoint", other, most=0)
    again, _ = _step(setting, s)
    again.load_state_dict(saved.weights)
    restored = optimise.sgd(again, s)
    optimise.restore(restored, again, saved.momentum)
    other = compare.differing(again.state_dict(), net.state_dict())
    other += compare.differing(optimise.momentum(restored, again), sums)
    setting.report.check("A: numbers with other bits in a net that goes on from it", other, most=0)


def _hashes(setting: Setting) -> None:
    """Of a weight as it lies in memory in training, beside the CPU's of the same one; and of it with a bit flipped."""
    weight = made.net(setting, made.settings(setting, "A", 2)).get_parameter("conv5_2.weight").detach()
    there = weight.to(setting.device, memory_format=torch.channels_last)
    right = int(exchange.hashed_on_device(weight))
    setting.report.check("hashes unlike the CPU's", int(exchange.hashed_on_device(there)) != right, most=0)
    bits = there.view(torch.int32)
    unnoticed = 0
    for bit in range(32):
        place = tuple(bit * 7 % side for side in bits.shape)
        before = int(bits[place])
        bits[place] = before ^ (1 << bit if bit < 31 else -(1 << 31))
        unnoticed += int(exchange.hashed_on_device(there)) == right
        bits[place] = before
    setting.report.check("bits flipped in a weight without another hash, of 32", unnoticed, most=0)


def _compiled(setting: Setting) -> None:
    """Two pieces to a batch, of two sizes: CUDA graphs use the memory of one for the next."""
    batch, piece = setting.pick(24, 6), setting.pick(16, 4)
    s = made.settings(setting, "A", batch, precision="float32", micro_batch=piece)
    _compare_compiled(setting, s, "A: gradients of the compiled net, CUDA graphs and micro-batches")


def _compiled_exact(setting: Setting) -> None:
    """Four virtual shards, and FC layers by their factors, which are left out of the compiled net."""
    batch = setting.pick(32, 8)
    s = made.settings(setting, "A", batch, precision="float32", virtual_shards=4, exchange="factors", **_EXACT)
    _compare_compiled(setting, s, "A: gradients of the compiled net, exact and by factors")


def _compare_compiled(setting: Setting, s: StageSettings, name: str) -> None:
    """Of a batch that is computed three times: the first passes are those that are captured."""
    if lacking := made.lacking_to_compile(setting):
        setting.report.note(f"{name}: left out, there is no {lacking} here")
        return
    expected = _gradients(setting, s)
    try:
        distance = compare.worst(_gradients(setting, s.model_copy(update={"compile": True}), times=3), expected)
    except TrainingError as error:  # they are far off, which is found before any step
        setting.report.note(f"{name}: {error}")
        distance = math.inf
    finally:
        torch.compiler.reset()  # and lets go of the memory of CUDA graphs
    setting.report.check(name, distance, most=_TIPPED_MOST)
