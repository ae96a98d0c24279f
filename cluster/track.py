"""MLflow: a run for a job, and under it one for each stage.

Calls are made in order on a thread of their own, so that a slow server slows nothing; while the server cannot be
reached they wait, with a warning, and what still cannot be delivered a while after the end is given up and counted.
"""

import json
import logging
import os
import queue
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")  # the thread below does its own waiting

from mlflow import MlflowClient
from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException

from pipelines.errors import ClusterError, first_line
from pipelines.location import Location

warnings.filterwarnings("ignore", module=r"mlflow\.")  # of what it uses of other packages

_RETRY_SECONDS = 2.0
_CLOSING_SECONDS = 30.0
_SQLITE = "sqlite:///"
_TALKATIVE = (
    "alembic",
    "mlflow.pyfunc",
    "mlflow.store.db.utils",
    "mlflow.store.model_registry.abstract_store",
    "mlflow.utils.environment",
)


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


def connect(uri: str) -> MlflowClient:
    """One that does not talk."""
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.WARNING)
    return MlflowClient(uri)


class Tracker:
    """Runs of one experiment in the tracking store `uri`."""

    def __init__(self, uri: str, experiment: str) -> None:
        """Raises ClusterError if the store cannot be reached."""
        self.uri = uri
        self._client = connect(uri)
        try:
            known = self._client.get_experiment_by_name(experiment)
            if known is None:
                # A server chooses its own place; a file store would put artifacts below the current folder.
                file = uri.removeprefix(_SQLITE) if uri.startswith(_SQLITE) else None
                place = Path(file).absolute().with_name("mlartifacts").as_uri() if file else None
                self._experiment = self._client.create_experiment(
                    experiment, place, {"mlflow.experimentKind": "custom_model_development"}
                )
            else:
                self._experiment = known.experiment_id
        except (MlflowException, OSError) as error:
            raise ClusterError(f"MLflow at {uri} cannot be used: {first_line(error)}") from error
        self._calls: queue.Queue[tuple[str, Callable[[], None]] | None] = queue.Queue()
        self._failing_since: float | None = None
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
        self._thread.start()

    def open_run(self, name: str, parent: str | None, tags: Mapping[str, str], known: str | None) -> str:
        """The run's id: of `known` if that is there (it goes on), or of a new one."""
        try:
            if known is not None:
                try:
                    self._client.update_run(known, status="RUNNING")
                    return known
                except MlflowException:
                    pass  # deleted, or of another store
            parents = {"mlflow.parentRunId": parent} if parent else {}
            run = self._client.create_run(self._experiment, run_name=name, tags={**tags, **parents})
        except (MlflowException, OSError) as error:
            raise ClusterError(f"MLflow at {self.uri} cannot be used: {first_line(error)}") from error
        return str(run.info.run_id)

    def parameters(self, run: str, values: Mapping[str, Any]) -> None:
        params = [Param(key, str(value)) for key, value in _flat(values).items()]
        self._call("parameters", lambda: self._client.log_batch(run, params=params) and None)

    def metrics(self, run: str, values: Mapping[str, float], step: int, at_seconds: float | None = None) -> None:
        stamp = int((time.time() if at_seconds is None else at_seconds) * 1000)
        batch = [Metric(key, float(value), stamp, step) for key, value in values.items()]
        self._call("metrics", lambda: self._client.log_batch(run, metrics=batch) and None)

    def artifact(self, run: str, place: Location, folder: str | None = None) -> None:
        def deliver() -> None:
            with place.on_disk() as path:
                self._client.log_artifact(run, str(path), folder)

        self._call(f"artifact {place.name}", deliver)

    def table(self, run: str, columns: Mapping[str, Sequence[Any]], file: str) -> None:
        """As a table that MLflow's pages can show and compare, in the place of what had this name."""
        content = {"columns": list(columns), "data": [list(row) for row in zip(*columns.values(), strict=True)]}
        tag = json.dumps([{"path": file, "type": "table"}])  # by which its pages find it (MlflowClient.log_table)

        def deliver() -> None:
            self._client.log_dict(run, content, file)  # log_table would add to what is there
            self._client.set_tag(run, "mlflow.loggedArtifacts", tag)

        self._call(f"table {file}", deliver)

    def end_run(self, run: str, status: str) -> None:
        """`status`: FINISHED, FAILED or KILLED."""
        self._call("the end of a run", lambda: self._client.set_terminated(run, status))

    @contextmanager
    def ending(self, run: str) -> Iterator[None]:
        """Ends the run as what the block ends as."""
        try:
            yield
        except BaseException as error:
            self.end_run(run, "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
            raise
        self.end_run(run, "FINISHED")

    def close(self) -> None:
        """Waits for all calls, as long as they succeed."""
        began = time.monotonic()
        self._calls.put(None)
        while self._thread.is_alive():
            self._thread.join(0.2)
            failing = self._failing_since
            if failing is not None and time.monotonic() - max(failing, began) > _CLOSING_SECONDS:
                break
        if self._thread.is_alive():
            warnings.warn(
                f"MLflow at {self.uri} does not answer: {self._calls.qsize()} calls and more are lost", stacklevel=2
            )

    def _call(self, what: str, call: Callable[[], None]) -> None:
        self._calls.put((what, call))

    def _work(self) -> None:
        while (item := self._calls.get()) is not None:
            what, call = item
            while True:
                try:
                    call()
                    self._failing_since = None
                    break
                except Exception as error:  # artifact stores raise errors of their own; tracking never stops training
                    if self._failing_since is None:
                        warnings.warn(f"MLflow at {self.uri}: {what}: {first_line(error)}", stacklevel=1)
                        self._failing_since = time.monotonic()
                    if _permanent(error):
                        self._failing_since = None
                        break
                    time.sleep(_RETRY_SECONDS)


def _permanent(error: BaseException) -> bool:
    """Whether trying again is of no use: the store was reached, and refused, or the call itself is at fault."""
    if isinstance(error, MlflowException):
        return error.error_code in (
            "INVALID_PARAMETER_VALUE",
            "RESOURCE_DOES_NOT_EXIST",
            "PERMISSION_DENIED",
            "BAD_REQUEST",
        )
    return not isinstance(error, OSError) or isinstance(error, PermissionError | FileNotFoundError)


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"init": {"from": "a"}} as {"init.from": "a"}."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat
