"""Between workers and the driver: records one way, the wish that they stop the other."""

import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
import ray.exceptions
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

Listen = Callable[[dict[str, Any]], None]

_QUIET_SECONDS = 60  # after which a person is told that workers say nothing; then after twice as long, and so on


class _Office:
    """An actor on the driver's node with a box for each stage and test: its records in the order in which they came,
    and whether its workers should stop. One that dies comes back with its boxes empty."""

    def __init__(self) -> None:
        self._records: dict[str, list[dict[str, Any]]] = {}
        self._stop: set[str] = set()
        self._closed: set[str] = set()

    def put(self, box: str, record: dict[str, Any]) -> None:
        if box not in self._closed:
            self._records.setdefault(box, []).append(record)

    def take(self, box: str) -> list[dict[str, Any]]:
        return self._records.pop(box, [])

    def ask_to_stop(self, box: str, stop: bool) -> None:
        (self._stop.add if stop else self._stop.discard)(box)

    def asked_to_stop(self, box: str) -> bool:
        return box in self._stop

    def close(self, box: str) -> None:
        """What its workers still say is dropped."""
        self._closed.add(box)
        self._records.pop(box, None)
        self._stop.discard(box)


@dataclass(frozen=True)
class Address:
    """A box, for workers. What is asked of it comes as Ray's reference."""

    office: Any
    box: str

    def put(self, record: dict[str, Any]) -> Any:
        return self.office.put.remote(self.box, record)

    def asked_to_stop(self) -> Any:
        return self.office.asked_to_stop.remote(self.box)


class Mailbox:
    """The driver's end; `address` is for the workers. What the box held is lost if its actor dies."""

    def __init__(self, address: Address) -> None:
        self.address = address

    def begin(self) -> None:
        """For new workers."""
        self.ask_to_stop(False)

    def take(self) -> list[dict[str, Any]]:
        """The records that have come since the last call."""
        try:
            return list(ray.get(self.address.office.take.remote(self.address.box)))
        except ray.exceptions.RayActorError:
            return []

    def ask_to_stop(self, stop: bool = True) -> None:
        self.address.office.ask_to_stop.remote(self.address.box, stop)


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
            if record["kind"] != "system":  # a node has something to tell though its workers hang
                self._heard, self._patience = now, _QUIET_SECONDS
        if now - self._heard > self._patience:
            self._listen({"kind": "quiet", "seconds": self._patience})
            self._patience *= 2


@contextmanager
def mailbox() -> Iterator[Mailbox]:
    """In any thread of the driver; all of a connection to Ray share one process."""
    address = Address(_offices(), uuid.uuid4().hex[:8])
    try:
        yield Mailbox(address)
    finally:
        address.office.close.remote(address.box)


class _PerConnection:
    """The office of the connection to Ray that there is; it ends with it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._connection, self._office = "", None

    def __call__(self) -> Any:
        with self._lock:
            if self._connection != (connection := ray.get_runtime_context().namespace):
                here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
                office = ray.remote(_Office).options(num_cpus=0, max_restarts=-1, scheduling_strategy=here)
                self._connection, self._office = connection, office.remote()
            return self._office


_offices = _PerConnection()
