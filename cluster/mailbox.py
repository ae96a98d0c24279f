"""Between workers and the driver: records one way, the wish that they stop the other."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray
import ray.exceptions
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

Listen = Callable[[dict[str, Any]], None]

_QUIET_SECONDS = 60  # after which a person is told that workers say nothing; then after twice as long, and so on


class _Mailbox:
    """An actor on the driver's node: records in the order in which they came."""

    def __init__(self) -> None:
        self._records: list[dict[str, Any]] = []
        self._stop = False

    def put(self, record: dict[str, Any]) -> None:
        self._records.append(record)

    def take(self) -> list[dict[str, Any]]:
        records, self._records = self._records, []
        return records

    def ask_to_stop(self, stop: bool) -> None:
        self._stop = stop

    def asked_to_stop(self) -> bool:
        return self._stop


class Mailbox:
    """The driver's end; `actor` is for the workers. What the actor held is lost if it dies; it comes back empty."""

    def __init__(self, actor: Any) -> None:
        self.actor = actor
        self.controller: Any = None  # the handle, once it has told of itself

    def begin(self) -> None:
        """For a new controller and its workers."""
        self.controller = None
        self.actor.ask_to_stop.remote(False)

    def take(self) -> list[dict[str, Any]]:
        """The records that have come since the last call."""
        try:
            records = ray.get(self.actor.take.remote())
        except ray.exceptions.RayActorError:
            return []
        for record in records:
            if record["kind"] == "controller":
                self.controller = record["handle"]
        return [record for record in records if record["kind"] != "controller"]

    def ask_to_stop(self) -> None:
        self.actor.ask_to_stop.remote(True)


class Records:
    """What the mailbox holds, passed on; and that nothing has come for a long time."""

    def __init__(self, box: Mailbox, listen: Listen) -> None:
        self._box, self._listen = box, listen
        self._heard, self._patience = time.monotonic(), _QUIET_SECONDS

    def deliver(self, hear: Callable[[dict[str, Any], float], dict[str, Any] | None] = lambda r, _: r) -> None:
        now = time.monotonic()
        for record in self._box.take():
            heard = hear(record, now)
            if heard is not None:
                self._listen(heard)
            self._heard, self._patience = now, _QUIET_SECONDS
        if now - self._heard > self._patience:
            self._listen({"kind": "quiet", "seconds": self._patience})
            self._patience *= 2


@contextmanager
def mailbox() -> Iterator[Mailbox]:
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor = ray.remote(_Mailbox).options(num_cpus=0, max_restarts=-1, scheduling_strategy=here).remote()
    try:
        yield Mailbox(actor)
    finally:
        ray.kill(actor)
