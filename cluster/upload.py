"""Journals' way to MLflow: what fails is tried again, at once or later, and nothing holds up the rest for long."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress

from cluster.deliver import Away, Delivery, Stuck, Unmade, connected
from cluster.spool import Call, Journal, Line, Reader, left
from pipelines.errors import ClusterError
from pipelines.location import Location, public

_WAIT_SECONDS = (0.5, 15.0)  # between attempts while the server does not answer: the first, and the longest
_ATTEMPTS, _PAUSE_SECONDS = 5, 0.2  # of a call that fails though the server answers, before it is put off
_AGAIN_SECONDS = 60.0  # between attempts at what was put off
_GATHER_SECONDS = 0.25  # in which calls come together
_LEAVE_SECONDS = 3.0  # after which the end waits no more for a server that is away
_KEEP_SECONDS = 1.0


def drain(reader: Reader, delivery: Delivery, put_off: Callable[[Call], None], on: Callable[[], bool]) -> None:
    """Delivers what waits in a journal, as long as it is `on`. Raises Away."""
    lines: list[Line] = []
    failed, singly = 0, 0  # of calls that fail together each is tried by itself
    while on() and (lines := lines or reader.next()):
        try:
            last = delivery.take(lines[:1] if singly else lines)
        except Unmade:
            put_off(lines[0].call)
            last = lines[0]
        except Stuck:
            failed += 1
            if failed < _ATTEMPTS:
                time.sleep(_PAUSE_SECONDS * failed)
                continue
            if not singly and lines[0].call["do"] == "metrics":
                failed, singly = 0, len(lines)
                continue
            put_off(lines[0].call)
            last = lines[0]
        reader.delivered(last)
        lines = lines[lines.index(last) + 1 :]
        failed, singly = 0, max(0, singly - 1)


class Uploader:
    """Delivers a journal while it grows, on a thread of its own, and first what earlier ones left in the folder."""

    def __init__(self, journal: Journal, folder: Location, tell: Callable[[str], None]) -> None:
        self._journal, self._folder, self._tell = journal, folder, tell
        self._later: Journal | None = None  # what was put off
        self._delivery: Delivery | None = None
        self._answers: dict[str, Future[str]] = {}
        self._told: set[str] = set()
        self._again_at = 0.0
        self._away_since: float | None = None
        self._told_away, self._waited = False, 0
        self._done_with_left = False
        self._delivering, self._hurry, self._ended = False, False, False
        self._news = threading.Condition()
        targets = (self._work, self._keep)
        self._threads = [threading.Thread(target=target, name="mlflow", daemon=True) for target in targets]
        for thread in self._threads:
            thread.start()

    def awaited(self, number: str) -> "Future[str]":
        """What the call of this number will come to; a ClusterError if it is refused."""
        return self._answers.setdefault(number, Future())

    def settle(self, seconds: float, patient: bool) -> bool:
        """Whether all is delivered, at the latest after so long. Who is not patient waits neither for a server that is
        away, nor for what it cannot take now."""
        began = time.monotonic()
        with self._news:
            self._hurry, self._again_at = True, 0.0
            self._news.notify_all()
            while not self._idle(patient):
                now = time.monotonic()
                away = self._away_since
                leave = not patient and away is not None and now - max(away, began) > _LEAVE_SECONDS
                if leave or now - began > seconds or not self._threads[0].is_alive():
                    break
                self._news.wait(0.1)
        return self._idle(patient=True)

    def _idle(self, patient: bool) -> bool:
        put_off = self._later is not None and not self._later.empty
        idle = self._journal.empty and self._done_with_left and not self._delivering
        return idle and not (put_off and (patient or self._again_at == 0))

    def close(self) -> None:
        """What is not delivered stays in the folder; a person is told."""
        with self._news:
            self._ended = True
            self._news.notify_all()
        for thread in self._threads:
            thread.join(_LEAVE_SECONDS)
        journals = [journal for journal in (self._journal, self._later) if journal is not None]
        waiting = sum(journal.reader.waiting() for journal in journals)
        busy = any(thread.is_alive() for thread in self._threads)  # with a server that hangs
        try:
            for journal in journals:
                journal.keep(now=True) if busy else journal.close()
        except OSError as error:
            self._once(f"{self._folder} cannot be written ({error}): {_counted(waiting)} for MLflow may be lost")
        if waiting:
            self._tell(
                f"{_counted(waiting)} for MLflow at {public(self._journal.reader.uri)} wait in {self._folder}; "
                f"`verydeep sync {self._folder}` delivers them"
            )
        if self._delivery is not None and (count := self._delivery.refused.total()):
            self._tell(f"MLflow refused {_counted(count)}; all others were or will be delivered")

    def _work(self) -> None:
        wait = _WAIT_SECONDS[0]
        while not self._ended:
            try:
                self._deliver()
            except Away as error:
                self._waited = self._journal.reader.waiting()
                self._away(str(error))
                with self._news:
                    self._news.notify_all()
                    self._news.wait_for(lambda: self._ended, wait)
                wait = min(2 * wait, _WAIT_SECONDS[1])
                continue
            wait = _WAIT_SECONDS[0]
            with self._news:
                self._news.notify_all()
                self._news.wait_for(lambda: self._ended or self._hurry, _GATHER_SECONDS)
                self._hurry = False

    def _deliver(self) -> None:
        """All that there is. Raises Away."""
        reader = self._journal.reader
        delivery = self._delivery = self._delivery or connected(reader.uri, reader.experiment)
        self._delivering = True  # until its answers are given
        try:
            if not self._done_with_left:
                self._deliver_left(delivery)
            drain(reader, delivery, self._put_off, self._on)
            if self._later is not None and self._due():
                self._again_at = time.monotonic() + _AGAIN_SECONDS
                rest, size = self._later.reader, self._later.size
                drain(rest, delivery, self._put_off, lambda: self._on() and rest.done < size)
        except OSError as error:
            raise Away(f"cannot be told what waits in {self._folder} ({error})") from error
        finally:
            self._answer(delivery)
            self._delivering = False
        if not self._ended:
            self._back()

    def _deliver_left(self, delivery: Delivery) -> None:
        ours = self._journal.reader
        own = {journal.reader.file.name for journal in (self._journal, self._later) if journal is not None}
        delivery.reach()  # before they are fetched from an object store
        with left(self._folder, own) as rest:
            for reader in rest:
                if (reader.uri, reader.experiment) == (ours.uri, ours.experiment):
                    drain(reader, delivery, self._put_off, self._on)
                elif count := reader.waiting():
                    self._once(
                        f"{_counted(count)} for MLflow at {public(reader.uri)} wait in {self._folder}; "
                        f"`verydeep sync {self._folder}` delivers them"
                    )
        self._done_with_left = not self._ended

    def _on(self) -> bool:
        return not self._ended

    def _due(self) -> bool:
        return self._later is not None and not self._later.empty and time.monotonic() >= self._again_at

    def _put_off(self, call: Call) -> None:
        if self._later is None:
            ours = self._journal.reader
            self._later = Journal(self._folder, ours.uri, ours.experiment)
        self._later.append(call)

    def _answer(self, delivery: Delivery) -> None:
        """Those who wait for it, and a person, once of each."""
        for number, answer in list(delivery.answers.items()):
            if (future := self._answers.pop(number, None)) is not None:
                future.set_exception(answer) if isinstance(answer, ClusterError) else future.set_result(answer)
        delivery.answers.clear()
        for why in list(delivery.refused):
            self._once(f"MLflow at {public(delivery.uri)} refuses {why}; it is left out")
        for why in delivery.stuck:
            self._once(f"MLflow at {public(delivery.uri)} cannot take {why}; it is kept, and tried again later")

    def _once(self, line: str) -> None:
        if line not in self._told:
            self._told.add(line)
            self._tell(line)

    def _away(self, reason: str) -> None:
        if self._away_since is None:
            self._away_since = time.monotonic()
        elif not self._told_away:  # a second time: the first may be no more than an answer that was lost
            self._told_away = True
            self._tell(
                f"MLflow at {public(self._journal.reader.uri)} {public(reason)}; the work goes on, and "
                f"all is kept in {self._folder}; `verydeep sync {self._folder}` delivers it later"
            )

    def _back(self) -> None:
        if self._away_since is not None:
            seconds, self._away_since = time.monotonic() - self._away_since, None
            if self._told_away:
                self._told_away = False
                self._tell(f"MLflow is back after {seconds:.0f} s; {_counted(self._waited)} that had waited: delivered")

    def _keep(self) -> None:
        while not self._ended:
            with self._news:
                self._news.wait_for(lambda: self._ended, _KEEP_SECONDS)
            for journal in (self._journal, self._later):
                with suppress(OSError):  # said when it matters: at the end, or when a call cannot be written
                    if journal is not None:
                        journal.keep()


def _counted(calls: int) -> str:
    return f"{calls} call{'s' * (calls != 1)}"
