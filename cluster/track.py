"""MLflow: a run for a job, and under it one for each stage.

A call of the Tracker is a line in a journal (`cluster.spool`) and nothing else; a thread of its own delivers them, in
order. So a server that is slow, hangs or is not there slows nothing and loses nothing: what is left is delivered by the
next process that has the same spool, or by `verydeep sync`.
"""

import os
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cluster.deliver import SQLITE
from cluster.spool import Call, Journal
from cluster.upload import Uploader
from pipelines.errors import ClusterError
from pipelines.location import Location, public

_CLOSING_SECONDS = 60.0


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


def check_uri(uri: str) -> None:
    """Raises ClusterError for what can never work."""
    try:
        parts = urlsplit(uri)
        wrong = parts.scheme in ("http", "https") and (not parts.hostname or parts.port == 0)
    except ValueError:
        wrong = True
    if wrong or "://" not in uri:
        raise ClusterError(f"MLflow at {public(uri)} cannot be used: expected an address such as http://mlflow:5000")
    if uri.startswith(SQLITE):
        file = Path(uri.removeprefix(SQLITE))
        if not file.parent.is_dir():
            raise ClusterError(f"MLflow at {uri} cannot be used: there is no folder {file.parent}")
        if file.exists() and not file.is_file():
            raise ClusterError(f"MLflow at {uri} cannot be used: {file} is not a file")
    elif parts.scheme not in ("http", "https", "databricks") and "sql" not in parts.scheme:
        raise ClusterError(f"MLflow at {public(uri)} cannot be used: it knows no {parts.scheme}://")


def say(line: str) -> None:
    print(f"warning: {line}", file=sys.stderr, flush=True)


class Tracker:
    """Runs of one experiment in the tracking store `uri`. No call waits for it, and none raises because of it; any
    thread may make them. `spool`: a folder for the journals, of this experiment alone. `tell`: is given lines for
    people."""

    def __init__(self, uri: str, experiment: str, spool: Location, tell: Callable[[str], None] = say) -> None:
        """Raises ClusterError: there can be no such store, or the folder cannot be written."""
        check_uri(uri)
        self.uri, self._tell = uri, tell
        try:
            self._journal = Journal(spool, uri, experiment)
        except OSError as error:
            raise ClusterError(f"storage: {spool} cannot be written: {error.strerror or error}") from error
        self._uploader = Uploader(self._journal, spool, tell)
        self._lost = 0

    def open_run(self, name: str, parent: str | None, tags: Mapping[str, str], known: str | None) -> str:
        """The run's id, which is ours: `known` goes on in the run that it is of, if MLflow has it still."""
        run = known or uuid.uuid4().hex
        self._call(
            "open",
            run,
            name=name,
            parent=parent,
            tags=dict(tags),
            at=_stamp(None),
            attempt=self._journal.reader.attempt,
        )
        return run

    def parameters(self, run: str, values: Mapping[str, Any]) -> None:
        self._call("parameters", run, values={key: str(value) for key, value in _flat(values).items()})

    def tags(self, run: str, values: Mapping[str, str]) -> None:
        self._call("tags", run, values=dict(values))

    def describe(self, run: str, markdown: str) -> None:
        """What MLflow's page shows above the run's details."""
        self.tags(run, {"mlflow.note.content": markdown})

    def metrics(self, run: str, values: Mapping[str, float], step: int, at_seconds: float | None = None) -> None:
        values = {key: float(value) for key, value in values.items()}
        self._call("metrics", run, values=values, step=step, at=_stamp(at_seconds))

    def system(self, run: str, node: str, values: Mapping[str, float], at_seconds: float | None = None) -> None:
        """Where MLflow's page has system metrics. Their step is the second, which goes on when the run does."""
        at = time.time() if at_seconds is None else at_seconds
        self.metrics(run, {f"system/{node}/{key}": value for key, value in values.items()}, int(at), at)

    def artifact(self, run: str, place: Location, folder: str | None = None) -> None:
        """A file, as it is when it is delivered."""
        self._call("artifact", run, place=place.absolute, folder=folder)

    def text(self, run: str, text: str, file: str) -> None:
        """An artifact of this content, such as a picture in SVG."""
        self._call("text", run, text=text, file=file)

    def table(self, run: str, columns: Mapping[str, Sequence[Any]], file: str) -> None:
        """As a table that MLflow's pages can show and compare, in the place of what had this name."""
        content = {"columns": list(columns), "data": [list(row) for row in zip(*columns.values(), strict=True)]}
        self._call("table", run, content=content, file=file)

    def dataset(
        self, run: str, name: str, digest: str, source: Location, context: str, schema: str, profile: str
    ) -> None:
        """`context`: training or validation. `schema` and `profile`: JSON, as MLflow's pages show it."""
        told = {"schema": schema, "profile": profile, "source": public(source.absolute)}
        self._call("dataset", run, name=name, digest=digest[:36], context=context, **told)

    def register(
        self, run: str, name: str, place: Location, tags: Mapping[str, str], aliases: Sequence[str]
    ) -> "Future[str]":
        """The net in the file `place`, as a version of the registered model `name`. Its number comes, perhaps long
        after, or a ClusterError if MLflow or the net refuses."""
        given = {"tags": dict(tags), "aliases": list(aliases)}
        number = uuid.uuid4().hex
        answer = self._uploader.awaited(number)
        self._call("register", run, id=number, name=name, place=place.absolute, **given)
        return answer

    def end_run(self, run: str, status: str) -> None:
        """`status`: FINISHED, FAILED or KILLED."""
        self._call("end", run, status=status, at=_stamp(None))

    @contextmanager
    def ending(self, run: str, unless: Callable[[], bool] = lambda: False) -> Iterator[None]:
        """Ends the run as what the block ends as; does not end it `unless` that is for someone else to do."""
        try:
            yield
        except BaseException as error:
            if unless():
                raise
            self.end_run(run, "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
            raise
        self.end_run(run, "FINISHED")

    def settle(self, seconds: float, patient: bool = True) -> bool:
        """Whether all has been delivered, at the latest after so long; who is not patient waits for a server that is
        away no more than a few seconds."""
        return self._uploader.settle(seconds, patient)

    def close(self) -> None:
        """Delivers what it can while the server answers, for a minute at most; the rest stays where it is."""
        self._uploader.settle(_CLOSING_SECONDS, patient=False)
        self._uploader.close()

    def _call(self, do: str, run: str, **told: Any) -> None:
        call: Call = {"id": uuid.uuid4().hex, "do": do, "run": run, **told}
        try:
            self._journal.append(call)
        except OSError as error:  # no reason to end training; what it writes itself tells of it
            self._lost += 1
            if self._lost == 1:
                self._tell(f"{self._journal.reader.file} cannot be written ({error}): what MLflow is told is lost")


def _stamp(at_seconds: float | None) -> int:
    """In milliseconds."""
    return int((time.time() if at_seconds is None else at_seconds) * 1000)


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"init": {"from": "a"}} as {"init.from": "a"}."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat
