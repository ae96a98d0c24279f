"""Against real MLflow stores in SQLite files, and servers that are not there."""

import json
import math
import re
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from cluster import upload
from cluster.track import Tracker, default_uri
from pipelines.errors import ClusterError
from pipelines.location import Location
from tests.cluster.mlflow_server import wait_for


def found(uri: str, ours: str) -> Run:
    """The one run with an id of ours."""
    client = MlflowClient(uri)
    (run,) = client.search_runs(
        [each.experiment_id for each in client.search_experiments()], f"tags.`verydeep.run` = '{ours}'"
    )
    return run


def no_server() -> str:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{s.getsockname()[1]}"


class Forbidding(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_error(403)

    do_POST = do_GET

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('track') / 'mlflow.db'}"


def test_runs_are_nested_and_everything_arrives_though_calls_are_refused(uri: str, tmp_path: Path) -> None:
    said: list[str] = []
    spool = Location.of(tmp_path / "spool")
    tracker = Tracker(uri, "job", spool, said.append)
    parent = tracker.open_run("job", None, {"job": "job"}, None)
    child = tracker.open_run("a", parent, {"stage": "a"}, None)
    tracker.parameters(child, {"net": "A", "init": {"from": None, "std": 0.01}, "long": "x" * 9000})
    tracker.parameters(child, {"net": "B", "width": 1.0})
    for step in range(1, 21):
        tracker.metrics(child, {"loss": 1 / step, **({"not a name: ?": 1.0} if step == 7 else {})}, step)
    (tmp_path / "net.pt").write_bytes(b"weights")
    tracker.artifact(child, Location.of(tmp_path / "none.pt"))
    tracker.artifact(child, Location.of(tmp_path / "net.pt"), "checkpoints")
    tracker.text(child, "<svg/>", "plots/loss.svg")
    for values in ([1, 2], [3, 4]):
        tracker.table(parent, {"net": ["A", "B"], "error": values}, "chain.json")
    tracker.table(parent, {"q": [256]}, "results.json")
    tracker.dataset(child, "digits/train", "0" * 64, Location.of(tmp_path), "training", "{}", '{"num_rows": 3}')
    tracker.dataset(child, "digits/train", "0" * 64, Location.of(tmp_path), "training", "{}", '{"num_rows": 3}')
    tracker.end_run(child, "FINISHED")
    assert tracker.settle(60)
    tracker.close()
    refused = [line for line in said if "refuses" in line]
    assert len(refused) == 3
    for what in ("parameters net", "metrics not a name", "artifact none.pt"):
        assert [what in line for line in refused].count(True) == 1, refused
    assert said[-1].startswith("MLflow refused 3 calls")

    run, client = found(uri, child), MlflowClient(uri)
    assert run.data.tags["mlflow.parentRunId"] == found(uri, parent).info.run_id
    assert (run.info.run_name, run.info.status, run.data.tags["restarts"]) == ("a", "FINISHED", "0")
    assert run.data.params == {"net": "A", "init.from": "None", "init.std": "0.01", "long": "x" * 6000, "width": "1.0"}
    history = client.get_metric_history(run.info.run_id, "loss")
    assert [(m.step, m.value) for m in history] == [(s, 1 / s) for s in range(1, 21)]
    assert [a.path for a in client.list_artifacts(run.info.run_id, "checkpoints")] == ["checkpoints/net.pt"]
    assert [a.path for a in client.list_artifacts(run.info.run_id, "plots")] == ["plots/loss.svg"]
    ((dataset, tags),) = [(i.dataset, {t.key: t.value for t in i.tags}) for i in run.inputs.dataset_inputs]
    assert (dataset.name, dataset.digest, tags) == ("digits/train", "0" * 36, {"mlflow.data.context": "training"})
    tables = json.loads(found(uri, parent).data.tags["mlflow.loggedArtifacts"])
    assert [table["path"] for table in tables] == ["chain.json", "results.json"]
    shown = client.download_artifacts(found(uri, parent).info.run_id, "chain.json", str(tmp_path))
    assert json.loads(Path(shown).read_text()) == {"columns": ["net", "error"], "data": [["A", 3], ["B", 4]]}
    assert not (tmp_path / "spool").exists() or not list((tmp_path / "spool").iterdir())


def test_a_run_goes_on_in_the_same_run_and_that_is_counted(uri: str, tmp_path: Path) -> None:
    spool = Location.of(tmp_path / "spool")
    run = None
    for attempt in range(3):
        tracker = Tracker(uri, "job", spool)
        run = tracker.open_run("a", None, {"attempt": str(attempt)}, run)
        tracker.metrics(run, {"loss": 1.0}, attempt)
        tracker.end_run(run, "FAILED")
        tracker.close()
    assert run is not None
    there = found(uri, run)
    assert (there.data.tags["restarts"], there.data.tags["attempt"], there.info.status) == ("2", "2", "FAILED")
    assert [m.step for m in MlflowClient(uri).get_metric_history(there.info.run_id, "loss")] == [0, 1, 2]


def test_a_run_of_an_older_version_whose_id_was_mlflows_goes_on(uri: str, tmp_path: Path) -> None:
    client = MlflowClient(uri)
    known = client.create_run(client.create_experiment("older"), run_name="a").info.run_id
    tracker = Tracker(uri, "older", Location.of(tmp_path / "spool"))
    assert tracker.open_run("a", None, {}, known) == known
    tracker.close()
    there = found(uri, known)
    assert (there.info.run_id, there.info.status, there.data.tags["restarts"]) == (known, "RUNNING", "1")


def test_a_run_that_somebody_deleted_is_made_anew(uri: str, tmp_path: Path) -> None:
    said: list[str] = []
    tracker = Tracker(uri, "job", Location.of(tmp_path / "spool"), said.append)
    run = tracker.open_run("a", None, {}, None)
    assert tracker.settle(60)
    MlflowClient(uri).delete_run(found(uri, run).info.run_id)
    for step in range(3):
        tracker.metrics(run, {"loss": 1.0}, step)
    tracker.open_run("a", None, {}, run)
    tracker.metrics(run, {"loss": 2.0}, 3)
    tracker.close()
    assert [line for line in said if "the run was deleted" in line or "no such run" in line]
    history = MlflowClient(uri).get_metric_history(found(uri, run).info.run_id, "loss")
    assert [m.step for m in history] == [3]


@pytest.mark.parametrize(
    "wrong",
    ["http://", "mlflow:5000", "htp://mlflow:5000", "http://mlflow:99999", "sqlite:////none/mlflow.db", "mlruns"],
)
def test_what_can_never_be_a_store_is_one_line_at_the_start(wrong: str, tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="cannot be used") as caught:
        Tracker(wrong, "job", Location.of(tmp_path / "spool"))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "spool").exists()


def test_a_server_that_is_not_there_is_a_line_and_all_is_kept(tmp_path: Path) -> None:
    said, uri, spool = list[str](), no_server(), tmp_path / "spool"
    tracker = Tracker(uri, "job", Location.of(spool), said.append)
    run = tracker.open_run("a", None, {}, None)
    tracker.metrics(run, {"loss": 1.0}, 1)
    assert not tracker.settle(1)
    tracker.close()
    assert said == [
        f"MLflow at {uri} does not answer (Connection refused); the work goes on, and all is kept in {spool}; "
        f"`verydeep sync {spool}` delivers it later",
        f"2 calls for MLflow at {uri} wait in {spool}; `verydeep sync {spool}` delivers them",
    ]
    (file,) = spool.glob("*.jsonl")
    assert [json.loads(line).get("do") for line in file.read_text().splitlines()] == [None, "open", "metrics"]


def test_a_store_that_mlflow_lacks_a_package_for_is_a_line_and_all_is_kept(tmp_path: Path) -> None:
    said: list[str] = []
    tracker = Tracker("mssql+none://host/runs", "job", Location.of(tmp_path), said.append)
    tracker.open_run("a", None, {}, None)
    wait_for(lambda: said)
    tracker.close()
    assert said[0].startswith("MLflow at mssql+none://host/runs cannot be used (Can't load plugin")
    assert said[1].startswith("1 call for MLflow")


def test_a_server_that_lets_nobody_in_is_told_of_as_it_is(tmp_path: Path) -> None:
    said: list[str] = []
    with ThreadingHTTPServer(("127.0.0.1", 0), Forbidding) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        uri = f"http://me:secret@127.0.0.1:{server.server_port}"
        tracker = Tracker(uri, "job", Location.of(tmp_path / "spool"), said.append)
        tracker.open_run("a", None, {}, None)
        wait_for(lambda: said)
        tracker.close()
        server.shutdown()
    assert re.match(
        rf"MLflow at http://127.0.0.1:{server.server_port} takes nothing \(.*403.*\); the work goes on", said[0]
    )
    assert not [line for line in said if "secret" in line]
    assert len(said) == 2


def test_files_that_the_store_cannot_take_hold_nothing_up_and_come_later(tmp_path: Path) -> None:
    said: list[str] = []
    uri, spool = f"sqlite:///{tmp_path / 'mlflow.db'}", tmp_path / "spool"
    blocked = tmp_path / "mlartifacts"  # where MLflow makes a folder
    blocked.write_text("")
    tracker = Tracker(uri, "job", Location.of(spool), said.append)
    run = tracker.open_run("a", None, {}, None)
    tracker.text(run, "1", "one.txt")
    tracker.metrics(run, {"loss": 1.0}, 1)
    tracker.close()
    assert found(uri, run).data.metrics == {"loss": 1.0}
    assert ["cannot take text one.txt" in line for line in said] == [True, False]
    assert said[1].startswith("1 call for MLflow")

    blocked.unlink()
    again = Tracker(uri, "job", Location.of(spool), said.append)
    assert again.settle(60)
    again.close()
    number = found(uri, run).info.run_id
    assert [file.path for file in MlflowClient(uri).list_artifacts(number)] == ["one.txt"]
    assert len(said) == 2
    assert not list(spool.iterdir())


def test_calls_of_a_run_that_was_never_made_are_kept_at_once_and_hold_no_other_up(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said, slept = list[str](), list[float]()
    monkeypatch.setattr(upload.time, "sleep", slept.append)
    tracker = Tracker(uri, "job", Location.of(tmp_path), said.append)
    run, unmade = tracker.open_run("a", None, {}, None), "0" * 32
    for step in range(200):
        tracker.metrics(run, {"loss": 1.0}, step)
        tracker.metrics(unmade, {"loss": 1.0}, step)
    tracker.settle(60, patient=False)
    tracker.close()
    assert len(MlflowClient(uri).get_metric_history(found(uri, run).info.run_id, "loss")) == 200
    assert not slept
    assert [f"what belongs to run {unmade}" in line for line in said] == [True, False]
    assert said[1].startswith("200 calls for MLflow")

    tracker = Tracker(uri, "job", Location.of(tmp_path), said.append)  # which makes it, and has the calls
    tracker.open_run("b", None, {}, unmade)
    assert tracker.settle(60)
    tracker.close()
    assert len(MlflowClient(uri).get_metric_history(found(uri, unmade).info.run_id, "loss")) == 200


def test_numbers_that_are_none_arrive_once(uri: str, tmp_path: Path) -> None:
    tracker = Tracker(uri, "job", Location.of(tmp_path))
    run = tracker.open_run("a", None, {}, None)
    for _ in range(2):
        for step, loss in enumerate((0.5, math.nan, math.inf)):
            tracker.metrics(run, {"loss": loss}, step, 1.0)
    tracker.close()
    history = [(m.step, m.value) for m in MlflowClient(uri).get_metric_history(found(uri, run).info.run_id, "loss")]
    assert [step for step, _ in history] == [0, 1, 2]
    assert math.isnan(history[1][1])
    assert history[2][1] > 1e308


def test_the_environment_names_the_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert default_uri(Location.of(tmp_path)) == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    assert default_uri(Location.of(tmp_path)) == "http://mlflow:5000"
