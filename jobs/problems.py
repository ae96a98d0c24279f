"""What a job file's content has wrong, in words: keys that are none, values that a setting does not take."""

import difflib
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from jobs import shape
from jobs.document import Node, Path, Problem

_LONGEST = 40  # characters of a value that are shown
_MOST_NAMES = 10  # that are listed


def unknown_keys(node: Node, path: Path = ()) -> Iterator[Problem]:
    """`path`: as the models have it; sweeps are told of in the same way."""
    known = shape.keys(path) if isinstance(node.value, dict) else None
    for key, child in node.children.items():
        if known is not None and key not in known:
            near = _near(key, known)
            meant = (*child.path[:-1], near) if near else None
            yield Problem(child.key, child.path, f"unknown key{_hint(key, near, known)}", meant)
        else:
            yield from unknown_keys(child, (*path, key))
    for i, item in enumerate(node.items):
        yield from unknown_keys(item, (*path, i))


def without_unknown_keys(node: Node, path: Path = ()) -> Node:
    if isinstance(node.value, list):
        return replace(node, value=[without_unknown_keys(item, (*path, i)) for i, item in enumerate(node.value)])
    if not isinstance(node.value, dict):
        return node
    known = shape.keys(path)
    kept = {key: child for key, child in node.value.items() if known is None or key in known}
    return replace(node, value={key: without_unknown_keys(child, (*path, key)) for key, child in kept.items()})


def of_validation(error: ValidationError, root: Node, base: Path = ()) -> Iterator[Problem]:
    """`root`: what was validated; `base`: where the models have it."""
    for detail in error.errors(include_url=False, include_input=False):
        loc = tuple(_known(detail["loc"], root, missing=detail["type"] == "missing"))
        yield from _of_detail(detail, root, loc, shape.at((*base, *loc)))


def located(root: Node, path: Path, message: str) -> Problem:
    """At the value that stands there, or else at the key of the nearest mapping around it."""
    node, count = root, 0
    for part in path:
        below = node.child(part)
        if below is None:
            break
        node, count = below, count + 1
    rest = path[count:]
    place = node.key if rest or isinstance(node.value, dict) else node.place
    return Problem(place, (*node.path, *rest), message)


def wrong(node: Node, kind: shape.Kind) -> Problem:
    """Of a value that is not of the kind."""
    near = difflib.get_close_matches(str(node.value), shape.choices(kind), n=1) if _is_word(node.value) else []
    hint = f"; did you mean {near[0]}?" if near else ""
    if node.path[:1] == (shape.TRAIN,) and isinstance(node.value, list) and shape.takes_one_value(kind):
        hint = "; values to be tried one by one are listed in a stage"
    return Problem(node.place, node.path, f"expected {shape.words(kind)}, not {shown(node)}{hint}")


def nothing(what: str, name: str, known: Iterable[str]) -> str:
    """Of a name that is none, with the nearest that is."""
    names = list(known)
    near = difflib.get_close_matches(name, names, n=1)
    some = ", ".join([*names[:_MOST_NAMES], *["..."] * (len(names) > _MOST_NAMES)])
    hint = f"did you mean {near[0]}?" if near else f"there are {some or 'none'}"
    return f"no {what} is called {shown_text(name)}; {hint}"


def shown_text(text: str) -> str:
    return repr(text) if len(text) <= _LONGEST else f"{text[:_LONGEST]!r}..."


def shown(node: Node) -> str:
    """A value, for a line of ours."""
    value = node.value
    match value:
        case dict():
            return "a mapping"
        case list():
            return "a list" if value else "an empty list"
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case float() if not math.isfinite(value):
            return {math.inf: ".inf", -math.inf: "-.inf"}.get(value, ".nan")
        case str():
            return shown_text(value)
    return repr(value)


def _of_detail(detail: ErrorDetails, root: Node, loc: Path, kind: shape.Kind) -> Iterator[Problem]:
    node = root.at(*loc)
    if detail["type"] == "missing":
        above = root.at(*loc[:-1]) or root
        yield Problem(above.key, (*above.path, loc[-1]), f"is missing; expected {shape.words(kind)}")
        return
    assert node is not None, "only keys that are missing are no part of what was validated"
    if detail["loc"][-1] == "[key]":
        yield Problem(node.key, node.path, f"expected {shape.words(shape.name_kind())}")
    elif detail["type"] == "value_error":
        yield from _of_check(str(detail["ctx"]["error"]), root, loc, node)
    elif detail["type"] == "too_short":
        yield Problem(node.place, node.path, "expected at least one, not none")
    elif not (isinstance(node.value, dict) and detail["type"] == "literal_error" and shape.is_model(kind)):
        yield wrong(node, kind)


def _of_check(text: str, root: Node, loc: Path, node: Node) -> Iterator[Problem]:
    """Of a check of ours: what was expected of a value, or what does not go together, a line for each."""
    for line in text.splitlines():
        own, colon, rest = line.partition(": ")
        if line.startswith("expected "):
            yield Problem(node.place, node.path, f"{line}, not {shown(node)}")
        elif colon and isinstance(node.value, dict):
            yield located(root, (*loc, *own.split(".")), rest)
        else:
            yield Problem(node.place, node.path, line)


def _known(loc: Sequence[str | int], root: Node, missing: bool) -> Iterator[str | int]:
    """A location of pydantic's without what it adds to paths: names of union members, `[key]`."""
    at = root
    for part in loc[:-1] if missing else loc:
        below = at.child(part)
        if below is not None:
            at = below
            yield part
    if missing:
        yield loc[-1]


def _near(key: str, known: Sequence[str]) -> str | None:
    """The key here that is meant, unless it is more likely that one of elsewhere is."""
    if begins := [other for other in known if other.startswith(f"{key}_")]:
        return begins[0]
    cutoff = 0.75 if shape.homes(key) else 0.6
    return next(iter(difflib.get_close_matches(key, known, n=1, cutoff=cutoff)), None)


def _hint(key: str, near: str | None, known: Sequence[str]) -> str:
    """The nearest key here, the place where the key belongs, or the nearest there; else all that are known here."""
    if near:
        return f"; did you mean {near}?"
    if homes := shape.homes(key):
        return f"; it belongs in {' or '.join(homes)}"
    if other := difflib.get_close_matches(key, shape.all_keys(), n=1, cutoff=0.75):
        return f"; did you mean {other[0]}, of {' or '.join(shape.homes(other[0]))}?"
    return f"; known are {', '.join(known)}"


def _is_word(value: Any) -> bool:
    return isinstance(value, str | bool)
