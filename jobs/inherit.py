"""What a stage's settings are made of: its recipe, the job's `train`, its own; pure."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from cluster.settings import SCHEDULES
from jobs.document import Node
from jobs.recipes import RECIPES

RECIPE = "recipe"  # the key that names one, in `train` and in a stage


def stage(train: Node | None, own: Node) -> Node:
    """A stage with all that is said of it. A stage's recipe takes the place of that of `train`.

    A recipe that does not exist counts as none; the job's schema refuses it.
    """
    named = own.child(RECIPE) or (train.child(RECIPE) if train is not None else None)
    levels = [*_recipe(named), *([_noted(train, "train")] if train is not None else []), own]
    return replace(own, value=_merged([_without_recipe(level) for level in levels]))


def stages(train: Node | None, written: Mapping[str, Node]) -> dict[str, Node]:
    """All of them; one that says no net, nor does `train`, has that of the stage that it starts from."""
    found = {
        name: stage(train, own) if isinstance(own.value, dict) else own  # which the schema refuses
        for name, own in written.items()
    }
    for name in found:
        _give_net(name, found)
    return found


def _give_net(name: str, found: dict[str, Node]) -> None:
    """To all stages between this one and the first before it that says its net."""
    chain: dict[str, None] = {}
    at: Any = name
    while at in found and at not in chain and isinstance(found[at].value, dict) and found[at].child("net") is None:
        chain[at] = None
        source = found[at].at("init", "from")
        at = source.value if source is not None and isinstance(source.value, str) else None
    net = found[at].child("net") if at in found else None
    for each in chain if net is not None else ():
        assert net is not None
        found[each] = found[each].with_child("net", replace(net, note=f"as stage {at}"))


def _recipe(named: Node | None) -> list[Node]:
    if named is None or not isinstance(named.value, str) or named.value not in RECIPES:
        return []
    return [_of_recipe(RECIPES[named.value], named)]


def _of_recipe(value: Any, named: Node) -> Node:
    """At the place where the recipe is named."""
    if isinstance(value, Mapping):
        value = {key: _of_recipe(below, named) for key, below in value.items()}
    return Node(value, named.place, named.key, named.path, f"recipe {named.value}")


def _merged(levels: Sequence[Node]) -> dict[str, Node]:
    """Later levels over earlier ones; mappings inside are merged likewise.

    A level that chooses a schedule leaves the knobs of others behind.
    """
    result: dict[str, Node] = {}
    for level in levels:
        chosen = level.child("schedule")
        if chosen is not None and chosen.value is not None:
            result = {key: node for key, node in result.items() if key not in SCHEDULES or key == chosen.value}
        result = _over(result, level.children)
    return result


def _over(below: Mapping[str, Node], above: Mapping[str, Node]) -> dict[str, Node]:
    result = dict(below)
    for key, node in above.items():
        before = result.get(key)
        both = before is not None and isinstance(before.value, dict) and isinstance(node.value, dict)
        result[key] = replace(node, value=_over(before.children, node.children)) if both and before else node
    return result


def _without_recipe(level: Node) -> Node:
    return replace(level, value={key: node for key, node in level.children.items() if key != RECIPE})


def _noted(node: Node, note: str) -> Node:
    value = node.value
    if isinstance(value, dict):
        value = {key: _noted(child, note) for key, child in value.items()}
    return replace(node, value=value, note=note)
