"""A trained net into a file for other programs, and for this one (`nets` reads .pth and .safetensors again).

.pth          torchvision's layout, a state dict for torch.load, which has a note of ours in its metadata (`exported`)
.safetensors  our layers' names, with that note and a seal (`sealed`)
.onnx         a graph that computes, too (`onnx_file`)
"""

import io
from collections import OrderedDict
from pathlib import PurePath

import torch
from torch import Tensor

from cluster import exported, published, sealed
from cluster.checkpoint import Card
from cluster.exported import Note
from cluster.nets import Trained
from pipelines.errors import SettingsError
from pipelines.location import Location

ENDINGS = (".pth", ".safetensors", ".onnx")


def ending(place: Location, dense: bool) -> str:
    """By which a file's kind is chosen. Raises SettingsError if there is none of this kind."""
    found = PurePath(place.path).suffix
    if found not in ENDINGS:
        raise SettingsError(f"{place}: the name has to end in {', '.join(ENDINGS[:-1])} or {ENDINGS[-1]}")
    if dense and found != ".onnx":
        raise SettingsError(f"{place}: a file of weights is of no form; dense is of .onnx alone")
    return found


def write(trained: Trained, place: Location, dense: bool = False) -> None:
    """By the name's ending, whole or not at all. `dense`: the fully convolutional form, of ONNX.

    Raises SettingsError, CheckpointError: there is no such file for such a net; and OSError.
    """
    kind = ending(place, dense)
    if kind == ".onnx":
        from cluster import onnx_file  # a slow import

        onnx_file.write(trained, place, dense)
    elif kind == ".pth":
        place.write(_state_dict(trained))
    else:
        tensors = {key: value.contiguous() for key, value in trained.weights.items()}
        place.write(*sealed.pack(tensors, exported.texts(_note(trained))))


def normalisation(card: Card) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of red, green and blue, of values from 0 to 1, as transforms.Normalize of torchvision takes
    them, for the pixels that the net was trained with."""
    return tuple(mean / 255 for mean in card.mean_rgb), (card.pixel_std / 255,) * 3


def _note(trained: Trained) -> Note:
    return Note(trained.card, trained.named, trained.errors)


def _state_dict(trained: Trained) -> memoryview:
    """Copied, since tensors of a checkpoint share one piece of memory, all of which torch would write."""
    state: OrderedDict[str, Tensor] = OrderedDict()
    for name, tensor in published.state_of(trained.weights, trained.card).items():
        state[name] = tensor.detach().clone(memory_format=torch.contiguous_format)
    state._metadata = OrderedDict({exported.KEY: exported.texts(_note(trained))})  # type: ignore[attr-defined]
    out = io.BytesIO()
    torch.save(state, out)
    return out.getbuffer()
