"""A finished job in a real MLflow store: what its pages compare, and what is left for `verydeep sync`."""

import json
import subprocess
import uuid
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from cluster.spool import Journal
from cluster.track import Tracker
from jobs import cli, origin, stored, tracked
from jobs.store import SPOOL
from jobs.stored import Stored
from pipelines.location import Location
from pipelines.shards import DataSet
from tests.cluster.test_track import found
from tests.serving import free_port


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('tracked') / 'mlflow.db'}"


@pytest.fixture(scope="module")
def job(run: Path) -> Stored:
    return stored.read(stored.store_of(str(run)))


@pytest.fixture(scope="module")
def runs(uri: str, job: Stored, digits: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """The job's, by the name `job`, and its stages'."""
    tracker = Tracker(uri, "kinds", Location.of(tmp_path_factory.mktemp("spool")))
    ids = {"job": tracker.open_run("kinds", None, {}, None)}
    for stage in job.stages:
        run = ids[stage.name] = tracker.open_run(stage.name, ids["job"], {}, None)
        tracked.data_sets(tracker, run, *map(DataSet.open, digits))
        for epoch in (1, 2):
            for step in (2, 3):
                point = {"kind": "point", "epoch": epoch, "step": step, "steps": 3, "loss": 1.0, "time": 1.0}
                tracked.listen(tracker, run, point, stage.settings.model_copy(update={"batch": 128}), 300)
            done = {"kind": "epoch", "epoch": epoch, "validation_accuracy": epoch / 4, "time": 2.0}
            tracked.listen(tracker, run, done, stage.settings, 300)
        load = {"kind": "system", "node": "10.0.0.1", "values": {"cpu_utilization_percentage": 50.0}, "time": 3.0}
        tracked.listen(tracker, run, load, stage.settings, 300)
        tracked.listen(tracker, run, {"kind": "decoding", "text": "by engines"}, stage.settings, 300)
        tracked.stage_done(tracker, run, stage)
        tracker.metrics(run, tracked.errors_of(job.results, stage.name), 0)
    tracked.job_done(tracker, ids["job"], job)
    tracker.close()
    return {name: found(uri, ours) for name, ours in ids.items()}


def test_every_stage_has_its_errors_under_the_same_names(runs: dict[str, Run], job: Stored) -> None:
    for stage in job.stages:
        told = runs[stage.name].data.metrics
        accuracy = max(epoch.validation_accuracy for epoch in stage.epochs)
        (dense,) = [r for r in job.results if r.model == stage.name and r.test == "single"]
        assert told["best_validation_accuracy"] == accuracy
        assert told["validation_error"] == pytest.approx(1 - accuracy)
        assert told["top1_error"] == 1 - dense.totals.accuracy
        assert told["top5_error"] == 1 - dense.totals.accuracy5


def test_how_images_are_decoded_is_a_tag(runs: dict[str, Run], job: Stored) -> None:
    assert [runs[stage.name].data.tags["decoding"] for stage in job.stages] == ["by engines"] * len(job.stages)


def test_points_have_the_epochs_and_images_seen_until_then(runs: dict[str, Run], uri: str) -> None:
    def course(key: str) -> list[tuple[int, float]]:
        return [(m.step, m.value) for m in MlflowClient(uri).get_metric_history(runs["a"].info.run_id, key)]

    assert [step for step, _ in course("loss")] == [2, 3, 5, 6]
    assert course("images_seen") == [(2, 256), (3, 300), (5, 556), (6, 600)]
    assert course("epoch") == [(2, pytest.approx(2 / 3)), (3, 1), (5, pytest.approx(5 / 3)), (6, 2)]
    assert course("validation_accuracy") == [(1, 0.25), (2, 0.5)]
    assert course("epoch_images_seen") == [(1, 300), (2, 600)]
    assert course("system/10.0.0.1/cpu_utilization_percentage") == [(3, 50)]


def test_the_job_has_its_chain_as_a_table_curves_and_a_description(
    runs: dict[str, Run], uri: str, job: Stored, tmp_path: Path
) -> None:
    client, number = MlflowClient(uri), runs["job"].info.run_id
    table = json.loads(Path(client.download_artifacts(number, "stages_table.json", str(tmp_path))).read_text())
    chain = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    assert [(line["stage"], line["net"], line["starts from"]) for line in chain] == [
        ("a", "A", "random weights"),
        ("e", "E", "a"),
    ]
    assert [line["top-1 error"] for line in chain] == [runs[name].data.metrics["top1_error"] for name in "ae"]
    for run in runs.values():
        pictures = {file.path for file in client.list_artifacts(run.info.run_id, "plots")}
        assert {"plots/loss.svg", "plots/accuracy.svg"} <= pictures
    text = runs["job"].data.tags["mlflow.note.content"]
    assert 'load_model("models:/kinds@best")' in text
    assert "| e | E | 32 to 40 | a | 2 | 20.0 % |" in text
    assert "as the paper's table 3" in text


def test_data_sets_are_inputs_with_their_digests(runs: dict[str, Run], digits: tuple[str, str]) -> None:
    inputs = {i.tags[0].value: i.dataset for i in runs["a"].inputs.dataset_inputs}
    for context, place in zip(("training", "validation"), digits, strict=True):
        manifest = DataSet.open(place).manifest
        assert inputs[context].digest == manifest.fingerprint[:36]
        assert json.loads(inputs[context].source) == {"uri": place}
        assert json.loads(inputs[context].profile)["num_rows"] == manifest.rows


def test_a_runs_origin_is_the_revision_of_the_job_files_repository(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text("name: mine\n")
    alone = origin.tags(str(file))
    assert alone["mlflow.source.name"] == str(file)
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        subprocess.run([*git, *words], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    there = origin.tags(str(file))
    assert (there["mlflow.source.git.commit"], there["mlflow.source.git.dirty"]) == (head, "false")
    assert alone.get("mlflow.source.git.commit") != head
    file.write_text("name: other\n")
    assert origin.tags(str(file))["mlflow.source.git.dirty"] == "true"


def test_sync_delivers_what_is_left_of_all_jobs_and_tells_of_it(
    uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    away = f"http://127.0.0.1:{free_port()}"
    told = {}
    for name in ("one", "two"):
        tracker = Tracker(away, "left", Location.of(tmp_path / "runs" / name / SPOOL), lambda line: None)
        told[name] = tracker.open_run(name, None, {}, None)
        tracker.metrics(told[name], {"loss": 1.0}, 1)
        tracker.close()
    assert cli.main(["sync", str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert out.count(f"MLflow at {away} does not answer") == 2
    assert out.endswith("0 calls of 0 runs delivered; 4 are kept\n")
    assert cli.main(["sync", str(tmp_path / "runs" / "one"), "--uri", uri]) == 0
    assert cli.main(["sync", str(tmp_path), "--uri", uri]) == 0
    assert cli.main(["sync", str(tmp_path), "--uri", uri]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["2 calls of 1 run delivered"] * 2 + [f"{tmp_path}: MLflow has been told everything"]
    assert {found(uri, run).data.metrics["loss"] for run in told.values()} == {1.0}


def test_another_mlflow_is_told_what_the_first_one_was_told_already(
    uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    journal = Journal(Location.of(tmp_path / SPOOL), f"http://127.0.0.1:{free_port()}", "left")
    at, run = {"at": 1000, "attempt": "1"}, uuid.uuid4().hex
    journal.append({"do": "open", "run": run, "name": "moved", "parent": None, "tags": {}, **at})
    for step in range(1, 9):
        journal.append({"do": "metrics", "run": run, "values": {"loss": 1 / step}, "step": step, **at})
    journal.reader.delivered(journal.reader.next(5)[-1])
    journal.close()
    assert cli.main(["sync", str(tmp_path), "--uri", uri]) == 0
    assert capsys.readouterr().out == "9 calls of 1 run delivered\n"
    history = MlflowClient(uri).get_metric_history(found(uri, run).info.run_id, "loss")
    assert [(m.step, m.value) for m in history] == [(step, 1 / step) for step in range(1, 9)]


def test_sync_leaves_a_job_alone_that_is_being_run(
    uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tracker = Tracker(uri, "left", Location.of(tmp_path / SPOOL))
    assert cli.main(["sync", str(tmp_path)]) == 1
    assert capsys.readouterr().out == f"{tmp_path / SPOOL}: its job is being run, and delivers by itself\n"
    assert cli.main(["sync", str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err == f"verydeep: {tmp_path / 'none'}: there is no such folder\n"
    other = tmp_path / "other"
    other.mkdir()
    assert cli.main(["sync", str(other)]) == 2
    assert capsys.readouterr().err == f"verydeep: {other}: is neither the folder of a run nor a storage\n"
    tracker.close()


def test_sync_delivers_what_is_left_of_the_others_while_one_job_is_being_run(
    uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    busy, left = (Location.of(tmp_path / "runs" / name / SPOOL) for name in ("busy", "left"))
    tracker = Tracker(uri, "left", busy)
    run, at = uuid.uuid4().hex, {"at": 1000, "attempt": "1"}
    journal = Journal(left, uri, "left")
    journal.append({"do": "open", "run": run, "name": "left", "parent": None, "tags": {}, **at})
    journal.close()
    assert cli.main(["sync", str(tmp_path)]) == 1
    assert capsys.readouterr().out.splitlines() == [
        f"{busy}: its job is being run, and delivers by itself",
        "1 call of 1 run delivered",
    ]
    assert found(uri, run).info.run_name == "left"
    tracker.close()
