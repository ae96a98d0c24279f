"""A job's nodes as a tree: each below the one that it starts from. Pure."""

from collections.abc import Iterator, Sequence

from jobs.line import Line

_DEEPEST = 5  # a chain is drawn no further to the right


def guides(lines: Sequence[Line], ascii_only: bool = False) -> Iterator[tuple[str, Line]]:
    """Each line once, after the one that it starts from, with what is drawn before its name. Nodes on which nothing
    rests, such as tests, come before their siblings."""
    below = _below(lines)
    todo: list[tuple[Line, str, str]] = [(line, "", "") for line in reversed(below.get(None, []))]
    bar, fork, corner = ("| ", "|-", "`-") if ascii_only else ("│ ", "├─", "└─")
    while todo:
        line, guide, rest = todo.pop()
        yield guide, line
        children = sorted(below.get(line.name, []), key=lambda child: child.name in below)
        rest = rest[: 2 * (_DEEPEST - 1)]
        for i, child in reversed(list(enumerate(children))):
            last = i == len(children) - 1
            todo.append((child, rest + (corner if last else fork), rest + ("  " if last else bar)))


def _below(lines: Sequence[Line]) -> dict[str | None, list[Line]]:
    """The lines by the one that they are drawn below: the first that they need, if it stands before them."""
    found: dict[str | None, list[Line]] = {}
    before: set[str] = set()
    for line in lines:
        parent = line.needs[0] if line.needs and line.needs[0] in before else None
        found.setdefault(parent, []).append(line)
        before.add(line.name)
    return found
