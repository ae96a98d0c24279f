"""What to do about what happens to the workers of a stage; pure: records and the time come in, decisions go out."""

from collections.abc import Collection
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from cluster.failure import DIED
from cluster.interrupt import Stop
from cluster.place import Shape
from cluster.settings import ClusterSettings

_REPEATS = 3  # failures in a row of one cause at one step: it would fail again
_DEATHS = 5  # the same where processes were ended from outside, which may be chance
_FAREWELL_SECONDS = 3.0  # for the other workers to end by themselves, when one has told of an error
_ROOM_SECONDS = 10.0  # that there has to be room before a run grows: nodes come and go
_COOL_DOWN_SECONDS = 60.0  # of training between two changes of size: one costs about ten


class How(Enum):
    FINISHED = "finished"
    STOPPED = "stopped"
    FAILED = "failed"


@dataclass(frozen=True)
class Ended:
    """How a worker's training ended, and why, unless it is finished."""

    how: How
    why: str = ""

    def plain(self) -> dict[str, str]:
        return {"how": self.how.value, "why": self.why}

    @classmethod
    def of(cls, plain: dict[str, str]) -> "Ended":
        return cls(How(plain["how"]), plain["why"])


PREEMPTED = "a node is being taken away"
ASKED = "asked to stop"
LOST_CONTROLLER = "the process that looks after the workers died"


class Move(Enum):
    WAIT = "let it run"
    STOP = "ask the workers to stop, with a checkpoint"
    ABORT = "end it at once"


@dataclass(frozen=True)
class Decision:
    move: Move
    why: str = ""
    lacks_room: bool = False


_WAIT = Decision(Move.WAIT)


@dataclass
class Course:
    """What a stage's workers went through so far. All times are seconds of one clock, which only goes forward."""

    on: Shape
    settings: ClusterSettings
    begun: float  # when the driver began to want workers

    workers: int = 0  # at work now
    attempts: int = 0  # groups of workers that have begun
    _nodes: frozenset[str] = frozenset()  # where they are
    _since: float = 0.0  # when they began, or when it began to be waited for them
    _place: tuple[int, int] = (0, 0)  # where these workers are: epoch and step
    _failures: list[tuple[str, tuple[int, int]]] = field(default_factory=list)  # causes and places
    _text: str = ""  # what the last one was, for a person
    _error: tuple[float, str] | None = None  # when a worker met with an error that no new attempt mends, and its text
    _room_since: float | None = None

    def __post_init__(self) -> None:
        self._since = self.begun

    def hear(self, record: dict[str, Any], now: float) -> dict[str, Any] | None:
        """Takes a worker's or the controller's record. Returns what is to be passed on of it, to people."""
        match record["kind"]:
            case "workers":
                self.workers, self._since = record["count"], now
                self.attempts += 1
                return {**record, "attempt": self.attempts}
            case "nodes":
                self._nodes = frozenset(record["nodes"])
                return None
            case "tick" | "point":
                self._place = (record["epoch"], record["step"])
            case "failed":
                self._error = self._error or (now, record["error"])
                return None
            case "crash":
                self._lost(record["cause"], record["reason"], now)
                return warning(f"{record['reason']}; training goes on from its newest checkpoint")
            case "start failed":
                return warning(f"workers could not start: {record['reason']}") if self.workers else None
        return record

    def lost_controller(self, now: float) -> None:
        self._lost("controller", LOST_CONTROLLER, now)

    def stopped(self, now: float) -> None:
        """The workers stopped as they were asked to; new ones are wanted."""
        self.workers, self._since, self._room_since = 0, now, None

    @property
    def short(self) -> bool:
        """Fewer workers are at work than could be."""
        return 0 < self.workers < self.on.workers

    def decide(self, now: float, room: int, stop: Stop, leaving: Collection[str] = ()) -> Decision:
        """`room`: how many workers more would find a place on the cluster. `leaving`: nodes that are taken away."""
        if stop.at_once:
            return Decision(Move.ABORT)
        if self._error is not None:
            told, text = self._error
            return Decision(Move.ABORT, text) if now - told >= _FAREWELL_SECONDS else _WAIT
        if self._hopeless():
            epoch, step = self._failures[-1][1]
            place = f"in epoch {epoch} after step {step}" if epoch else "before the first step"
            return Decision(Move.ABORT, f"again and again {place}: {self._text}")
        if stop.asked:
            return Decision(Move.STOP) if self.workers else Decision(Move.ABORT)
        if self.workers and self._nodes & set(leaving):
            return Decision(Move.STOP, PREEMPTED)
        if not self.workers and now - self._since > 60 * self.settings.wait_minutes:
            return Decision(Move.ABORT, f"no room for {self.on} in {self.settings.wait_minutes:g} minutes", True)
        return self._grown(now, room)

    def _grown(self, now: float, room: int) -> Decision:
        """Whether to start again with more workers."""
        if not self.short or room < 1:
            self._room_since = None
            return _WAIT
        if self._room_since is None:
            self._room_since = now
        if now - self._room_since < _ROOM_SECONDS or now - self._since < _COOL_DOWN_SECONDS:
            return _WAIT
        more = min(self.workers + room, self.on.workers)
        return Decision(Move.STOP, f"there is room for {more} workers instead of {self.workers}")

    def _lost(self, cause: str, text: str, now: float) -> None:
        self.workers, self._since, self._room_since = 0, now, None
        self._failures.append((cause, self._place))
        self._place = (0, 0)
        self._text = text

    def _hopeless(self) -> bool:
        repeats = _DEATHS if self._failures and self._failures[-1][0] == DIED else _REPEATS
        return len(self._failures) >= repeats and len(set(self._failures[-repeats:])) == 1


def warning(text: str) -> dict[str, Any]:
    return {"kind": "warning", "text": text}
