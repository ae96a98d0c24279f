"""Against real MLflow stores: a SQLite file, and a server that is not there."""

import socket
import warnings
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlflow import MlflowClient

from cluster import spool
from cluster.delivery import ID, Delivery
from cluster.spool import Journal
from cluster.track import Tracker, default_uri
from pipelines.errors import ClusterError
from pipelines.location import Location


def test_runs_are_nested_and_everything_arrives_though_a_call_fails(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    tracker = Tracker(uri, "job", Location.of(tmp_path))
    data = {"name": "digits", "digest": "f" * 64, "kind": "local", "source": "/d", "context": "training"}
    parent = tracker.open_run("job", None, {"job": "job"}, None, [{**data, "rows": 300, "classes": 10}])
    child = tracker.open_run("a", parent, {"stage": "a"}, None)
    tracker.parameters(child, {"net": "A", "init": {"from": None, "std": 0.01}})
    for step in range(1, 21):
        tracker.metrics(child, {"loss": 1 / step}, step)
    (tmp_path / "net.pt").write_bytes(b"weights")
    tracker.artifact(child, Location.of(tmp_path / "none.pt"))
    tracker.artifact(child, Location.of(tmp_path / "net.pt"), "checkpoints")
    tracker.parameters(child, {"net": "E", "batch": 16})  # the one that has changed is refused, the other isn't
    tracker.end_run(child, "FINISHED")
    with pytest.warns(UserWarning, match=r"does not take a call: artifact: .*none\.pt"):
        tracker.close()
    client, delivery = MlflowClient(uri), Delivery(uri, lambda _: None)
    run = client.get_run(delivery.run_of(child))
    assert run.data.tags["mlflow.parentRunId"] == delivery.run_of(parent)
    assert run.info.status == "FINISHED"
    assert run.data.params == {"net": "A", "init.from": "None", "init.std": "0.01", "batch": "16"}
    history = client.get_metric_history(run.info.run_id, "loss")
    assert [(m.step, m.value) for m in history] == [(s, 1 / s) for s in range(1, 21)]
    assert [a.path for a in client.list_artifacts(run.info.run_id, "checkpoints")] == ["checkpoints/net.pt"]
    (shown,) = client.get_run(delivery.run_of(parent)).inputs.dataset_inputs
    assert (shown.dataset.name, shown.dataset.digest, shown.tags[0].value) == ("digits", "f" * 36, "training")
    assert not list((tmp_path / "spool").iterdir()), "all is delivered"

    again = Tracker(uri, "job", Location.of(tmp_path))
    assert again.open_run("a", parent, {"restarts": "1"}, known=child) == child
    again.close()
    assert Delivery(uri, lambda _: None).run_of(child) == run.info.run_id
    assert client.get_run(run.info.run_id).info.status == "RUNNING"
    assert client.get_run(run.info.run_id).data.tags["restarts"] == "1"
    assert len(client.search_runs([run.info.experiment_id])) == 2


def test_a_run_that_was_deleted_is_made_anew_and_one_of_an_earlier_version_is_found(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    client = MlflowClient(uri)
    old = client.create_run(client.create_experiment("job")).info.run_id
    tracker = Tracker(uri, "job", Location.of(tmp_path))
    assert tracker.open_run("a", None, {}, known=old) == old
    tracker.metrics(old, {"loss": 1.0}, 1)
    tracker.close()
    assert client.get_metric_history(old, "loss")[0].value == 1.0
    tracker = Tracker(uri, "job", Location.of(tmp_path))
    run = tracker.open_run("b", None, {}, None)
    tracker.close()
    first = Delivery(uri, lambda _: None).run_of(run)
    client.delete_run(first)
    tracker = Tracker(uri, "job", Location.of(tmp_path))
    tracker.open_run("b", None, {}, known=run)
    tracker.close()
    second = Delivery(uri, lambda _: None).run_of(run)
    assert second != first
    assert client.get_run(second).data.tags[ID] == run


def test_what_can_never_be_used_is_one_line_and_a_server_that_is_not_there_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Location.of(tmp_path)
    for uri in ("sqlite:////proc/none/mlflow.db", "nonsense://x"):
        with pytest.raises(ClusterError, match="cannot be used") as caught:
            Tracker(uri, "job", place)
        assert "\n" not in str(caught.value)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{s.getsockname()[1]}"
    monkeypatch.setattr("cluster.track._CLOSING_SECONDS", 0.1)
    told: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = lambda message, *_, **__: told.append(str(message))
        tracker = Tracker(uri, "job", place)
        run = tracker.open_run("a", None, {}, None)
        for step in range(1000):
            tracker.metrics(run, {"loss": 1.0}, step)
        assert not tracker.settle()
        tracker.close()
    assert [text.partition("; ")[2] for text in told] == [
        "they wait, and training goes on",
        "`verydeep sync` delivers them, and so does the job's next run",
    ]
    assert f"1001 calls wait in {tmp_path}/spool" in told[-1]

    tracker = Tracker(f"sqlite:///{tmp_path}/mlflow.db", "job", place)  # the next run, with another store
    tracker.close()
    client, found = MlflowClient(tracker.uri), Delivery(tracker.uri, lambda _: None).run_of(run)
    assert [m.step for m in client.get_metric_history(found, "loss")] == list(range(1000))
    assert not list((tmp_path / "spool").iterdir())


@settings(max_examples=60, deadline=None)
@given(texts=st.lists(st.text(max_size=40), max_size=30), data=st.data())
def test_a_journal_gives_back_every_whole_line_once_wherever_it_is_cut_off(
    texts: list[str], data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = Location.of(tmp_path_factory.mktemp("spool"))
    journal = Journal.new(folder)
    for text in texts:
        journal.append({"call": "text", "content": text})
    path = Path(folder.path, f"{journal.name}.jsonl")
    whole = path.read_bytes() if texts else b""
    cut = data.draw(st.integers(0, len(whole)))
    if texts:
        path.write_bytes(whole[:cut])
    (again,) = spool.left(folder) if texts else [journal]
    found = again.read()
    assert [call["content"] for call in found.calls] == texts[: whole[:cut].count(b"\n")]
    again.take(found.end)
    assert again.read().calls == []
    assert [call for left in spool.left(folder) for call in left.read().calls] == []


def test_the_environment_names_the_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert default_uri(Location.of(tmp_path)) == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    assert default_uri(Location.of(tmp_path)) == "http://mlflow:5000"
