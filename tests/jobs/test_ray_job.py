"""The main job as users start it: `ray start --head`, then `ray job submit jobs/demo.yaml`. Some minutes."""

import csv
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import mlflow
import numpy as np
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from cluster import checkpoint, posteriors
from jobs.cli import main
from pipelines.classifier import Classifier
from pipelines.location import Location
from pipelines.shards import DataSet
from tests.serving import free_port

ROOT = Path(__file__).parent.parent.parent
BIN = Path(sys.executable).parent
STAGES = ("a", "e", "e-large", "e-jitter")
TABLES = ("results.csv", "results.md", "results.json", "results_table.json", "stages_table.json")
PATIENCE_SECONDS = 300  # with a Ray that starts on a busy machine
ARTIFACTS = ("job.yaml", *TABLES, "report.html", "plots")


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    """A home of our own; short, since Ray's sockets lie below it."""
    place = Path(tempfile.mkdtemp(prefix="vd"))
    yield place
    shutil.rmtree(place, ignore_errors=True)


@pytest.fixture(scope="module")
def ray_environment(home: Path) -> Iterator[dict[str, str]]:
    """A cluster of one node, as `ray start --head` makes it in the repository's folder; the environment to use it."""
    port, dashboard = free_port(), free_port()
    environment = {
        **{key: value for key, value in os.environ.items() if key not in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI")},
        "HOME": str(home),
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",  # as other tests' processes beside these
        "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}",
    }
    command = ["ray", "start", "--head", "--block", f"--port={port}", f"--dashboard-port={dashboard}", "--num-cpus=2"]
    command += [f"--dashboard-agent-listen-port={free_port()}"]  # another Ray here has the usual one: jobs start there
    with (home / "ray.log").open("w") as log:
        head = subprocess.Popen(
            [*command, f"--temp-dir={home}/r"], cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT
        )
    try:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not answers(f"{environment['RAY_API_SERVER_ADDRESS']}/api/jobs/"):
            assert head.poll() is None, (home / "ray.log").read_text()
            assert time.monotonic() < deadline, (home / "ray.log").read_text()
            time.sleep(0.2)
        yield environment
    finally:
        head.send_signal(signal.SIGTERM)
        try:
            head.wait(60)
        except subprocess.TimeoutExpired:
            head.kill()
            head.wait()


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def submit(folder: Path, environment: dict[str, str], *arguments: str) -> str:
    command = ["ray", "job", "submit", *arguments]
    for _ in range(12):
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        output = done.stdout + done.stderr
        if "No available agent" not in output:  # the node is there before its agent is
            break
        time.sleep(5)
    assert done.returncode == 0, output[-5000:]
    return output


def runs(home: Path, job: str) -> tuple[Run, dict[str, Run]]:
    """The job's run in MLflow, and its children by name."""
    client = MlflowClient(f"sqlite:///{home}/verydeep/mlflow.db")
    experiment = client.get_experiment_by_name(job)
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id])
    parents = [run for run in found if "mlflow.parentRunId" not in run.data.tags]
    assert len(parents) == 1
    children = {r.info.run_name: r for r in found if r.data.tags.get("mlflow.parentRunId") == parents[0].info.run_id}
    assert {a.path for a in client.list_artifacts(parents[0].info.run_id)} == {*ARTIFACTS}
    for run in children.values():
        assert client.list_artifacts(run.info.run_id, "checkpoints")
        assert client.get_metric_history(run.info.run_id, "loss")
    return parents[0], children


@pytest.fixture(scope="module")
def demo(ray_environment: dict[str, str]) -> str:
    """What it said."""
    return submit(ROOT, ray_environment, "jobs/demo.yaml")


def test_the_demo_reaches_its_accuracy_and_is_tracked(home: Path, demo: str) -> None:
    assert "mlflow ui --backend-store-uri" in demo
    parent, children = runs(home, "demo")
    assert set(children) == set(STAGES)
    assert {run.info.status for run in (parent, *children.values())} == {"FINISHED"}
    assert children["e"].data.params["net"] == "E"
    assert children["e"].data.params["init.from"] == "a"
    assert {run.data.tags["restarts"] for run in (parent, *children.values())} == {"0"}
    assert all(0.0 <= run.data.metrics["top1_error"] <= 0.2 for run in children.values())
    assert 0.0 <= parent.data.metrics["multi-scale.e-jitter.both.top1_error"] <= 0.05
    with (home / "verydeep/runs/demo/results.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    models = {number: [line["model"] for line in lines if line["table"] == number] for number in "3456"}
    assert models == {"3": [*STAGES], "4": ["e-jitter"], "5": ["e-jitter"] * 3, "6": ["e-large + e-jitter"]}
    assert {line["images"] for line in lines} == {"359"}
    check_the_nets_that_leave(home)


def test_a_finished_job_that_is_submitted_again_trains_and_tests_nothing(
    home: Path, ray_environment: dict[str, str], demo: str
) -> None:
    del demo
    before = posteriors_of(home)
    assert len(before) >= len(STAGES)
    again = submit(ROOT, ray_environment, "jobs/demo.yaml")
    assert again.count("done, finished after") == len(STAGES)
    assert posteriors_of(home) == before


def posteriors_of(home: Path) -> dict[str, tuple[int, int]]:
    """Which file holds the posteriors of each, and since when."""
    files = {file.name: file.stat() for file in (home / "verydeep/runs/demo/tests").glob("*.parquet")}
    return {name: (file.st_ino, file.st_mtime_ns) for name, file in files.items()}


def check_the_nets_that_leave(home: Path) -> None:
    """The registered net, and an exported one, have the five best classes of the test on 100 images."""
    client = MlflowClient(f"sqlite:///{home}/verydeep/mlflow.db")
    version = client.get_model_version_by_alias("demo", "best")
    stage, folder = version.tags["stage"], home / "verydeep/runs/demo"
    (run,) = folder.glob(f"{stage}-" + "[0-9a-f]" * 12)
    assert main(["export", str(run), str(home / "net.onnx"), "--dense"]) == 0
    q = checkpoint.read_head(Location.of(next(run.glob("epoch-*")))).card.scale
    (file,) = (folder / "tests").glob(f"{stage}-dense-{sum(q) // 2}-*.parquet")
    tested = posteriors.read(Location.of(file))
    (data,) = (home / "verydeep/data").glob("digits-*/val")
    images = [bytes(image) for image in DataSet.open(str(data)).read_group(0).encoded[:100]]
    assert len(images) == 100
    exported = Classifier(str(home / "net.onnx"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{home}/verydeep/mlflow.db")
        registered = mlflow.pyfunc.load_model("models:/demo@best").predict(images)
    for image, answer, scores in zip(images, registered, tested.scores, strict=False):
        five = np.sort(scores)[::-1][:5]
        for best in ([(b["class"], b["probability"]) for b in answer["best"]], exported.best(image, 5)):
            places = [tested.classes.index(name) for name, _ in best]
            assert len(set(places)) == 5
            np.testing.assert_allclose(scores[places], five, atol=2e-5)  # the same ones, but for ties
            np.testing.assert_allclose([share for _, share in best], five, atol=2e-5)


def test_a_copy_of_the_repository_is_submitted_from_another_folder(
    home: Path, ray_environment: dict[str, str], demo: str, tmp_path: Path
) -> None:
    """Changed, so that it is certainly this copy that runs, in its workers, too; and what the other job has done is not
    done again."""
    del demo
    copy = tmp_path / "elsewhere"
    copy.mkdir()
    tracked = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in tracked.stdout.splitlines():
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name)
    job = copy / "jobs" / "demo.yaml"
    text, _, _ = job.read_text().partition("  e: ")
    assert text.count("epochs:") == 1, "stage a alone is left"
    more = "  more: {net: A, scale: 34, epochs: 1, init: {from: a}}\nevaluations: {all: {models: [more]}}\n"
    job.write_text(text.replace("name: demo", "name: copied") + more)
    output = submit(copy, ray_environment, "--working-dir", ".", "--", "jobs/demo.yaml")
    assert "copied: 1438 images" in output
    assert output.count("in job demo (finished after") == 1
    parent, children = runs(home, "copied")
    assert set(children) == {"more"}
    assert {run.info.status for run in (parent, *children.values())} == {"FINISHED"}
