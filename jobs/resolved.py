"""Every setting of a job and its origin, as YAML that can be pasted: `epochs: 74  # job.yaml:7 (train)`; pure."""

from collections.abc import Iterator
from typing import Any

from jobs import environment, shape
from jobs.document import Node, Path, in_line
from jobs.schema import Written

_WIDEST = 60  # columns in front of an origin; lines that are longer push theirs aside


def lines(written: Written) -> list[str]:
    """Of the whole job; settings that nobody has set are marked as defaults."""
    found = list(_mapping(written.job.model_dump(by_alias=True, mode="json"), (), written.tree))
    width = max((len(text) for text, _ in found if len(text) <= _WIDEST), default=0)
    return [f"{text:<{width}}  # {origin}" if origin else text for text, origin in found]


def origin(node: Node | None) -> str:
    """In words; of a setting that is not written `default`."""
    if node is None:
        return "default"
    if node.note.startswith("recipe "):
        return f"{node.note}, {_where(node)}"
    return f"{_where(node)} ({node.note})" if node.note else _where(node)


def _where(node: Node) -> str:
    place = node.place
    return f"{place.source}:{place.line}" if place.line else place.source


def _mapping(content: dict[str, Any], path: Path, tree: Node) -> Iterator[tuple[str, str]]:
    """Lines, each with its origin; of a line that only opens a mapping there is none."""
    indent = "  " * len(path)
    for key, value in content.items():
        here = (*path, key)
        if isinstance(value, dict) and value:
            yield f"{indent}{_flow(key)}:", ""
            yield from _mapping(value, here, tree)
        else:
            yield f"{indent}{_flow(key)}: {_flow(_as_written(value, here))}", origin(tree.at(*here))


def _as_written(value: Any, path: Path) -> Any:
    """A range of one number is that number."""
    if isinstance(value, list) and shape.is_range(shape.at(path)) and len(set(value)) == 1:
        return value[0]
    return value


def _flow(value: Any) -> str:
    """In one line."""
    if isinstance(value, str):
        value = environment.escaped(value)
    elif isinstance(value, list):
        value = [environment.escaped(item) if isinstance(item, str) else item for item in value]
    return in_line(value)
