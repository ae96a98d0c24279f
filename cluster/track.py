"""MLflow: a run for a job, and under it one for each stage.

Calls are noted in a journal (`cluster.spool`), which costs next to nothing, and made in order by a thread of their own
(`cluster.delivery`): a server that is slow slows nothing. While it can't be reached they wait; what waits at the end
stays in the journal, for the next run of the job or for `verydeep sync`.
"""

import os
import threading
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from mlflow.exceptions import MlflowException

from cluster import spool
from cluster.delivery import Delivery
from cluster.spool import Journal
from pipelines.errors import ClusterError, first_line
from pipelines.location import Location, public

_RETRY_SECONDS = 2.0
_LOOK_SECONDS = 0.2  # between looks for new lines
_CLOSING_SECONDS = 30.0  # without an answer, after which what waits is left
_SQLITE = "sqlite:///"


def default_uri(storage: Location) -> str:
    """MLFLOW_TRACKING_URI, or a SQLite file in the job's storage. Raises ClusterError: that is in an object store."""
    given = os.environ.get("MLFLOW_TRACKING_URI")
    if given:
        return given
    if storage.disk is None:
        raise ClusterError(
            f"storage: {storage}: MLflow's own database cannot be kept in an object store; "
            "set MLFLOW_TRACKING_URI to the address of an MLflow server, such as http://mlflow:5000"
        )
    return f"sqlite:///{storage.disk / 'mlflow.db'}"


class Tracker:
    """Runs of one experiment in the tracking store `uri`. Runs go by names of our own; see `Delivery.run_of`."""

    def __init__(self, uri: str, experiment: str, folder: Location) -> None:
        """`folder`: of the job, in which the journal lies. Raises ClusterError if the store can't ever be used, or the
        folder not be written; a server that doesn't answer is none of both."""
        self.uri, self._experiment, self._folder = uri, experiment, folder / spool.SPOOL
        try:
            delivery = Delivery(uri, _warn)
            if uri.startswith(_SQLITE):  # MLflow would try again and again to make a file in no folder
                Path(uri.removeprefix(_SQLITE)).parent.mkdir(parents=True, exist_ok=True)
        except (MlflowException, OSError) as error:
            raise ClusterError(f"MLflow at {public(uri)} cannot be used: {first_line(error)}") from error
        try:
            self._journal = Journal.new(self._folder)
            journals = [*spool.left(self._folder), self._journal]
        except OSError as error:
            raise ClusterError(f"storage: {self._folder} cannot be written: {first_line(error)}") from error
        self._uploader = Uploader(delivery, journals)
        self._uploader.start()

    def open_run(
        self, name: str, parent: str | None, tags: Mapping[str, str], known: str | None, inputs: Sequence[Any] = ()
    ) -> str:
        """The run's name: `known`, in which case it goes on, or a new one. `inputs`: data sets; see `Delivery`."""
        run = known or uuid4().hex
        self._note("run", run, name=name, parent=parent, tags=dict(tags), experiment=self._experiment)
        if inputs:
            self._note("inputs", run, sets=list(inputs))
        return run

    def parameters(self, run: str, values: Mapping[str, Any]) -> None:
        self._note("parameters", run, values={key: str(value) for key, value in _flat(values).items()})

    def tags(self, run: str, values: Mapping[str, str]) -> None:
        self._note("tags", run, values=dict(values))

    def metrics(self, run: str, values: Mapping[str, float], step: int, at_seconds: float | None = None) -> None:
        numbers = {key: float(value) for key, value in values.items()}
        self._note("metrics", run, at_seconds, values=numbers, step=step)

    def artifact(self, run: str, place: Location, folder: str | None = None) -> None:
        """The file as it is when it is delivered."""
        self._note("artifact", run, place=place.absolute, folder=folder)

    def text(self, run: str, content: str, file: str) -> None:
        """As the artifact `file`, such as a picture as SVG."""
        self._note("text", run, content=content, file=file)

    def table(self, run: str, columns: Mapping[str, Sequence[Any]], file: str) -> None:
        """As a table that MLflow's pages can show and compare, in the place of what had this name."""
        content = {"columns": list(columns), "data": [list(row) for row in zip(*columns.values(), strict=True)]}
        self._note("table", run, content=content, file=file)

    def register(self, run: str, name: str, net: Location, tags: Mapping[str, str], aliases: Sequence[str]) -> None:
        """The net in the file as a version of the registered model `name`; see `registry.register`."""
        self._note("register", run, name=name, place=net.absolute, tags=dict(tags), aliases=list(aliases))

    def version(self, name: str, net: Location) -> str | None:
        """Of a net that was registered; None if that has not been delivered, or was refused."""
        return self._uploader.delivery.versions.get((name, net.absolute))

    def end_run(self, run: str, status: str) -> None:
        """`status`: FINISHED, FAILED or KILLED."""
        self._note("end", run, status=status)

    @contextmanager
    def ending(self, run: str) -> Iterator[None]:
        """Ends the run as what the block ends as."""
        try:
            yield
        except BaseException as error:
            self.end_run(run, "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
            raise
        self.end_run(run, "FINISHED")

    def settle(self) -> bool:
        """Waits until all is delivered, as long as the store answers. Returns whether it is."""
        return self._uploader.settle(_CLOSING_SECONDS)

    def close(self) -> None:
        """Delivers what can be, and leaves the rest."""
        self._uploader.close(_CLOSING_SECONDS)
        try:
            self._journal.close()
        except OSError as error:
            _warn(f"{self._folder} cannot be written: {first_line(error)}")
        if waits := self._uploader.waiting:
            _warn(
                f"MLflow at {public(self.uri)} does not answer: {waits} calls wait in {self._folder}; "
                "`verydeep sync` delivers them, and so does the job's next run"
            )

    def _note(self, call: str, run: str, at_seconds: float | None = None, **content: Any) -> None:
        stamp = int((time.time() if at_seconds is None else at_seconds) * 1000)
        try:
            self._journal.append({"call": call, "run": run, "time": stamp, **content})
        except OSError as error:  # a disk that is full: tracking never stops training
            self._uploader.lost(first_line(error))


class Uploader(threading.Thread):
    """Delivers journals, one after the other; to the last one lines may still be added."""

    def __init__(self, delivery: Delivery, journals: Sequence[Journal]) -> None:
        super().__init__(name="mlflow", daemon=True)
        self.delivery = delivery
        self._journals = list(journals)
        self._over = False
        self._failing_since: float | None = None
        self._lost = 0

    @property
    def waiting(self) -> int:
        """Calls that are not delivered yet."""
        return sum(len(journal.read().calls) for journal in self._journals if journal.waiting_bytes)

    def lost(self, why: str) -> None:
        """A call that could not be noted."""
        self._lost += 1
        if self._lost == 1:
            _warn(f"what MLflow should have cannot be noted: {why}")

    def run(self) -> None:
        while not self._over:
            try:
                if not self._deliver():
                    time.sleep(_LOOK_SECONDS)
            except Exception as error:  # artifact stores raise errors of their own; tracking never stops training
                self._fails(error)
                time.sleep(_RETRY_SECONDS)

    def settle(self, seconds: float) -> bool:
        """Waits until nothing is left, or nothing was answered for so long. Returns whether nothing is left."""
        began = time.monotonic()
        while any(journal.waiting_bytes for journal in self._journals):
            failing = self._failing_since
            if failing is not None and time.monotonic() - max(failing, began) > seconds:
                return False
            time.sleep(_LOOK_SECONDS / 4)
        return True

    def close(self, seconds: float) -> None:
        """After that it doesn't deliver any more, unless it hangs in a call."""
        self.settle(seconds)
        self._over = True

    def _deliver(self) -> bool:
        """The next lines of the oldest journal that has some. Returns whether there were any."""
        journal = self._journals[0]
        journal.copy()
        found = journal.read()
        if found.calls:
            self.delivery.make(found.calls)
        if found.end != journal.taken:
            journal.take(found.end)
            self._answers(len(found.calls))
            return True
        if len(self._journals) > 1:  # an earlier attempt's, all delivered
            self._journals.pop(0).close()
            return True
        return False

    def _fails(self, error: BaseException) -> None:
        if self._failing_since is None:
            self._failing_since = time.monotonic()
            _warn(
                f"MLflow at {public(self.delivery.uri)} does not take calls: {first_line(error)}; they wait, and "
                "training goes on"
            )

    def _answers(self, calls: int) -> None:
        if self._failing_since is not None:
            seconds = time.monotonic() - self._failing_since
            self._failing_since = None
            _warn(
                f"MLflow at {public(self.delivery.uri)} takes calls again, after {seconds:.0f} s; {calls} were waiting"
            )


def _warn(text: str) -> None:
    warnings.warn(text, stacklevel=2)


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"init": {"from": "a"}} as {"init.from": "a"}."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat
