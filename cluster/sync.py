"""Delivers what processes that are gone left in a spool."""

from collections.abc import Callable
from dataclasses import dataclass

from cluster.deliver import Away, Delivery, connected
from cluster.spool import Call, Journal, Reader, left, running
from cluster.upload import drain
from pipelines.errors import ClusterError
from pipelines.location import Location, public


@dataclass(frozen=True)
class Synced:
    """How many calls were delivered, of how many runs, and how many are kept since they could not be."""

    calls: int = 0
    runs: int = 0
    kept: int = 0


def deliver(folder: Location, uri: str | None, tell: Callable[[str], None]) -> Synced:
    """`uri`: of another MLflow than the one that the calls are for. `tell` is given lines for people.

    Raises ClusterError: the storage cannot be read or written, or a process is at work there that delivers itself.
    """
    told: set[str] = set()

    def once(line: str) -> None:
        if line not in told:  # several journals are for the same server
            told.add(line)
            tell(line)

    try:
        if running(folder):
            raise ClusterError(f"{folder}: its job is being run, and delivers by itself")
        with left(folder) as readers:
            each = [_deliver(reader, folder, uri, once) for reader in readers if reader.waiting()]
    except OSError as error:
        raise ClusterError(f"storage: {folder} cannot be used: {error.strerror or error}") from error
    return Synced(sum(s.calls for s in each), sum(s.runs for s in each), sum(s.kept for s in each))


def _deliver(reader: Reader, folder: Location, uri: str | None, tell: Callable[[str], None]) -> Synced:
    to, put_off = uri or reader.uri, list[Call]()
    if to != reader.uri:
        reader.rewind()
    before = reader.waiting()
    runs = {line.call["run"] for line in reader.lines()}
    later: Journal | None = None

    def keep(call: Call) -> None:
        nonlocal later
        later = later or Journal(folder, to, reader.experiment)
        later.append(call)
        put_off.append(call)

    delivery: Delivery | None = None
    try:
        delivery = connected(to, reader.experiment)
        drain(reader, delivery, keep, lambda: True)
    except Away as error:
        tell(f"MLflow at {public(to)} {public(str(error))}")
    finally:
        if later is not None:
            later.close()
    for why in sorted(delivery.stuck) if delivery else ():
        tell(f"MLflow at {public(to)} cannot take {why}; it is kept")
    for why in delivery.refused if delivery else ():
        tell(f"MLflow at {public(to)} refuses {why}; it is left out")
    waiting = reader.waiting()
    delivered = before - waiting - len(put_off)
    return Synced(delivered, len(runs) if delivered else 0, waiting + len(put_off))
