"""One driver per job: who runs it holds a lease, a file in the job's folder that it renews; a dead one's expires.

    lease.json   who holds it, and a counter that every renewal raises
    stop.json    the wish that the one who holds it stops (`verydeep stop`)

Clocks of two hosts are never compared: a second driver watches whether the counter moves. On the holder's own machine
it sees at once whether that process is there, so that a driver that was killed and started again waits for nothing.

What is guaranteed. On a disk: of several drivers that begin at the same moment exactly one holds the lease, and none
that is alive and renews loses it. In object stores, and on disks without locks: see `slot`; two may hold it for one
renewal at most, then one of them stops. Everywhere: a driver that was asleep, or without its storage, for longer than
the lease lasts, and finds another's name in it, stops at once. Between waking and that look it could still write, so it
looks first (`Lease.check`) before what only the holder may do.
"""

import json
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace

from cluster.interrupt import Stop
from jobs.holder import Holder
from jobs.slot import Slot
from pipelines.errors import ClusterError, LeaseError, first_line
from pipelines.location import Location, persistently

LEASE, STOP = "lease.json", "stop.json"
RENEWAL_SECONDS, EXPIRY_SECONDS = 5.0, 20.0
LOOK_SECONDS = 1.0  # from one look at requests, or at another's lease, to the next
_SETTLE_SECONDS = 2.0
_LAST_SECONDS = 10.0  # for the renewal that goes on when the lease is given up

log = logging.getLogger(__name__)
Tell = Callable[[str], None]


def _now() -> float:
    """Seconds that go on while the machine is suspended."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@contextmanager
def held(root: Location, stop: Stop, holder: Holder, tell: Tell = log.warning) -> Iterator["Lease"]:
    """The lease of the job in the folder `root`, while the block lasts; `tell` gets lines for people.

    `stop` is asked for when `verydeep stop` asks, and at once when another driver has taken the lease. Raises
    LeaseError if another driver holds it, ClusterError if the storage cannot be read or written, and what `stop` ends
    with.
    """
    slot = Slot(root / LEASE)
    try:
        lease = Lease(root, _take(slot, root.name, holder, stop, tell), stop, tell)
    except OSError as error:
        raise ClusterError(f"storage: {slot.place} cannot be written: {first_line(error)}") from error
    thread = threading.Thread(target=lease.keep, name="lease", daemon=True)
    thread.start()
    try:
        yield lease
    finally:
        lease.give_up(thread)


@dataclass(frozen=True)
class Held:
    """What is in lease.json."""

    holder: Holder
    counter: int

    @classmethod
    def of(cls, text: str | None) -> "Held | None":
        """None if there is none, or it is damaged."""
        try:
            content = json.loads(text or "")
            return cls(Holder.of(content), int(content["counter"]))
        except (KeyError, TypeError, ValueError):
            return None

    @property
    def text(self) -> str:
        return json.dumps({**asdict(self.holder), "counter": self.counter}, indent=1) + "\n"


@dataclass
class Stillness:
    """How long a file has stayed as it is, as far as it was looked at: a gap in looking, while the storage was away or
    this process asleep, counts for nothing."""

    text: str | None = None
    since: float = 0.0
    looked: float = field(default=-2 * EXPIRY_SECONDS)

    def seconds(self, text: str | None) -> float:
        now = _now()
        if text != self.text or now - self.looked > EXPIRY_SECONDS / 2:
            self.text, self.since = text, now
        self.looked = now
        return now - self.since


def _take(slot: Slot, job: str, holder: Holder, stop: Stop, tell: Tell) -> Held:
    """Waits until another's lease has expired, if nobody renews it. Raises OSError, beside what `held` raises."""
    first: str | None = None
    still = Stillness()
    while True:
        if stop.asked:
            raise stop.error()
        text = persistently(slot.read, slot.place)
        if _free(text) or still.seconds(text) >= EXPIRY_SECONDS:
            mine = Held(holder, 0)
            if slot.swap(text, mine.text, _SETTLE_SECONDS):
                return mine
            continue
        other = Held.of(text)
        if other is not None and (other.holder.alive() or (first is not None and text != first)):
            raise LeaseError(
                f"job {job} is being run by {other.holder}, since {other.holder.since}; `verydeep stop` ends it"
            )
        if first is None:
            whom = other.holder if other else f"{slot.place}, which is damaged"
            tell(f"{job}: waits up to {EXPIRY_SECONDS:.0f} s to see whether it is still being run by {whom}")
            first = text
        time.sleep(LOOK_SECONDS)


def _free(text: str | None) -> bool:
    """Whether nobody has it, or one who was on this machine and is there no more."""
    other = Held.of(text)
    return text is None or (other is not None and other.holder.alive() is False)


class Lease:
    """One that is held; a thread of its own keeps it (`keep`), all threads may ask for it (`check`)."""

    def __init__(self, root: Location, mine: Held, stop: Stop, tell: Tell) -> None:
        self._slot, self._requests = Slot(root / LEASE), Slot(root / STOP)
        self._job, self._mine, self._stop, self._tell = root.name, mine, stop, tell
        self._renewed = _now()
        self._lost: str | None = None
        self._failing = False
        self._ended = threading.Event()
        self._turn = threading.Lock()

    @property
    def lost(self) -> bool:
        """Another driver is known to have it."""
        return self._lost is not None

    def check(self) -> None:
        """Before what only the holder may do, such as finishing a stage. From memory, unless the last renewal is too
        long ago to know.

        Raises LeaseError: another driver has it. ClusterError: the storage cannot be reached to find out.
        """
        if self._lost is None and _now() - self._renewed > 2 * RENEWAL_SECONDS:
            try:
                persistently(self._renew, self._slot.place)
            except OSError as error:
                raise ClusterError(f"storage: {self._slot.place} cannot be reached: {first_line(error)}") from error
        if self._lost is not None:
            raise LeaseError(self._lost)

    def keep(self) -> None:
        """Renews it, and hears of requests to stop, until it is given up or lost."""
        while not self._ended.wait(LOOK_SECONDS) and self._lost is None:
            try:
                self._hear()
                if _now() - self._renewed >= RENEWAL_SECONDS:
                    self._renew()
            except OSError as error:  # it may come back
                if not self._failing:
                    self._tell(f"{self._slot.place} cannot be renewed, tries go on: {first_line(error)}")
                self._failing = True

    def give_up(self, thread: threading.Thread) -> None:
        """At the end, for the next driver; `thread`: that runs `keep`."""
        self._ended.set()
        thread.join(_LAST_SECONDS)
        if self._lost is not None:
            return
        try:
            if self._is_mine(self._requests.read()):
                self._requests.place.delete()
            if self._is_mine(text := self._slot.read()):
                self._slot.swap(text, None)
        except OSError as error:
            self._tell(f"{self._slot.place} cannot be deleted, and expires: {first_line(error)}")

    def _renew(self) -> None:
        with self._turn:
            if self._ended.is_set():
                return  # it is given up
            text, now = self._slot.read(), _now()
            if not self._is_mine(text):
                other = Held.of(text)
                if other is not None or now - self._renewed > EXPIRY_SECONDS:
                    self._lose(other)
                    return  # otherwise somebody deleted or damaged it, and it is put back
            after = replace(self._mine, counter=self._mine.counter + 1)
            if self._slot.swap(text, after.text):
                self._mine, self._renewed, self._failing = after, _now(), False

    def _lose(self, other: Held | None) -> None:
        whom = f": {other.holder}, since {other.holder.since}" if other else " meanwhile"
        self._lost = f"another driver has taken over job {self._job}{whom}"
        self._stop.ask(self._lost, at_once=True)

    def _hear(self) -> None:
        if self._is_mine(request := self._requests.read()):
            content = json.loads(request or "")
            self._stop.ask(f"asked by `verydeep stop` from {content.get('host')}", at_once=content.get("now") is True)

    def _is_mine(self, text: str | None) -> bool:
        """Whether the file has this lease's id."""
        try:
            return bool(json.loads(text or "")["id"] == self._mine.holder.id)
        except (KeyError, TypeError, ValueError):
            return False


def ask_to_stop(root: Location, held: Held, now: bool) -> None:
    """A wish to whoever holds this lease, and to no later one. `now`: without a checkpoint. Raises OSError."""
    content = {"id": held.holder.id, "host": socket.gethostname(), "now": now}
    (root / STOP).write((json.dumps(content) + "\n").encode())


def look(root: Location) -> Holder | None:
    """Who runs the job in the folder `root`. Of a driver elsewhere it is waited for 20 s at most, whether it
    renews its lease. Raises OSError."""
    slot, still = Slot(root / LEASE), Stillness()
    first = text = persistently(slot.read, slot.place)
    while (held := Held.of(text)) is not None:
        alive = held.holder.alive()
        if alive is not None or text != first:
            return held.holder if alive is not False else None
        if still.seconds(text) >= EXPIRY_SECONDS:
            return None
        time.sleep(LOOK_SECONDS)
        text = persistently(slot.read, slot.place)
    return None
