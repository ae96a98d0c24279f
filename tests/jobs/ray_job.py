"""The main job as users start it: `ray start --head`, then `ray job submit jobs/demo.yaml`."""

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
from contextlib import contextmanager
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Submitting:
    """A cluster of one node, and the environment to use it."""

    home: Path  # where results are
    environment: dict[str, str]

    def submit(self, folder: Path, *arguments: str) -> str:
        """What the job said."""
        command = ["ray", "job", "submit", *arguments]
        for _ in range(12):
            done = subprocess.run(
                command, cwd=folder, env=self.environment, capture_output=True, text=True, check=False
            )
            output = done.stdout + done.stderr
            if "No available agent" not in output:  # the node is there before its agent is
                break
            time.sleep(5)
        assert done.returncode == 0, output[-5000:]
        return output


@contextmanager
def ray_head() -> Iterator[Submitting]:
    """As `ray start --head` makes it in the repository's folder, with a home of its own: short, since Ray's sockets lie
    below it."""
    home = Path(tempfile.mkdtemp(prefix="vd"))
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
        yield Submitting(home, environment)
    finally:
        head.send_signal(signal.SIGTERM)
        try:
            head.wait(60)
        except subprocess.TimeoutExpired:
            head.kill()
            head.wait()
        shutil.rmtree(home, ignore_errors=True)


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


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


def check_the_demo(home: Path, said: str, single_error: float, multi_error: float) -> None:
    """`single_error`: the most that each net may have at its own scale; `multi_error`: the last one at several."""
    assert "mlflow ui --backend-store-uri" in said
    parent, children = runs(home, "demo")
    assert set(children) == set(STAGES)
    assert {run.info.status for run in (parent, *children.values())} == {"FINISHED"}
    assert children["e"].data.params["net"] == "E"
    assert children["e"].data.params["init.from"] == "a"
    assert {run.data.tags["restarts"] for run in (parent, *children.values())} == {"0"}
    assert all(0.0 <= run.data.metrics["top1_error"] <= single_error for run in children.values())
    assert 0.0 <= parent.data.metrics["multi-scale.e-jitter.both.top1_error"] <= multi_error
    with (home / "verydeep/runs/demo/results.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    models = {number: [line["model"] for line in lines if line["table"] == number] for number in "3456"}
    assert models == {"3": [*STAGES], "4": ["e-jitter"], "5": ["e-jitter"] * 3, "6": ["e-large + e-jitter"]}
    assert {line["images"] for line in lines} == {"359"}
    check_the_nets_that_leave(home)


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
