"""Other ways through a net's convolutions, which compute the same; measured beside the net's own (`VGG.features`)."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import compare, made
from benchmarks.setting import Setting
from cluster.table import convolutions
from cluster.vgg import VGG

_SCORES_MOST = 1e-4
_GRADIENTS_MOST = 0.05  # of float32; ReLUs and maxima that rounding tips: see gpu_right


@dataclass(frozen=True)
class Ways:
    """`channels`: of the images, those beyond three are zeros, as tensor cores take 8 at a time. `fused`: convolution,
    bias and ReLU in one kernel of cuDNN's. `late_bias`: behind the pool, where there is a quarter of the places.
    `relu_first`: before the pool, as the paper has it."""

    channels: int = 3
    fused: bool = False
    late_bias: bool = False
    relu_first: bool = False


WAYS = {
    "ReLU before the pool": Ways(relu_first=True),
    "convolution, bias and ReLU fused": Ways(fused=True),
    "fused, bias behind the pool": Ways(fused=True, late_bias=True),
    "images of 8 channels": Ways(channels=8),
    "bias behind the pool": Ways(late_bias=True),
    "images of 4 channels": Ways(channels=4),
}


class Contender(nn.Module):
    """The net with these ways, in training; its images are of the type that is computed in, which need not be the
    weights'."""

    def __init__(self, net: VGG, ways: Ways) -> None:
        super().__init__()
        self.net, self.ways = net, ways

    def forward(self, images: Tensor) -> Tensor:
        net = self.net
        x = self._features(images).flatten(1)
        for layer in (net.fc1, net.fc2):
            x = net.dropout(F.relu(layer(x)))
        return net.fc3(x)  # type: ignore[no-any-return]

    def _features(self, images: Tensor) -> Tensor:
        x, lacking = images, self.ways.channels - images.shape[1]
        if lacking:
            x = F.pad(x, (0, 0, 0, 0, 0, lacking)).contiguous(memory_format=torch.channels_last)
        for conv in convolutions(self.net.net):
            layer = self.net.get_submodule(conv.name)
            assert isinstance(layer, nn.Conv2d)
            assert layer.bias is not None
            weight = layer.weight
            if conv.name == "conv1_1" and lacking:
                weight = F.pad(weight, (0, 0, 0, 0, 0, lacking)).contiguous(memory_format=torch.channels_last)
            x = self._block(x, weight.to(x.dtype), layer.bias.to(x.dtype), conv.kernel // 2, conv.last)
        return x

    def _block(self, x: Tensor, weight: Tensor, bias: Tensor, padding: int, pooled: bool) -> Tensor:
        """Convolution, ReLU and, if it is `pooled`, the pool."""
        ways = self.ways
        if pooled and ways.late_bias:
            x = F.max_pool2d(F.conv2d(x, weight, padding=padding), 2)
            return F.relu(x + bias[:, None, None], inplace=True)
        if ways.fused or ways.relu_first:
            x = (
                _fused(x, weight, bias, padding)
                if ways.fused
                else F.relu(F.conv2d(x, weight, bias, padding=padding), True)
            )
            return F.max_pool2d(x, 2) if pooled else x
        x = F.conv2d(x, weight, bias, padding=padding)
        return F.relu(F.max_pool2d(x, 2) if pooled else x, inplace=True)


def _fused(x: Tensor, weight: Tensor, bias: Tensor, padding: int) -> Tensor:
    return _ConvolutionReLU.apply(x, weight, bias, padding)  # type: ignore[no-any-return, no-untyped-call]


class _ConvolutionReLU(torch.autograd.Function):
    """On a CPU, which has no such kernel, one after the other."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, padding: int) -> Tensor:
        if x.is_cuda:
            out = torch.ops.aten.cudnn_convolution_relu(x, weight, bias, [1, 1], [padding] * 2, [1, 1], 1)
        else:
            out = F.relu(F.conv2d(x, weight, bias, padding=padding))
        ctx.save_for_backward(x, weight, out)
        ctx.padding = padding
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, out = ctx.saved_tensors
        behind = torch.ops.aten.threshold_backward(gradients[0], out, 0)
        options = [len(weight)], [1, 1], [ctx.padding] * 2, [1, 1], False, [0, 0], 1
        found = torch.ops.aten.convolution_backward(behind, x, weight, *options, [ctx.needs_input_grad[0], True, True])
        return *found, None


def check(setting: Setting, name: str) -> None:
    """That scores and gradients are the net's own, in float32 without TF32."""
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    s = made.settings(setting, "D", 4, dropout=0.0)
    net = made.net(setting, s).to(setting.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = made.images(setting, s, s.batch).to(setting.device, memory_format=torch.channels_last)
    (expected, right), (scores, gradients) = (
        _passed(model, net, images) for model in (net, Contender(net, WAYS[name]))
    )
    setting.report.check(f"{name}: scores", compare.relative(scores, expected), most=_SCORES_MOST)
    setting.report.check(f"{name}: gradients", compare.worst(gradients, right), most=_GRADIENTS_MOST)


def _passed(model: nn.Module, net: VGG, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    net.train().zero_grad()
    scores = model(images)
    F.cross_entropy(scores, torch.arange(len(images), device=images.device)).backward()  # type: ignore[no-untyped-call]
    return scores.detach(), {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}
