"""What MLflow is to be told of a job in an object store (moto's S3, with the real client) is there for any machine."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from cluster.track import Tracker
from jobs import cli
from jobs.store import SPOOL
from pipelines.location import Location
from tests.cluster.test_track import found
from tests.pipelines.test_shards import Server
from tests.serving import free_port


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Location]:
    """Its folder."""
    server = Server(tmp_path_factory.mktemp("empty"))
    yield Location.of(server.place.replace("sets/train", "runs/job"))
    server.stop()


def away(job: Location) -> tuple[str, list[str]]:
    """A process whose server is away, and what it says."""
    said: list[str] = []
    tracker = Tracker(f"http://127.0.0.1:{free_port()}", "job", job / SPOOL, said.append)
    run = tracker.open_run("a", None, {}, None)
    for step in range(50):
        tracker.metrics(run, {"loss": 1 / (step + 1)}, step)
    tracker.text(run, "<svg/>", "plots/loss.svg")
    tracker.close()
    return run, said


def test_what_waits_in_a_bucket_is_delivered_from_anywhere_and_gone_then(
    job: Location, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    runs, said = zip(*(away(job) for _ in range(2)), strict=True)
    assert len((job / SPOOL).files()) == 2
    assert all(lines[-1].startswith("52 calls for MLflow") for lines in said)
    assert not list(Path(tmp_path).iterdir())
    assert cli.main(["sync", job.text, "--uri", uri]) == 0
    assert capsys.readouterr().out == "104 calls of 2 runs delivered\n"
    assert not (job / SPOOL).files()
    client = MlflowClient(uri)
    for run in runs:
        number = found(uri, run).info.run_id
        history = client.get_metric_history(number, "loss")
        assert [(m.step, m.value) for m in history] == [(step, 1 / (step + 1)) for step in range(50)]
        assert [file.path for file in client.list_artifacts(number, "plots")] == ["plots/loss.svg"]
