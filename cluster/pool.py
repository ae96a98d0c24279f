"""Processes that do a test's pieces, kept from one test to the next: to start one takes seconds."""

import threading
from typing import Any

import ray

from cluster.place import Shape
from cluster.worker import PieceWorker

_RETRIES = 3  # of a piece whose worker is lost


class Pool:
    """Those of the connection to Ray that there is; for all threads of the driver."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._connection = ""
        self._idle: list[tuple[tuple[int, int], Any]] = []

    def hire(self, on: Shape, count: int) -> list[Any]:
        """Workers that have nothing to do, and new ones, which may have to wait for their places."""
        with self._lock:
            self._forget()
            own = [each for each in self._idle if each[0] == _size(on)][:count]
            self._idle = [each for each in self._idle if each not in own]
        new = ray.remote(PieceWorker).options(
            num_cpus=on.cpus, num_gpus=on.gpus, max_restarts=-1, max_task_retries=_RETRIES
        )
        return [worker for _, worker in own] + [new.remote() for _ in range(count - len(own))]

    def keep(self, on: Shape, workers: list[Any]) -> None:
        """For the next test. They keep their places, too, until `rest`."""
        with self._lock:
            self._forget()
            self._idle += [(_size(on), worker) for worker in workers]

    def idle(self, on: Shape) -> int:
        """How many there are for such a test."""
        with self._lock:
            self._forget()
            return sum(size == _size(on) for size, _ in self._idle)

    def rest(self) -> None:
        """Gives the places of all that have nothing to do back to the cluster."""
        if not ray.is_initialized():
            return
        with self._lock:
            self._forget()
            idle, self._idle = self._idle, []
        for _, worker in idle:
            ray.kill(worker)

    def _forget(self) -> None:
        """What an earlier connection has ended."""
        if self._connection != (connection := ray.get_runtime_context().namespace):
            self._connection, self._idle = connection, []


def _size(on: Shape) -> tuple[int, int]:
    return on.cpus, on.gpus
