"""Work on a data set's rows by all workers, piece by piece.

Workers are Ray actors that are handed the next piece when they are done with one, in the rows' order, and the results
come back in that order. No more than a few pieces are under way or wait for one before them, so memory is bounded; a
worker that is lost costs the piece that it was at; and workers that find no place are done without. Those that are left
do the next test's pieces, unless their places are needed.
"""

import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from typing import Any, TypeVar

import ray
import ray.exceptions

from cluster.interrupt import Stop
from cluster.mailbox import Listen, Records, mailbox
from cluster.place import Shape
from cluster.pool import Pool
from cluster.records import Log
from cluster.world import World
from pipelines.errors import TrainingError, VerydeepError
from pipelines.order import part

T = TypeVar("T")
Do = Callable[[range], T]  # one piece's result
Begin = Callable[[World, Log], Do[T]]  # on a worker, once: loads what every piece takes

_POLL_SECONDS = 0.25
_AHEAD = 2  # pieces a worker, under way or done, beyond the first that is missing
_IDLE_SECONDS = 10.0  # of a worker without a piece; then one that was lost, and is at a piece, may need its place

_pool = Pool()
rest, idle = _pool.rest, _pool.idle


def cut(rows: int, workers: int, most: int) -> list[range]:
    """Pieces of `rows`, in order, of at most `most` each and at most 1 apart: as many for each worker, unless there are
    more workers than rows."""
    n = min(rows, workers * -(-rows // (workers * most)))
    return [range(*part(rows, k, n)) for k in range(n)]


def over_pieces(
    begin: Begin[T], rows: int, most: int, on: Shape, listen: Listen, what: str, stop: Stop
) -> Generator[T]:
    """The results of all pieces, in order; to be closed. `begin` goes to the workers, pickled.

    Raises what a worker raises for the user, TrainingError that names `what` if it fails in another way, and
    KeyboardInterrupt when a stop is asked for.
    """
    todo = cut(rows, on.workers, most)
    with mailbox() as box:
        workers = _pool.hire(on, min(on.workers, len(todo)))
        crew = _Crew(workers, lambda worker, rows: worker.do.remote(begin, on.cpus, box.address, rows), todo)
        records = Records(box, listen)
        try:
            while not crew.finished:
                crew.go_on(_POLL_SECONDS)
                records.deliver()
                stop.heed()
                yield from crew.results()
        except ray.exceptions.RayError as error:
            if isinstance(cause := getattr(error, "cause", None), VerydeepError):
                raise cause from error
            raise TrainingError(f"{what}: {_last_line(error)}") from error
        finally:
            _pool.keep(on, crew.dismiss())


class _Crew:
    """Workers and the pieces that they are at. `start(worker, rows)`: Ray's reference of what will come of them."""

    def __init__(self, workers: list[Any], start: Callable[[Any, range | None], Any], todo: list[range]) -> None:
        self._start = start
        self._todo, self._most = deque(enumerate(todo)), _AHEAD * len(workers)
        self._at = {start(worker, None): (worker, -1) for worker in workers}  # by what will come of it
        self._idle: list[tuple[Any, float]] = []  # and since when
        self._done: dict[int, Any] = {}
        self._next, self._pieces = 0, len(todo)

    @property
    def finished(self) -> bool:
        """Whether all results were taken."""
        return self._next == self._pieces

    def go_on(self, seconds: float) -> None:
        """Waits for a result, at most so long, and hands out pieces. Raises RayError."""
        ready, _ = ray.wait(list(self._at), timeout=seconds)
        for reference in ready:
            result = ray.get(reference)
            worker, piece = self._at.pop(reference)
            if piece >= 0:
                self._done[piece] = result
            self._idle.append((worker, time.monotonic()))
        while self._idle and self._todo and self._todo[0][0] < self._next + self._most:
            number, rows = self._todo.popleft()
            worker, _ = self._idle.pop()
            self._at[self._start(worker, rows)] = (worker, number)
        if not self._todo:
            long = [worker for worker, since in self._idle if time.monotonic() - since > _IDLE_SECONDS]
            self._idle = [(worker, since) for worker, since in self._idle if worker not in long]
            _send_home(long)

    def results(self) -> Iterator[Any]:
        """Those that are there, up to the first that is missing."""
        while self._next in self._done:
            yield self._done.pop(self._next)
            self._next += 1

    def dismiss(self) -> list[Any]:
        """Ends those that are at a piece, or found no place, and returns the others."""
        _send_home([worker for worker, _ in self._at.values()])
        return [worker for worker, _ in self._idle]


def _send_home(workers: list[Any]) -> None:
    for worker in workers:
        ray.kill(worker)


def _last_line(error: BaseException) -> str:
    """The one that says what it is; the whole is in Ray's logs."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
