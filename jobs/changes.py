"""`--set key.path=value`: changes of a job file, on the command line; pure."""

from collections.abc import Sequence
from dataclasses import replace

from jobs import document, problems
from jobs.document import Node, Path, Place, Problem, dotted, told
from pipelines.errors import SettingsError

_WHAT = {"stages": "stage", "evaluations": "test"}  # mappings whose keys a user chooses


def parsed(texts: Sequence[str]) -> list[Node]:
    """A node for each; its path is not split into keys yet. Raises SettingsError, of all of them at once."""
    wrong, found = [], []
    for i, text in enumerate(texts):
        place = Place(f"--set {_one_line(text)}", turn=i + 1)
        key, equals, value = text.partition("=")
        if not equals or not all(part.strip() for part in key.split(".")):
            wrong.append(Problem(place, (), "expected key.path=value, such as train.epochs=10"))
            continue
        if (character := document.forbidden(key)) is not None:
            wrong.append(Problem(place, (), f"no key and no setting may have the character {character!a}"))
            continue
        try:
            path = tuple(part.strip() for part in key.split("."))
            node = document.read(value, place, path)
            found.append(node or Node(None, place, place, path))
        except SettingsError as error:
            wrong.append(Problem(place, (), str(error).removeprefix(f"{place}: ")))
    if wrong:
        raise told(wrong)
    return found


def apply(root: Node, change: Node) -> Node:
    """Raises SettingsError: there is no such stage or list item, or the path goes on below what is no mapping."""
    return _changed(root, [str(part) for part in change.path], (), change)


def waits(root: Node, change: Node) -> bool:
    """Whether it is of a stage that is not written, but that a sweep may make."""
    stages = root.child("stages")
    if change.path[0] != "stages" or len(change.path) < 3 or stages is None:
        return False
    return not any(dotted(change.path[1:n]) in stages.children for n in range(2, len(change.path)))


def path_of(root: Node, key: str) -> Path | None:
    """The path in the tree that a dotted text begins with; None if not even its first word is there."""
    path: Path = ()
    node, parts = root, key.split(".")
    while parts and isinstance(node.value, dict):
        count = next((n for n in range(len(parts), 0, -1) if ".".join(parts[:n]) in node.children), None)
        if count is None:
            break
        path, parts = (*path, ".".join(parts[:count])), parts[count:]
        node = node.children[str(path[-1])]
    return (*path, *parts) if path else None


def _changed(node: Node, parts: Sequence[str], path: Path, change: Node) -> Node:
    if not parts:
        return _moved(change, path)
    if isinstance(node.value, list):
        return _changed_item(node, parts, path, change)
    if not isinstance(node.value, dict) and node.value is not None:
        raise _refused(change, f"{dotted(path)} is {_kind(node.value)} and no mapping")
    # A name may have points in it, as in deep-0.01.
    count = next((n for n in range(len(parts), 0, -1) if ".".join(parts[:n]) in node.children), 1)
    key = ".".join(parts[:count])
    below = node.child(key)
    if below is None:
        if len(path) == 1 and path[0] in _WHAT and len(parts) > 1:
            raise _refused(change, problems.nothing(_WHAT[path[0]], key, node.children))
        below = Node(None, change.place, change.place, (*path, key))
    return _with(node, key, _changed(below, parts[count:], (*path, key), change), change)


def _with(node: Node, key: str, child: Node, change: Node) -> Node:
    if node.value is None:  # made by this change
        node = replace(node, value={}, place=change.place)
    return node.with_child(key, child)


def _changed_item(node: Node, parts: Sequence[str], path: Path, change: Node) -> Node:
    count = len(node.items)
    at = int(parts[0]) if parts[0].isascii() and parts[0].isdigit() and len(parts[0]) < 9 else count
    if at >= count:
        have = f"items 0 to {count - 1}" if count else "no items"
        raise _refused(change, f"{dotted(path)} is a list with {have}, not {parts[0]!r}")
    return node.with_child(at, _changed(node.items[at], parts[1:], (*path, at), change))


def _moved(node: Node, path: Path) -> Node:
    """The same with another path."""
    if isinstance(node.value, dict):
        return replace(node, path=path, value={key: _moved(child, (*path, key)) for key, child in node.value.items()})
    if isinstance(node.value, list):
        return replace(node, path=path, value=[_moved(item, (*path, i)) for i, item in enumerate(node.value)])
    return replace(node, path=path)


def _refused(change: Node, message: str) -> SettingsError:
    return told([Problem(change.place, change.path, message)])


def _kind(value: object) -> str:
    return problems.shown_text(value) if isinstance(value, str) else "one value"


def _one_line(text: str) -> str:
    return " ".join(text.encode(errors="backslashreplace").decode().split())
