"""Sweeps by listing: `net: [B, C]` in the stage `deep` makes the stages `deep-B` and `deep-C`; pure.

Two lists make all pairs. A stage that starts from a sweep is made once for each of its members.
"""

import itertools
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import Any

from jobs import shape
from jobs.document import Node, Path, Problem

_MOST = 1000  # stages of one sweep
_FROM = ("init", "from")


@dataclass(frozen=True)
class Axis:
    """A setting of a stage, by its path in the stage, and its values, each with what it adds to the stage's name."""

    path: Path
    values: list[tuple[str, Node]]


@dataclass
class Expansion:
    """`stages`: each sweep's members in its place. `members`: of each sweep, what the member's name has behind the
    sweep's, and that name. `made`: what has become of each stage that is written."""

    stages: dict[str, Node] = field(default_factory=dict)
    made: dict[str, dict[str, Node]] = field(default_factory=dict)
    members: dict[str, dict[str, str]] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)


def expand(stages: Mapping[str, Node], train: Node | None) -> Expansion:
    """`stages`, `train`: as written."""
    found = Expansion()

    for name in stages:
        for each in _sources_first(name, stages, train, found):
            found.made[each] = _made(each, stages[each], _source(stages[each], train), found)
    for name in stages:
        for member, node in found.made[name].items():
            if member in found.stages:
                found.problems.append(
                    Problem(stages[name].key, stages[name].path, f"two stages would be called {member}")
                )
            found.stages.setdefault(member, node)
    return found


def with_members(names: Node, members: Mapping[str, Mapping[str, str]]) -> Node:
    """A list of names, sweeps replaced by all of their members."""
    items: list[Node] = []
    for item in names.items:
        swept = members.get(item.value) if isinstance(item.value, str) else None
        items += [replace(item, value=member) for member in swept.values()] if swept is not None else [item]
    return replace(names, value=items)


def _sources_first(name: str, stages: Mapping[str, Node], train: Node | None, found: Expansion) -> list[str]:
    """The stage, behind those that it starts from, near and far; without what is made already."""
    chain: list[str] = []
    at: Any = name
    while isinstance(at, str) and at in stages and at not in found.made:
        if at in chain:
            found.problems.append(_ring(chain[chain.index(at) :], stages))
            break
        chain.append(at)
        source = _source(stages[at], train)
        at = source.value if source is not None else None
    return chain[::-1]


def _ring(names: list[str], stages: Mapping[str, Node]) -> Problem:
    """Of stages that wait each for the next, and the last for the first."""
    at = min(range(len(names)), key=lambda i: stages[names[i]].key.order)
    ring = [*names[at:], *names[:at], names[at]]
    first = stages[ring[0]]
    return Problem(first.key, first.path, f"stages wait for each other: {' <- '.join(ring)}")


def _source(stage: Node, train: Node | None) -> Node | None:
    """What a stage says it starts from, by itself or by `train`."""
    found = stage.at(*_FROM)
    return found if found is not None or train is None else train.at(*_FROM)


def _made(name: str, stage: Node, source: Node | None, found: Expansion) -> dict[str, Node]:
    """The stages that one becomes: itself, if it has no list and does not start from a sweep."""
    axes: list[Axis] = []
    swept = found.members.get(source.value) if source is not None and isinstance(source.value, str) else None
    if source is not None and swept is not None:
        axes.append(Axis(_FROM, [(suffix, replace(source, value=member)) for suffix, member in swept.items()]))
    for axis in _axes(stage, ()):
        if axis.values:
            axes.append(replace(axis, values=list(_distinct(axis, found))))
        else:
            node = stage.at(*axis.path)
            assert node is not None
            found.problems.append(Problem(node.place, node.path, "an empty list makes no stage"))
            stage = _without(stage, axis.path)
    count = math.prod(len(axis.values) for axis in axes)
    if count > _MOST:
        found.problems.append(Problem(stage.key, stage.path, f"makes {count} stages; at most {_MOST}"))
        axes = [replace(axis, values=axis.values[:1]) for axis in axes]
    if not axes:
        return {name: stage}
    members: dict[str, str] = {}
    stages: dict[str, Node] = {}
    for chosen in itertools.product(*(axis.values for axis in axes)):
        suffix = "".join(f"-{word}" for word, _ in chosen)
        members[suffix.removeprefix("-")] = f"{name}{suffix}"
        member = stage
        for axis, (_, value) in zip(axes, chosen, strict=True):
            member = _with(member, axis.path, replace(value, note=f"sweep of {name}"))
        stages[f"{name}{suffix}"] = member
    found.members[name] = members
    return stages


def _axes(node: Node, path: Path) -> Iterator[Axis]:
    """The lists in the place of one value, in the order of the file."""
    for key, child in node.children.items():
        kind = shape.at(("stages", "", *path, key))
        if kind is None:
            continue
        if isinstance(child.value, dict):
            yield from _axes(child, (*path, key)) if shape.is_model(kind) else ()
        elif isinstance(child.value, list) and shape.takes_one_value(kind):
            if shape.is_range(kind) and not any(isinstance(item.value, list) for item in child.value):
                continue
            yield Axis((*path, key), [(_word(item, i), item) for i, item in enumerate(child.value)])


def _distinct(axis: Axis, found: Expansion) -> Iterator[tuple[str, Node]]:
    """Its values without those that would make stages of the same names."""
    words: set[str] = set()
    for word, node in axis.values:
        if word in words:
            found.problems.append(Problem(node.place, node.path, f"two stages would have {word} in the same name"))
        else:
            yield word, node
        words.add(word)


def _word(item: Node, number: int) -> str:
    """For a stage's name."""
    value: Any = item.plain()
    if isinstance(value, list) and all(type(end) is int for end in value):
        return "-".join(map(str, value))
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, int | float):
        return f"{value:.12g}" if isinstance(value, float) else str(value)[:50]
    if isinstance(value, str):
        stem = PurePosixPath(value).stem if "/" in value else value
        return re.sub(r"[^A-Za-z0-9._-]+", "-", stem) or str(number)
    return str(number)


def _with(node: Node, path: Path, value: Node) -> Node:
    """Mappings on the way that are not there are made."""
    head, rest = path[0], path[1:]
    below = node.child(head)
    if not rest:
        return node.with_child(head, value)
    if below is None or not isinstance(below.value, dict):
        below = Node({}, value.place, value.key, value.path[:-1])
    return node.with_child(head, _with(below, rest, value))


def _without(node: Node, path: Path) -> Node:
    head, rest = path[0], path[1:]
    below = node.child(head)
    if rest and below is not None:
        return node.with_child(head, _without(below, rest))
    return replace(node, value={key: child for key, child in node.children.items() if key != head})
