"""The order of stages; pure."""

from collections.abc import Mapping
from graphlib import TopologicalSorter


def in_order(sources: Mapping[str, str | None]) -> list[str]:
    """The stages, each after the one it starts from, otherwise as written. `sources`: stage to its source."""
    position = {name: i for i, name in enumerate(sources)}
    sorter: TopologicalSorter[str] = TopologicalSorter()
    for name, source in sources.items():
        sorter.add(name, *([source] if source is not None and source in sources else []))
    sorter.prepare()
    ordered: list[str] = []
    ready: list[str] = []
    while sorter.is_active():
        ready = sorted([*ready, *sorter.get_ready()], key=position.__getitem__)
        ordered.append(ready.pop(0))
        sorter.done(ordered[-1])
    return ordered
