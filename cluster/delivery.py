"""Calls out of a journal, made to an MLflow store. Each may be made twice with the same outcome as once: who makes them
may be killed in the middle, and begins again where it last noted that all was done."""

import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException

from cluster.mlflow_api import connect, refused
from cluster.spool import Call
from pipelines.errors import VerydeepError, first_line
from pipelines.location import Location

ID = "verydeep.id"  # the tag of a run that has our own name for it
_SQLITE = "sqlite:///"
_BATCH, _PARAMETERS = 1000, 100  # of metrics and parameters in one call, at most
_VALUE = 6000  # characters of a parameter's value that MLflow takes

Tell = Callable[[str], None]


class Delivery:
    """`versions`: of registered models, by name and file. `refusals`: calls that MLflow does not take."""

    def __init__(self, uri: str, tell: Tell) -> None:
        """`tell` gets a line of each refusal. Raises MlflowException: there is no such kind of store."""
        self.uri = uri
        self.client = connect(uri)
        self.refusals = 0
        self.versions: dict[tuple[str, str], str] = {}
        self._tell = tell
        self._experiments: dict[str, str] = {}
        self._runs: dict[str, str] = {}

    def make(self, calls: Sequence[Call]) -> None:
        """All of them, in order; metrics in batches. Raises what MLflow raises if it can't be reached."""
        for metrics, group in groupby(calls, lambda call: call.get("call") == "metrics"):
            if metrics:
                self._metrics(list(group))
                continue
            for call in group:
                self._guarded(str(call.get("call")), partial(self._one, call))

    def run_of(self, name: str) -> str:
        """MLflow's own id of the run that we call `name`. Raises MlflowException."""
        if name not in self._runs:
            found = self._found(name)
            if found is None:
                raise MlflowException.invalid_parameter_value(f"no run has the tag {ID} {name}")
            self._runs[name] = found
        return self._runs[name]

    def experiment(self, name: str) -> str:
        """Its id; it is made if need be. Raises MlflowException."""
        if name not in self._experiments:
            known = self.client.get_experiment_by_name(name)
            if known is None:
                # A server chooses its own place; a file store would put artifacts below the current folder.
                file = self.uri.removeprefix(_SQLITE) if self.uri.startswith(_SQLITE) else None
                place = Path(file).absolute().with_name("mlartifacts").as_uri() if file else None
                tags = {"mlflow.experimentKind": "custom_model_development"}
                self._experiments[name] = self.client.create_experiment(name, place, tags)
            else:
                self._experiments[name] = known.experiment_id
        return self._experiments[name]

    def _guarded(self, what: str, call: Callable[[], Any]) -> bool:
        """Whether it was taken; a refusal is told of, and passed over."""
        try:
            call()
        except VerydeepError as error:  # of a registration
            if error.__cause__ is not None and not refused(error.__cause__):
                raise error.__cause__ from None
            self._refuse(f"{what}: {error}")
        except Exception as error:  # artifact stores raise errors of their own
            if not refused(error):
                raise
            self._refuse(f"{what}: {first_line(error)}")
        else:
            return True
        return False

    def _refuse(self, text: str) -> None:
        self.refusals += 1
        self._tell(f"MLflow at {self.uri} does not take a call: {text}")

    def _metrics(self, calls: Sequence[Call]) -> None:
        by_run: dict[str, list[Metric]] = defaultdict(list)
        for call in calls:
            by_run[call["run"]] += [Metric(k, v, call["time"], call["step"]) for k, v in call["values"].items()]
        for run, metrics in by_run.items():
            for first in range(0, len(metrics), _BATCH):
                self._batch("metrics", metrics[first : first + _BATCH], partial(self._log, run, "metrics"))

    def _batch(self, what: str, items: list[Any], log: Callable[[list[Any]], None]) -> None:
        """As a whole; if that is refused, one by one, so that one that is at fault is left out alone."""
        try:
            log(items)
        except MlflowException as error:
            if not refused(error):
                raise
            for item in items:
                self._guarded(what, partial(log, [item]))

    def _log(self, run: str, kind: str, items: list[Any]) -> None:
        self.client.log_batch(self.run_of(run), **{kind: items})

    def _one(self, call: Call) -> None:
        client = self.client
        match call:
            case {"call": "run"}:
                self._runs[call["run"]] = self._open(call)
            case {"call": "parameters", "values": values}:
                parameters = [Param(key, str(value)[:_VALUE]) for key, value in values.items()]
                for first in range(0, len(parameters), _PARAMETERS):
                    some = parameters[first : first + _PARAMETERS]
                    self._batch("parameters", some, partial(self._log, call["run"], "params"))
            case {"call": "tags", "values": values}:
                tags = [RunTag(key, str(value)) for key, value in values.items()]
                client.log_batch(self.run_of(call["run"]), tags=tags)
            case {"call": "artifact", "place": place}:
                with Location.of(place).on_disk() as path:
                    client.log_artifact(self.run_of(call["run"]), str(path), call.get("folder"))
            case {"call": "text", "content": content, "file": file}:
                client.log_text(self.run_of(call["run"]), content, file)
            case {"call": "table", "content": content, "file": file}:
                self._table(call["run"], content, file)
            case {"call": "inputs", "sets": sets}:
                client.log_inputs(self.run_of(call["run"]), datasets=list(_inputs(sets)))
            case {"call": "register"}:
                self._register(call)
            case {"call": "end", "status": status}:
                client.set_terminated(self.run_of(call["run"]), status, call["time"])
            case _:
                raise MlflowException.invalid_parameter_value(f"of another version of the program: {dict(call)}")

    def _open(self, call: Call) -> str:
        tags = {key: str(value) for key, value in call["tags"].items()}
        found = self._found(call["run"])
        if found is not None:
            self.client.update_run(found, status="RUNNING")
            self.client.log_batch(found, tags=[RunTag(key, value) for key, value in tags.items()])
            return found
        parents = {"mlflow.parentRunId": self.run_of(call["parent"])} if call.get("parent") else {}
        experiment, tags = self.experiment(call["experiment"]), {**tags, **parents, ID: call["run"]}
        run = self.client.create_run(experiment, start_time=call["time"], run_name=call["name"], tags=tags)
        return str(run.info.run_id)

    def _found(self, name: str) -> str | None:
        """By the tag; or a run that has this very id, as of earlier versions of this program."""
        experiments = [each.experiment_id for each in self.client.search_experiments(max_results=1000)]
        found = self.client.search_runs(experiments, f"tags.`{ID}` = '{name}'", max_results=1) if experiments else []
        if found:
            return str(found[0].info.run_id)
        try:
            return str(self.client.get_run(name).info.run_id)
        except MlflowException as error:
            if not refused(error):
                raise
            return None

    def _table(self, run: str, content: dict[str, Any], file: str) -> None:
        """In the place of what had this name: `MlflowClient.log_table` would add to it."""
        self.client.log_dict(self.run_of(run), content, file)
        known = self.client.get_run(self.run_of(run)).data.tags.get("mlflow.loggedArtifacts", "[]")
        tables = {entry["path"]: entry for entry in json.loads(known)} | {file: {"path": file, "type": "table"}}
        self.client.set_tag(self.run_of(run), "mlflow.loggedArtifacts", json.dumps(list(tables.values())))

    def _register(self, call: Call) -> None:
        from cluster import nets, registry  # slow imports: torch

        trained = nets.load(Location.of(call["place"]))
        version = registry.register(
            self.uri, self.run_of(call["run"]), call["name"], trained, call["tags"], call["aliases"]
        )
        self.versions[call["name"], call["place"]] = version


def _inputs(sets: Sequence[Call]) -> Iterator[DatasetInput]:
    for each in sets:
        profile = json.dumps({"num_rows": each["rows"], "num_classes": each["classes"]})
        source = json.dumps({"uri": each["source"]})
        data = Dataset(each["name"], each["digest"][:36], each["kind"], source, profile=profile)
        yield DatasetInput(data, [InputTag("mlflow.data.context", each["context"])])
