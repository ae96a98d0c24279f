"""A net's first weights: random, and then what fits from another net."""

import math
from collections.abc import Iterable, Iterator, Mapping, Set

import torch
from torch import Tensor, nn

from cluster.layers import FC
from cluster.settings import StageSettings
from cluster.table import convolutions
from cluster.vgg import VGG
from pipelines.errors import CheckpointError

# "the first four convolutional layers and the last three fully-connected layers" (paper, section 3.1). A's first
# four are these, and by shape they fit the layers of the same names and no others.
_FROM_A = ("conv1_1", "conv2_1", "conv3_1", "conv3_2", *FC)


def random_net(s: StageSettings, classes: int) -> VGG:
    """A stage's net, before anything is copied to it; on the CPU."""
    net = VGG(s.net, classes, s.input_size, s.width, s.dropout, s.batch_norm)
    randomise(net, s.init.random, s.init.std, s.seed)
    return net


def randomise(net: VGG, how: str, std: float, seed: int) -> None:
    """`how`: "normal" (standard deviation `std`, the paper's way), "glorot", "kaiming" or "torchvision".

    Biases are 0.
    """
    generator = torch.Generator().manual_seed(seed)
    for layer in (*(net.get_submodule(c.name) for c in convolutions(net.net)), net.fc1, net.fc2, net.fc3):
        assert isinstance(layer, nn.Conv2d | nn.Linear)
        fan_in, fan_out = _fans(layer.weight)
        deviation = {
            "normal": std,
            "glorot": math.sqrt(2.0 / (fan_in + fan_out)),  # Glorot and Bengio 2010, equation 12
            "kaiming": math.sqrt(2.0 / fan_in),  # He et al. 2015, equation 10
            # torchvision/models/vgg.py: kaiming_normal_ with mode="fan_out", and normal_(0, 0.01) for linear layers
            "torchvision": math.sqrt(2.0 / fan_out) if isinstance(layer, nn.Conv2d) else std,
        }[how]
        with torch.no_grad():
            layer.weight.normal_(0.0, deviation, generator=generator)
            assert layer.bias is not None
            layer.bias.zero_()


def _fans(weight: Tensor) -> tuple[int, int]:
    window = weight[0, 0].numel() if weight.dim() == 4 else 1
    return weight.shape[1] * window, weight.shape[0] * window


def layers_to_copy(source: str, target: str) -> tuple[str, ...]:
    """The layers of configuration `target` that take the weights of `source`."""
    if source == target:
        return (*(c.name for c in convolutions(target)), *FC)
    if source in ("A", "A-LRN"):
        return _FROM_A
    kernels = {c.name: c.kernel for c in convolutions(source)}
    shared = (c.name for c in convolutions(target) if kernels.get(c.name) == c.kernel)
    return (*shared, *FC)


def copied(source: str, target: str, left_out: Set[str] = frozenset()) -> tuple[str, ...]:
    """The same, without layers that are left out: these stay random."""
    return tuple(name for name in layers_to_copy(source, target) if name not in left_out)


def to_be_equal(layers: Iterable[str]) -> Iterator[tuple[str, str | None]]:
    """What has to be equal in two nets so that these layers can be copied from one to the other, each with the layer
    that alone depends on it, if there is one."""
    names = set(layers)
    if names:
        yield "width", None
    if any(name.startswith("conv") for name in names):
        yield "batch_norm", None
    if "fc1" in names:
        yield "input_size", "fc1"
    if "fc3" in names:
        yield "classes", "fc3"


def copy_from(
    net: VGG, source: str, weights: Mapping[str, Tensor], left_out: Set[str] = frozenset(), gain: float = 1.0
) -> list[str]:
    """Copies into `net` what fits from `weights` of configuration `source`; returns the layers' names.

    A convolution comes with its batch norm. `gain`: what the weights of conv1_1 are multiplied by, since the pixels
    that the nets are fed differ by it: each one's `pixel_std`, this net's by that of the other. Raises CheckpointError
    if a layer that should fit does not, naming both shapes.
    """
    state = net.state_dict()
    names = copied(source, net.net, left_out)
    convs = any(name.startswith("conv") for name in names)
    if convs and not net.batch_norm and any(key.startswith("bn") for key in weights):
        raise CheckpointError("the net to start from has batch norm, this one has none: batch_norm must be equal")
    for key in (key for name in names for key in _keys(name, net.batch_norm)):
        if key not in weights:
            raise CheckpointError(f"the weights to start from lack {key}")
        if weights[key].shape != state[key].shape:
            raise CheckpointError(
                f"{key} has shape {tuple(weights[key].shape)} in the net to start from, "
                f"{tuple(state[key].shape)} in this one: input_size, width and classes must be equal"
            )
        state[key] = weights[key] * gain if key == "conv1_1.weight" else weights[key]
    net.load_state_dict(state)
    return list(names)


def _keys(layer: str, batch_norm: bool) -> list[str]:
    """Of a state dict: a layer's entries, and those of its batch norm."""
    own = [f"{layer}.weight", f"{layer}.bias"]
    if not batch_norm or not layer.startswith("conv"):
        return own
    norm = layer.replace("conv", "bn")
    return [*own, *(f"{norm}.{kind}" for kind in ("weight", "bias", "running_mean", "running_var"))]
