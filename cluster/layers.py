"""The names by which settings speak of a net's layers: each layer's own, and those of groups of them; pure.

conv3_2, fc1           a layer
block1 ... block5      the convolutions between two pools
features, classifier   all convolutions, all fully-connected layers
"""

import difflib
import re
from collections.abc import Iterable, Mapping

from cluster.table import BLOCK_WIDTHS, convolutions

FC = ("fc1", "fc2", "fc3")


def of(net: str) -> tuple[str, ...]:
    """Of configuration `net`, from the image to the scores."""
    return (*(conv.name for conv in convolutions(net)), *FC)


def named(net: str) -> dict[str, tuple[str, ...]]:
    """Every name that settings may use, and the layers that it stands for; the narrowest come last."""
    convs = tuple(convolutions(net))
    return {
        "features": tuple(conv.name for conv in convs),
        "classifier": FC,
        **{f"block{b}": tuple(c.name for c in convs if c.block == b) for b in range(1, len(BLOCK_WIDTHS) + 1)},
        **{name: (name,) for name in of(net)},
    }


def unknown(net: str, names: Iterable[str]) -> str | None:
    """What is wrong with the first of `names` that is none; None if all are."""
    known = named(net)
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
            return f"{name!r} is no layer of net {net}; {hint}"
    return None


def chosen(net: str, names: Iterable[str]) -> frozenset[str]:
    """The layers that `names` stand for."""
    known = named(net)
    return frozenset(layer for name in names for layer in known[name])


def factors(net: str, by_name: Mapping[str, float]) -> dict[str, float]:
    """Each layer's factor: of the narrowest name that it goes by, or else 1."""
    found = dict.fromkeys(of(net), 1.0)
    for name, members in named(net).items():
        if name in by_name:
            found |= dict.fromkeys(members, by_name[name])
    return found


def layer_of(parameter: str) -> str:
    """The layer that a parameter (`conv1_1.weight`) belongs to; a convolution's normalisation (`norm1_1.weight`) is
    part of it."""
    return re.sub(r"^[a-z]+(?=\d+_\d+$)", "conv", parameter.partition(".")[0])
