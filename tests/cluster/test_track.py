"""Against real MLflow stores: a SQLite file, and a server that is not there."""

import socket
from pathlib import Path

import pytest
from mlflow import MlflowClient

from cluster.track import Tracker, default_uri
from pipelines.errors import ClusterError
from pipelines.location import Location


def test_runs_are_nested_and_everything_arrives_though_a_call_fails(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    tracker = Tracker(uri, "job")
    parent = tracker.open_run("job", None, {"job": "job"}, None)
    child = tracker.open_run("a", parent, {"stage": "a"}, None)
    tracker.parameters(child, {"net": "A", "init": {"from": None, "std": 0.01}})
    for step in range(1, 21):
        tracker.metrics(child, {"loss": 1 / step}, step)
    (tmp_path / "net.pt").write_bytes(b"weights")

    def deliver() -> None:
        tracker.artifact(child, Location.of(tmp_path / "none.pt"))
        tracker.artifact(child, Location.of(tmp_path / "net.pt"), "checkpoints")
        tracker.end_run(child, "FINISHED")
        tracker.close()

    with pytest.warns(UserWarning, match=r"artifact none\.pt"):
        deliver()
    client = MlflowClient(uri)
    run = client.get_run(child)
    assert run.data.tags["mlflow.parentRunId"] == parent
    assert run.info.status == "FINISHED"
    assert run.data.params == {"net": "A", "init.from": "None", "init.std": "0.01"}
    history = client.get_metric_history(child, "loss")
    assert [(m.step, m.value) for m in history] == [(s, 1 / s) for s in range(1, 21)]
    assert [a.path for a in client.list_artifacts(child, "checkpoints")] == ["checkpoints/net.pt"]

    again = Tracker(uri, "job")
    assert again.open_run("a", parent, {}, known=child) == child
    assert again.open_run("a", parent, {}, known="0" * 32) != child
    again.close()


def test_a_server_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{s.getsockname()[1]}"
    with pytest.raises(ClusterError, match="cannot be used") as caught:
        Tracker(uri, "job")
    assert "\n" not in str(caught.value)


def test_the_environment_names_the_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert default_uri(Location.of(tmp_path)) == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    assert default_uri(Location.of(tmp_path)) == "http://mlflow:5000"
