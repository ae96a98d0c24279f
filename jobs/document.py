"""A job file's text as a tree of values, each of which knows where it is written.

All that happens to a job file (changes of the command line, variables of the environment, sweeps, inheritance) makes a
new tree out of nodes of the old one, so that an error and the origin of a setting can be told at any time.
"""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import yaml

from pipelines.errors import SettingsError

Path = tuple[str | int, ...]  # of keys and numbers of list items, from the file's root
_LARGEST = 1 << 64  # of whole numbers: far beyond what any setting is good for, and still a float
_MOST_NODES = 20_000  # aliases of aliases can stand for more values than there are atoms


@dataclass(frozen=True)
class Place:
    """A position in a file, line and column counted from 1, or another source, such as `--set epochs=3`.

    `turn` orders sources in lists of errors: the file first, then changes as they are given.
    """

    source: str
    line: int = 0
    column: int = 0
    turn: int = 0

    def __str__(self) -> str:
        return f"{self.source}:{self.line}:{self.column}" if self.line else self.source

    @property
    def order(self) -> tuple[int, int, int]:
        return self.turn, self.line, self.column


@dataclass(frozen=True)
class Node:
    """A value: a scalar of YAML, a list of nodes, or a mapping of nodes.

    `place` is where it stands, `key` where its key stands (of a list's item the same), `path` its keys as written.
    `note` says for people what brought it here, beside its place: `train`, `sweep of deep`.
    """

    value: Any
    place: Place
    key: Place
    path: Path
    note: str = ""

    @property
    def children(self) -> dict[str, "Node"]:
        """Of a mapping; of all else none."""
        return self.value if isinstance(self.value, dict) else {}

    @property
    def items(self) -> list["Node"]:
        """Of a list; of all else none."""
        return self.value if isinstance(self.value, list) else []

    def child(self, part: str | int) -> "Node | None":
        if isinstance(part, int):
            return self.items[part] if 0 <= part < len(self.items) else None
        return self.children.get(part)

    def at(self, *path: str | int) -> "Node | None":
        """What stands there, if anything does."""
        found: Node | None = self
        for part in path:
            found = found.child(part) if found is not None else None
        return found

    def with_child(self, part: str | int, child: "Node") -> "Node":
        """With another value at a key of a mapping, old or new, or in the place of a list's item."""
        if isinstance(part, int):
            return replace(self, value=[*self.items[:part], child, *self.items[part + 1 :]])
        return replace(self, value={**self.children, part: child})

    def plain(self) -> Any:
        """As values of Python."""
        if isinstance(self.value, dict):
            return {key: child.plain() for key, child in self.value.items()}
        return [item.plain() for item in self.value] if isinstance(self.value, list) else self.value

    def leaves(self) -> Iterator["Node"]:
        """All scalars of it."""
        if isinstance(self.value, dict | list):
            for child in self.children.values() if isinstance(self.value, dict) else self.value:
                yield from child.leaves()
        else:
            yield self


@dataclass(frozen=True)
class Problem:
    """What is wrong with a job, where it is written. `meant`: the path that is likely what was meant instead."""

    place: Place
    path: Path
    message: str
    meant: Path | None = None

    def __str__(self) -> str:
        return f"{self.place}: {dotted(self.path)}: {self.message}" if self.path else f"{self.place}: {self.message}"


def told(problems: Sequence[Problem]) -> SettingsError:
    """One line each, in the order of the file, each once."""
    return SettingsError("\n".join(dict.fromkeys(map(str, sorted(problems, key=lambda problem: problem.place.order)))))


def dotted(path: Path) -> str:
    return ".".join(map(str, path))


def read(text: str, place: Place, path: Path = ()) -> Node | None:
    """YAML's values; None if there is nothing in it. `place`: of the file, or of all of it if it is no file's text.

    Raises SettingsError: not YAML, a key that stands twice, characters that no setting can have.
    """
    loader = None
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
        return None if root is None else _Builder(loader, place).node(root, path, None)
    except yaml.reader.ReaderError as error:
        before = text[: error.position] if isinstance(error.position, int) else ""
        line, column = before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1
        at = replace(place, line=line, column=column) if place.turn == 0 else place
        problem = f"not YAML: a character that may not be written as it is: {text[len(before)]!a}"
        raise told([Problem(at, (), problem)]) from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise told([Problem(_marked(place, mark), (), f"not YAML: {_legible(problem)}")]) from error
    except RecursionError as error:
        raise told([Problem(place, (), "not YAML that can be read: nested too deeply")]) from error
    finally:
        if loader is not None:
            loader.dispose()


def in_line(value: Any) -> str:
    """A value of Python as YAML in one line."""
    text: str = yaml.safe_dump(value, default_flow_style=True, width=10**9, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")


def scalar(text: str) -> Any:
    """What YAML takes a word for: a number, true or false, null, or text."""
    loader = _Loader("")
    try:
        tag = loader.resolve(yaml.ScalarNode, text, (True, False))  # type: ignore[no-untyped-call]
        value = loader.construct_object(yaml.ScalarNode(tag, text))
        return text if isinstance(value, int) and abs(value) > _LARGEST else value
    except (yaml.YAMLError, ValueError):
        return text
    finally:
        loader.dispose()


def forbidden(text: str) -> str | None:
    """The first character that no setting may have: texts become names of files, and lines for people."""
    return next((one for one in text if unicodedata.category(one) in ("Cc", "Cs", "Zl", "Zp")), None)


def _marked(place: Place, mark: yaml.Mark | None) -> Place:
    if mark is None or place.turn:
        return place
    return replace(place, line=mark.line + 1, column=mark.column + 1)


def _legible(text: str) -> str:
    return " ".join(text.encode(errors="backslashreplace").decode().split())


class _Loader(yaml.SafeLoader):
    """YAML 1.1 as PyYAML reads it, but 1e-3 is a number, as in YAML 1.2, and a date is text."""


_DATE, _FLOAT, _EQUALS = (f"tag:yaml.org,2002:{name}" for name in ("timestamp", "float", "value"))
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in known if tag not in (_DATE, _EQUALS)]
    for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    _FLOAT, re.compile(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$"), list("-+0123456789.")
)
_MERGE = "tag:yaml.org,2002:merge"
_MAPPING, _LIST = "tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"


class _Builder:
    """Values out of YAML's nodes. An alias becomes a copy: one of its uses can be changed without the others."""

    def __init__(self, loader: _Loader, place: Place) -> None:
        self._loader, self._place = loader, place
        self._count = 0
        self._open: list[yaml.Node] = []

    def node(self, found: yaml.Node, path: Path, key: Place | None) -> Node:
        place = _marked(self._place, found.start_mark)
        self._count += 1
        if self._count > _MOST_NODES:
            raise told([Problem(place, path, f"more than {_MOST_NODES} values, with all that aliases stand for")])
        if any(found is other for other in self._open):
            raise told([Problem(place, path, "an alias of what it stands in")])
        self._open.append(found)
        value = self._value(found, place, path)
        self._open.pop()
        return Node(value, place, key or place, path)

    def _value(self, found: yaml.Node, place: Place, path: Path) -> Any:
        if isinstance(found, yaml.ScalarNode):
            return self._scalar(found, place, path)
        if found.tag not in (_MAPPING, _LIST):
            raise told([Problem(place, path, f"not YAML that a job file may have: the tag {_legible(found.tag)}")])
        if isinstance(found, yaml.MappingNode):
            return self._mapping(found, path)
        return [self.node(item, (*path, i), None) for i, item in enumerate(found.value)]

    def _scalar(self, found: yaml.ScalarNode, place: Place, path: Path) -> Any:
        try:
            value = self._loader.construct_object(found)
        except (yaml.YAMLError, ValueError) as error:
            problem = getattr(error, "problem", None) or str(error)
            raise told([Problem(place, path, f"not YAML: {_legible(problem)}")]) from error
        if isinstance(value, bytes):
            raise told([Problem(place, path, f"not YAML that a job file may have: the tag {_legible(found.tag)}")])
        if isinstance(value, str):
            self._check(value, place, path)
        if isinstance(value, int) and abs(value) > _LARGEST:
            raise told([Problem(place, path, "no setting takes so large a number")])
        return value

    def _mapping(self, found: yaml.MappingNode, path: Path) -> dict[str, Node]:
        own: dict[str, Node] = {}
        merged: dict[str, Node] = {}
        for key, value in found.value:
            place = _marked(self._place, key.start_mark)
            if not isinstance(key, yaml.ScalarNode):
                raise told([Problem(place, path, "a key is one word, not a list or a mapping")])
            if key.tag == _MERGE:
                merged = {**self._merged(value, place, path), **merged}
                continue
            self._check(key.value, place, path)
            if key.value in own:
                first = own[key.value].key
                where = f", first in line {first.line}" if first.line else ""
                raise told([Problem(place, (*path, key.value), f"stands twice{where}")])
            own[key.value] = self.node(value, (*path, key.value), place)
        return {**merged, **own}

    def _merged(self, value: yaml.Node, place: Place, path: Path) -> dict[str, Node]:
        """Of `<<`: one mapping, or several, of which earlier ones are the stronger."""
        parts = value.value if isinstance(value, yaml.SequenceNode) else [value]
        found: dict[str, Node] = {}
        for part in reversed(parts):
            if not isinstance(part, yaml.MappingNode):
                raise told([Problem(place, (*path, "<<"), "expected a mapping, or a list of mappings")])
            found |= self.node(part, path, place).children
        return found

    @staticmethod
    def _check(text: str, place: Place, path: Path) -> None:
        if (character := forbidden(text)) is not None:
            raise told([Problem(place, path, f"no key and no setting may have the character {character!a}")])
