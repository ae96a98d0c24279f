"""What has to be done before what, and what is most urgent; pure.

`needs`: each node (a stage, say) to those that it waits for. Names that are no nodes count as done.
"""

from collections.abc import Collection, Mapping
from graphlib import TopologicalSorter

Needs = Mapping[str, Collection[str]]


def in_order(needs: Needs) -> list[str]:
    """The nodes, each after those that it needs, otherwise as written. Raises graphlib.CycleError."""
    position = {name: i for i, name in enumerate(needs)}
    sorter = TopologicalSorter({name: [other for other in needs[name] if other in needs] for name in needs})
    sorter.prepare()
    ordered: list[str] = []
    ready: list[str] = []
    while sorter.is_active():
        ready = sorted([*ready, *sorter.get_ready()], key=position.__getitem__)
        ordered.append(ready.pop(0))
        sorter.done(ordered[-1])
    return ordered


def above(needs: Needs, name: str) -> set[str]:
    """All that has to be done before `name`, near and far."""
    found: set[str] = set()
    todo = [name]
    while todo:
        new = {other for other in needs[todo.pop()] if other in needs} - found
        found |= new
        todo += new
    return found


def leaves(needs: Needs) -> list[str]:
    """Those that nothing waits for, as written."""
    waited_for = {other for others in needs.values() for other in others}
    return [name for name in needs if name not in waited_for]


def paths(needs: Needs, costs: Mapping[str, float]) -> dict[str, float]:
    """Of each node the cost of the longest path that begins with it: what delays it, delays all of that."""
    found: dict[str, float] = {}
    for name in reversed(in_order(needs)):
        found[name] = costs[name] + max((found[other] for other in needs if name in needs[other]), default=0.0)
    return found
