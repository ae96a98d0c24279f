"""torchvision's published layout of VGG nets: its names, and the pixels that its nets take (pytorch/vision,
torchvision/models/vgg.py and transforms/_presets.py).

Its nets take RGB / 255, less a mean and divided by a deviation, a colour at a time. Ours take pixels less a mean and
divided by one number: here the mean of the three deviations. The rest, a factor for each colour, goes into the weights
of conv1_1, which is exact but for rounding, since in either case its padding is zero.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from cluster.checkpoint import Card
from cluster.table import BLOCK_WIDTHS, CONFIGURATIONS, FC_WIDTH, STRIDE, convolutions, hidden_widths
from pipelines.errors import CheckpointError

NETS = {"A": "vgg11", "B": "vgg13", "D": "vgg16", "E": "vgg19"}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # _presets.py: ImageClassification
_COUNTS = {len(list(convolutions(net))): net for net in NETS}

State = Mapping[str, Tensor]


def names(net: str, batch_norm: bool) -> dict[str, str]:
    """torchvision's names of a net's layers, by ours."""
    found, at = {}, 0
    for block, kernels in enumerate(CONFIGURATIONS[net], 1):
        for index in range(1, len(kernels) + 1):
            found[f"conv{block}_{index}"] = f"features.{at}"
            if batch_norm:
                found[f"bn{block}_{index}"] = f"features.{at + 1}"
            at += 3 if batch_norm else 2  # with the ReLU
        at += 1  # the pool
    return found | {"fc1": "classifier.0", "fc2": "classifier.3", "fc3": "classifier.6"}


def renamed(state: State, layers: Mapping[str, str]) -> dict[str, Tensor]:
    """`layers`: the new names by the old ones."""
    split = ((key.rpartition("."), value) for key, value in state.items())
    return {f"{layers[layer]}.{kind}": value for (layer, _, kind), value in split}


def card_of(state: State) -> Card:
    """What shapes tell of a net in this layout; of the rest, what torchvision's have. Its classes are numbered.

    Raises CheckpointError, without the file's name: it is of another kind, or not whole.
    """
    if "features.0.weight" not in state:
        first = next(iter(state), "nothing")
        raise CheckpointError(f"no VGG in torchvision's layout: it has no features.0.weight, but {first}")
    weights = [value for key, value in state.items() if key.startswith("features.") and value.dim() == 4]
    if len(weights) not in _COUNTS:
        counts = ", ".join(map(str, _COUNTS))
        raise CheckpointError(f"it has {len(weights)} convolutions; torchvision's nets have {counts}")
    net, batch_norm = _COUNTS[len(weights)], any(key.endswith("running_mean") for key in state)
    layers = names(net, batch_norm)
    blocks = {conv.block: _shape(state, layers[conv.name], 4)[0] for conv in convolutions(net)}
    hidden, columns = _shape(state, layers["fc1"], 2)
    side = math.isqrt(columns // blocks[5])
    if side < 1 or side**2 * blocks[5] != columns:
        raise CheckpointError(f"classifier.0 takes {columns} inputs, which {blocks[5]} square maps do not give")
    classes, _ = _shape(state, layers["fc3"], 2)
    size = side * STRIDE
    return Card(
        net,
        tuple(map(str, range(classes))),
        size,
        _width((*blocks.values(), hidden)),
        (255 * MEAN[0], 255 * MEAN[1], 255 * MEAN[2]),
        255 * sum(STD) / 3,
        (size * 8 // 7, size * 8 // 7),  # _presets.py: crops of 224 out of 256
        flip=True,
        batch_norm=batch_norm,
    )


def weights_of(state: State, card: Card) -> dict[str, Tensor]:
    """Under our names, in float32. Raises CheckpointError if they are not those of the card's net, naming the first."""
    layers = _layers(card)
    found = {key: value.float() if value.is_floating_point() else value for key, value in state.items()}
    if card.batch_norm:  # torch counts batches since its version 0.4.1 only
        counts = (f"{theirs}.num_batches_tracked" for own, theirs in layers.items() if own.startswith("bn"))
        found = {count: torch.tensor(0) for count in counts} | found
    with torch.device("meta"):
        expected = renamed(card.build().state_dict(), layers)
    model = f"{title(card)} of {len(card.classes)} classes"
    for key, value in found.items():
        if key not in expected:
            raise CheckpointError(f"it has {key}, which {model} has not")
        if value.shape != expected[key].shape:
            shapes = f"{tuple(value.shape)}, in {model} {tuple(expected[key].shape)}"
            raise CheckpointError(f"{key} is {shapes}")
        if value.dtype != expected[key].dtype:
            raise CheckpointError(f"{key} is of type {value.dtype}, in {model} {expected[key].dtype}")
    for key in expected:
        if key not in found:
            raise CheckpointError(f"it lacks {key}, which {model} has")
    return renamed(found, {theirs: own for own, theirs in layers.items()})


def coloured(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """For pixels that are divided by the mean of the deviations, the weights of a net for torchvision's."""
    factors = torch.tensor([sum(STD) / 3 / std for std in STD], dtype=torch.float64)
    first = weights["conv1_1.weight"]
    return weights | {"conv1_1.weight": (first * factors[:, None, None]).to(first.dtype)}


def state_of(weights: State, card: Card) -> dict[str, Tensor]:
    """Weights of ours in this layout. Raises CheckpointError: there is none for the net's configuration."""
    return renamed(weights, _layers(card))


def title(card: Card) -> str:
    """torchvision's name of such a net."""
    return f"{NETS[card.net]}{'_bn' if card.batch_norm else ''}"


def _layers(card: Card) -> dict[str, str]:
    if card.net not in NETS:
        raise CheckpointError(f"torchvision has no nets of configuration {card.net}, only of {', '.join(NETS)}")
    return names(card.net, card.batch_norm)


def _shape(state: State, layer: str, dimensions: int) -> tuple[int, ...]:
    weight = state.get(f"{layer}.weight")
    if weight is None:
        raise CheckpointError(f"it lacks {layer}.weight")
    if weight.dim() != dimensions:
        raise CheckpointError(f"{layer}.weight has {weight.dim()} dimensions, not {dimensions}")
    if not weight.numel():
        raise CheckpointError(f"{layer}.weight is empty, {tuple(weight.shape)}")
    return tuple(weight.shape)


def _width(widths: tuple[int, ...]) -> float:
    """The shortest number that gives them."""
    for digits in range(9):
        width = round(widths[-1] / FC_WIDTH, digits)
        if width > 0 and hidden_widths(width) == widths:
            return width
    raise CheckpointError(f"its layers' widths, {widths}, are no multiple of {(*BLOCK_WIDTHS, FC_WIDTH)}")
