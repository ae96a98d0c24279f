"""Which part of a job is to begin next, and what a failure means for the others; pure.

Parts are stages, by their names, and tests. Each is waiting, under way, done, failed, or given up, since something
that it waits for has failed.
"""

from collections.abc import Collection, Mapping

from jobs import graph
from jobs.graph import Needs


class Chain:
    def __init__(self, needs: Needs, costs: Mapping[str, float], done: Collection[str] = ()) -> None:
        """`costs`: what is left to be done of each part, in a unit of the caller's. `done`: parts that are; parts that
        others need, but that are not among `needs`, count as done."""
        self._needs = needs
        self._urgency = graph.paths(needs, costs)
        self.done = {name for name in needs if name in done}
        self.running: set[str] = set()
        self.failed: dict[str, str] = {}  # and why
        self.given_up: dict[str, str] = {}  # and the failed part that it waits for

    @property
    def waiting(self) -> list[str]:
        """As written."""
        begun = {*self.done, *self.running, *self.failed, *self.given_up}
        return [name for name in self._needs if name not in begun]

    @property
    def over(self) -> bool:
        return not self.running and not self.waiting

    @property
    def ready(self) -> list[str]:
        """What may begin, the most urgent first: that with the longest path of work behind it; of equals, as
        written."""
        free = [name for name in self.waiting if self._missing(name) <= self.done]
        return sorted(free, key=lambda name: -self._urgency[name])

    def begin(self, name: str) -> None:
        assert name in self.ready
        self.running.add(name)

    def end(self, name: str) -> None:
        """It is done."""
        self.running.remove(name)
        self.done.add(name)

    def stop(self, name: str) -> None:
        """It was stopped, and waits to be gone on with: by another run, as a rule."""
        self.running.remove(name)

    def fail(self, name: str, why: str) -> list[str]:
        """Returns the parts that can't be done any more."""
        self.running.remove(name)
        self.failed[name] = why
        lost = [other for other in self.waiting if name in graph.above(self._needs, other)]
        self.given_up.update(dict.fromkeys(lost, name))
        return lost

    def _missing(self, name: str) -> set[str]:
        return {other for other in self._needs[name] if other in self._needs}
