"""Journals' calls, made to MLflow: again and again the same, for what is delivered twice is there once.

A run has an id of our own, by which it is found (the tag `verydeep.run`) before it is made. Of a request whose answer
was lost there may be two runs; the one that was taken into use is marked, and another is deleted.
"""

import json
import logging
import os
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")  # the uploader does its own waiting
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag, ViewType
from mlflow.exceptions import MlflowException

from cluster.spool import Call, Line
from pipelines.errors import ClusterError, VerydeepError, first_line
from pipelines.location import Location, public

warnings.filterwarnings("ignore", module=r"mlflow\.")  # of what it uses of other packages

SQLITE = "sqlite:///"
_METRICS, _OTHERS = 1000, 100  # MLflow's limits of a batch; of values, in characters:
_PARAM_CHARACTERS, _TAG_CHARACTERS = 6000, 8000
_ID, _USED, _ATTEMPT, _RESTARTS = "verydeep.run", "verydeep.used", "verydeep.attempt", "restarts"
_TRIED = "verydeep.tried"  # of the experiment: when it was last seen whether it can be written
_TALKATIVE = (
    "alembic",
    "mlflow.pyfunc",
    "mlflow.store.db.utils",
    "mlflow.store.model_registry.abstract_store",
    "mlflow.utils.environment",
    "urllib3.connectionpool",
)
_GONE = "there is no such run any more"


class Away(Exception):
    """Nothing can be delivered now; in words that go on after the server's name."""


class Stuck(Exception):
    """The server answers, but this call fails, and may not later."""


class Unmade(Stuck):
    """The run that this call is of has not been made there: nothing can be done with it until then."""


def connect(uri: str) -> MlflowClient:
    """One that does not talk."""
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.ERROR)
    return MlflowClient(uri)


def connected(uri: str, experiment: str) -> "Delivery":
    """Raises Away: this program's MLflow cannot use such an address, for a package that it lacks, say."""
    try:
        return Delivery(uri, experiment)
    except Exception as error:  # of SQLAlchemy's, or of a database's driver, which may not even be installed
        raise Away(f"cannot be used ({first_line(error)})") from error


class Delivery:
    """To one experiment. `refused`: what MLflow will never take, and why, with how often it was; it is passed over.
    `stuck`: what it could not take though it answered. `answers`: versions of nets that were registered, or why they
    were not, by the numbers of the calls."""

    def __init__(self, uri: str, experiment: str) -> None:
        self.uri = uri
        self.refused: Counter[str] = Counter()
        self.stuck: set[str] = set()
        self.answers: dict[str, str | ClusterError] = {}
        self._experiment, self._number = experiment, ""
        self._client = connect(uri)
        self._runs: dict[str, str | None] = {}  # MLflow's ids by ours; None: there is no such run
        self._unmade: set[str] = set()  # ours, that were looked for in vain

    def reach(self) -> None:
        """Raises Away: the experiment cannot even be looked at."""
        try:
            self._number = self._find_experiment()
        except Exception as error:  # as in `take`
            raise Away(_away(error)) from error

    def take(self, lines: Sequence[Line]) -> Line:
        """Makes the first of these calls, as many as go together; returns the last of them. Raises Away or Stuck."""
        calls = [line.call for line in lines]
        told = list(takewhile(lambda call: call["do"] == "metrics" and call["run"] not in self._unmade, calls))
        try:
            if told:
                self._metrics(told)
                return lines[len(told) - 1]
            self._one(calls[0])
            return lines[0]
        except Unmade as error:
            if told:  # others are not to wait for it
                return self.take(lines)
            self.stuck.add(str(error))
            raise
        except Exception as error:  # artifact stores raise errors of their own, and tracking never ends training
            if not self._at_work():
                raise Away(_away(error)) from error
            why = f"{_in_words(calls[0])}: {first_line(error)}"
            self.stuck.add(why)
            raise Stuck(why) from error

    def _at_work(self) -> bool:
        """Whether it can be read and written: with a full disk, say, a database answers and takes nothing."""
        try:
            self.reach()
            self._client.set_experiment_tag(self._number, _TRIED, str(time.time()))
        except Exception:  # as above
            return False
        return True

    def _one(self, call: Call) -> None:
        do = call["do"]
        if do == "open":
            self._refusable(call, lambda: self._open(call))
            self._runs.setdefault(call["run"], None)
        elif do == "register":
            self._register(call)
        elif (run := self._run(call["run"])) is None:
            self._refuse(call, _GONE)
        elif do in ("parameters", "tags"):
            self._batch(run, call, _entities(call))
        else:
            self._refusable(call, lambda: self._rare(run, call))

    def _rare(self, run: str, call: Call) -> None:
        do, client = call["do"], self._client
        if do == "artifact":
            place = Location.of(call["place"])
            if not place.exists():
                self._refuse(call, f"{place} is not there any more")
                return
            with place.on_disk() as path:
                client.log_artifact(run, str(path), call["folder"])
        elif do == "text":
            client.log_text(run, call["text"], call["file"])
        elif do == "table":
            self._table(run, call)
        elif do == "dataset":
            source = json.dumps({"uri": call["source"]})
            kind = call["source"].partition("://")[0] if "://" in call["source"] else "local"
            content = Dataset(call["name"], call["digest"], kind, source, call["schema"], call["profile"])
            tag = InputTag("mlflow.data.context", call["context"])
            client.log_inputs(run, [DatasetInput(content, [tag])])
        else:
            assert do == "end", do
            client.set_terminated(run, call["status"], call["at"])

    def _table(self, run: str, call: Call) -> None:
        """As MlflowClient.log_table, which would add to what is there."""
        client, tag = self._client, "mlflow.loggedArtifacts"  # by which MLflow's pages find it
        client.log_dict(run, call["content"], call["file"])
        told = json.loads(client.get_run(run).data.tags.get(tag, "[]"))
        if (entry := {"path": call["file"], "type": "table"}) not in told:
            client.set_tag(run, tag, json.dumps([*told, entry]))

    def _open(self, call: Call) -> None:
        """The run with this id, made or gone on with, with its tags; that it goes on is counted once an attempt."""
        parent = self._run(call["parent"]) if call["parent"] else None
        attempt = call["attempt"]
        tags = {**call["tags"], **({"mlflow.parentRunId": parent} if parent else {})}
        run = self._find_run(call["run"])
        if run is None:
            made = {_ID: call["run"], _RESTARTS: "0", _ATTEMPT: attempt}
            run = self._client.create_run(self._number, call["at"], made, call["name"])
        else:
            self._client.update_run(run.info.run_id, "RUNNING", call["name"])
        number = run.info.run_id
        if attempt > run.data.tags.get(_ATTEMPT, ""):
            tags |= {_ATTEMPT: attempt, _RESTARTS: str(int(run.data.tags.get(_RESTARTS, "0")) + 1)}
        self._batch(number, call, _tags({**tags, _ID: call["run"], _USED: "yes"}))
        self._runs[call["run"]] = number
        self._unmade.discard(call["run"])

    def _run(self, ours: str) -> str | None:
        """MLflow's id; None if the run was refused, or deleted by somebody."""
        if ours not in self._runs:
            found = None if ours in self._unmade else self._find_run(ours)
            if found is None and (ours in self._unmade or not self._search(ours, ViewType.DELETED_ONLY)):
                self._unmade.add(ours)
                raise Unmade(f"what belongs to run {ours}, which has not been made there")
            self._runs[ours] = found.info.run_id if found else None
        return self._runs[ours]

    def _search(self, ours: str, among: str) -> list[Any]:
        self._number = self._number or self._find_experiment()
        return list(self._client.search_runs([self._number], f"tags.`{_ID}` = '{ours}'", among))

    def _find_run(self, ours: str) -> Any:
        found = self._search(ours, ViewType.ACTIVE_ONLY)
        found = sorted(found, key=lambda run: (_USED not in run.data.tags, run.info.run_id))
        for twin in found[1:]:
            self._client.delete_run(twin.info.run_id)
        return found[0] if found else self._older(ours)

    def _older(self, ours: str) -> Any:
        """The run that has this id in MLflow itself, as runs of older versions of this program have."""
        try:
            run = self._client.get_run(ours)
        except MlflowException as error:
            if not _permanent(error):
                raise
            return None
        return run if run.info.lifecycle_stage == "active" else None

    def _find_experiment(self) -> str:
        known = self._client.get_experiment_by_name(self._experiment)
        if known is not None and known.lifecycle_stage == "deleted":
            raise MlflowException(f"the experiment {self._experiment} was deleted; restore it, or rename the job")
        return known.experiment_id if known else self._make_experiment()

    def _make_experiment(self) -> str:
        # A server chooses its own place; a file store would put artifacts below the current folder.
        file = self.uri.removeprefix(SQLITE) if self.uri.startswith(SQLITE) else None
        place = Path(file).absolute().with_name("mlartifacts").as_uri() if file else None
        tags = {"mlflow.experimentKind": "custom_model_development"}
        return str(self._client.create_experiment(self._experiment, place, tags))

    def _metrics(self, calls: Iterable[Call]) -> None:
        """Of several runs, in batches of each."""
        by_run: dict[str, list[Call]] = {}
        for call in calls:
            by_run.setdefault(call["run"], []).append(call)
        for ours, told in by_run.items():
            run = self._run(ours)
            if run is None:
                self._refuse(told[0], _GONE, len(told))
            else:
                self._batch(run, told[0], [entity for call in told for entity in _entities(call)])

    def _batch(self, run: str, call: Call, entities: Sequence[Any]) -> None:
        """Metrics, parameters or tags. Of a batch that is refused all is tried that is not at fault."""
        most = _METRICS if call["do"] == "metrics" else _OTHERS
        for first in range(0, len(entities), most):
            part = entities[first : first + most]
            try:
                self._log(run, part)
            except MlflowException as error:
                if not _permanent(error):
                    raise
                if len(part) == 1:
                    self._refuse({**call, "of": part[0].key}, first_line(error))
                elif self._deleted(run):
                    self._refuse(call, "the run was deleted in MLflow", len(part))
                else:
                    middle = len(part) // 2
                    self._batch(run, call, part[:middle])
                    self._batch(run, call, part[middle:])

    def _log(self, run: str, part: Sequence[Any]) -> None:
        kind = {Metric: "metrics", Param: "params", RunTag: "tags"}[type(part[0])]
        self._client.log_batch(run, **{kind: part})

    def _deleted(self, run: str) -> bool:
        try:
            return str(self._client.get_run(run).info.lifecycle_stage) == "deleted"
        except MlflowException as error:
            if not _permanent(error):
                raise
            return True

    def _register(self, call: Call) -> None:
        from cluster import nets, registry  # slow imports

        place, run = Location.of(call["place"]), self._run(call["run"])
        if run is None or not place.exists():
            self._refuse(call, _GONE if run is None else f"{place} is not there any more")
            return

        def register() -> None:
            trained = nets.load(place)
            found = registry.register(self._client, run, call["name"], trained, call["tags"], call["aliases"])
            self.answers[call["id"]] = found

        try:
            self._refusable(call, register)
        except VerydeepError as error:
            self._refuse(call, first_line(error))

    def _refusable(self, call: Call, act: Callable[[], None]) -> None:
        try:
            act()
        except MlflowException as error:
            if not _permanent(error):
                raise
            self._refuse(call, first_line(error))

    def _refuse(self, call: Call, why: str, count: int = 1) -> None:
        text = f"{_in_words(call)}: {why}"
        self.refused[text] += count
        if call["do"] == "register":
            self.answers[call["id"]] = ClusterError(f"MLflow at {public(self.uri)}: {text}")


def _away(error: BaseException) -> str:
    """What it means if nothing works. Of an error of the network, which others were raised from, it is the first."""
    if isinstance(error, MlflowException) and (why := _refused(error)) is not None:
        return why
    first = error
    while first.__context__ is not None:
        first = first.__context__
    if isinstance(first, (ConnectionError, TimeoutError)) or (isinstance(first, OSError) and first.errno is not None):
        return f"does not answer ({first.strerror or first_line(first)})"
    return f"takes nothing ({first_line(error)})"


def _refused(error: MlflowException) -> str | None:
    """Why a server turns away whoever asks so, whatever is asked for."""
    if error.error_code == "UNAUTHENTICATED":
        if os.environ.get("MLFLOW_TRACKING_USERNAME") and os.environ.get("MLFLOW_TRACKING_PASSWORD"):
            return "does not know the user of MLFLOW_TRACKING_USERNAME with MLFLOW_TRACKING_PASSWORD"
        return "wants a name and a password: MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD are not set"
    if error.error_code == "PERMISSION_DENIED" and "Invalid Host header" in str(error):
        return "answers to other names alone: give it this one with --allowed-hosts, with the port"
    return None


def _permanent(error: MlflowException) -> bool:
    """Whether the store was reached, and will never take this."""
    return error.error_code in ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST")


def _entities(call: Call) -> list[Any]:
    values: dict[str, Any] = call["values"]
    if call["do"] == "metrics":
        return [Metric(key, value, call["at"], call["step"]) for key, value in values.items()]
    if call["do"] == "parameters":
        return [Param(key, value[:_PARAM_CHARACTERS]) for key, value in values.items()]
    return _tags(values)


def _tags(values: dict[str, str]) -> list[RunTag]:
    return [RunTag(key, value[:_TAG_CHARACTERS]) for key, value in values.items()]


def _in_words(call: Call) -> str:
    what = {"open": "run", "end": "the end of a run"}.get(call["do"], call["do"])
    named: str = call.get("of") or call.get("file") or call.get("name") or call.get("place", "").rpartition("/")[2]
    return f"{what} {named}" if named else str(what)
