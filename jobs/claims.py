"""How many workers a further part of a run may begin with."""

import threading
from typing import Any

from cluster import launch, place
from cluster.mailbox import Listen
from cluster.place import Shape


class Claims:
    """What the parts that are under way take of the cluster. One that has begun, or lost its workers, is seen to occupy
    its places only after a while: until then they are counted as taken all the same."""

    def __init__(self, shape: Shape) -> None:
        self._shape = shape
        self._lock = threading.Lock()
        self._grows = True
        self._promised: dict[str, int] = {}
        self._at_work: dict[str, int] = {}

    def workers(self, test: bool) -> int:
        """With how many a stage, or a test, which does with fewer, may begin; 0: there is no room."""
        with self._lock:
            unseen = sum(max(0, most - self._at_work.get(name, 0)) for name, most in self._promised.items())
            promised = sum(self._promised.values())
        if not promised:
            return self._shape.workers  # in turn, if need be: it waits for room itself
        least = 1 if test else self._shape.least
        room = launch.room(self._shape, test)
        return place.fits(max(room, self._to_come(promised, unseen)), unseen, least, self._shape.workers)

    def _to_come(self, promised: int, unseen: int) -> int:
        """Places that those under way leave of all that there could be: a cluster that grows does when more is asked
        for.

        Where nobody says how far, one part at a time finds out, and the next one asks when its workers are at work. If
        all asked at once, and the cluster were full, each would stand as running until it gave up, the workers'
        resources would be asked for many times over, and which part gets them would not go by urgency.
        """
        most = place.growth(self._shape) if self._grows else None
        if most is None or (most == place.UNKNOWN and unseen):
            return 0
        return most - promised + unseen

    def add(self, name: str, workers: int) -> Listen:
        """Of a part that begins; to be fed with its workers' records."""
        with self._lock:
            self._promised[name] = workers

        def hear(record: dict[str, Any]) -> None:
            with self._lock:
                match record["kind"]:
                    case "workers":
                        self._at_work[name] = record["count"]
                        self._promised[name] = min(workers, max(record["count"], self._shape.least))
                    case "tested":
                        self._at_work[name] = workers
                    case "lost":
                        self._at_work[name] = 0

        return hear

    def lacked_room(self) -> None:
        """The cluster did not grow when it was asked to: what is there from now on is what counts."""
        self._grows = False

    def remove(self, name: str) -> None:
        with self._lock:
            del self._promised[name]
            self._at_work.pop(name, None)
