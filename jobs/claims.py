"""How many workers a further part of a run may begin with."""

import threading
from typing import Any

from cluster import launch, place
from cluster.mailbox import Listen
from cluster.place import Shape


class Claims:
    """What the parts that are under way take of the cluster. A part that has begun is seen to occupy its places only
    after a while: until then what is free is counted less these."""

    def __init__(self, shape: Shape) -> None:
        self._shape = shape
        self._lock = threading.Lock()
        self._claimed: dict[str, int] = {}
        self._unsettled: set[str] = set()

    def workers(self, test: bool) -> int:
        """For a stage, or a test, which does with fewer; 0: there is no room."""
        with self._lock:
            claimed = sum(self._claimed.values())
            unsettled = sum(self._claimed[name] for name in self._unsettled)
        if not claimed:
            return self._shape.workers  # in turn, if need be: it waits for room itself
        least = 1 if test else self._shape.least
        return place.fits(
            place.total(self._shape), launch.room(self._shape, test), claimed, unsettled, least, self._shape.workers
        )

    def add(self, name: str, workers: int) -> Listen:
        """Of a part that begins; to be fed with its workers' records."""
        with self._lock:
            self._claimed[name] = workers
            self._unsettled.add(name)

        def hear(record: dict[str, Any]) -> None:
            if record["kind"] in ("workers", "tested"):
                with self._lock:
                    self._unsettled.discard(name)
                    if record["kind"] == "workers" and name in self._claimed:
                        self._claimed[name] = record["count"]

        return hear

    def remove(self, name: str) -> None:
        with self._lock:
            del self._claimed[name]
            self._unsettled.discard(name)
