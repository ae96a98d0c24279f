"""Whole runs of jobs, carried out by this process in the place of Ray's workers: stages really train, nets are really
tested, and everything is stored and tracked."""

import json
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from cluster import launch, nets, place
from cluster.agree import Wish
from cluster.attempt import Stage
from cluster.evaluate import Evaluation, Viewer, assembled
from cluster.interrupt import Stop
from cluster.mailbox import Listen
from cluster.place import Shape
from cluster.posteriors import Posteriors
from cluster.train import Outcome, train
from cluster.views import View
from cluster.world import World
from jobs import check, run, schema
from jobs.selection import Choice
from pipelines.errors import TrainingError
from pipelines.location import Location
from pipelines.shards import DataSet

JOB = """
name: {name}
data: {{train: {data}/train, val: {data}/val}}
storage: {storage}
train:
  {{net: A, scale: 34, input_size: 32, width: 0.05, batch: 50, dropout: 0.0, flip: false, pixel_std: 64, epochs: 2,
   init: {{random: kaiming}}}}
stages:
  a: {{}}
  deep: {{net: [B, D], init: {{from: a}}}}
  late: {{net: B, after: [deep-D], epochs: 1}}
  {more}
evaluations:
  all: {{models: [a, deep]}}
  fused: {{models: [deep-B, late], fuse: true}}
"""


class Cluster:
    """Room for so many stages or tests. `broken`: stages that fail; `held`: one that waits for `gate`."""

    def __init__(self, places: int) -> None:
        self.places = places
        self.broken: set[str] = set()
        self.gate, self.held = threading.Event(), ""
        self.began: list[str] = []
        self.busy: set[str] = set()
        self.together: set[frozenset[str]] = set()
        self._lock = threading.Lock()

    def room(self, on: Shape, test: bool = False) -> int:
        with self._lock:
            return self.places - len(self.busy)

    def train_stage(self, stage: Stage, on: Shape, settings: object, listen: Listen, stop: Stop) -> None:
        self._begin(stage.name, listen)
        try:
            while stage.name == self.held and not self.gate.wait(0.01):
                stop.heed()
            if stage.name in self.broken:
                raise TrainingError(f"stage {stage.name}: it is broken")
            outcome = train(stage, World.single(), lambda record: self._tell(listen, record), _Asked(stop))
            if outcome is Outcome.STOPPED:
                raise stop.error()
        finally:
            self._end(stage.name)

    def run_evaluation(self, test: Evaluation, on: Shape, listen: Listen, stop: Stop) -> dict[View, Posteriors]:
        data = DataSet.open(test.data)
        viewer = Viewer(test, World.single(), lambda record: self._tell(listen, record))
        pieces = [viewer(range(data.rows))]
        for view, looked in pieces[0].items():
            seconds = {"seconds": looked.seconds, "net_seconds": looked.net_seconds}
            named = {"mode": view.mode, "scale": view.scale, "mirror": view.mirror, "precision": view.precision}
            self._tell(listen, {"kind": "timed", **named, "images": data.rows, **seconds})
        return assembled(test, nets.look(Location.of(test.checkpoint)), data.manifest, pieces)

    def _begin(self, name: str, listen: Listen) -> None:
        with self._lock:
            self.began.append(name)
            self.busy.add(name)
            self.together.add(frozenset(self.busy))
        self._tell(listen, {"kind": "workers", "count": 1, "attempt": 1})

    def _end(self, name: str) -> None:
        with self._lock:
            self.busy.remove(name)

    def _tell(self, listen: Listen, record: dict[str, Any]) -> None:
        listen({**record, "time": time.time()})


class _Asked:
    def __init__(self, stop: Stop) -> None:
        self._stop = stop

    def wish(self) -> Wish:
        return Wish.STOP if self._stop.asked else Wish.NONE


def in_place_of_ray(patch: pytest.MonkeyPatch, places: int) -> Cluster:
    """Looked at for room every 20 ms."""
    found = Cluster(places)
    patch.setattr(run, "_POLL_SECONDS", 0.02)
    patch.setattr(launch, "connect", lambda: f"{places} places")
    patch.setattr(launch, "disconnect", lambda: None)
    patch.setattr(launch, "room", found.room)
    patch.setattr(launch, "train_stage", found.train_stage)
    patch.setattr(launch, "run_evaluation", found.run_evaluation)
    patch.setattr(place, "shape", lambda settings, at_once, stop: Shape(1, 1, 0, 1))
    patch.setattr(place, "growth", lambda on: None)
    return found


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    found = in_place_of_ray(monkeypatch, 2)
    yield found
    found.gate.set()


@pytest.fixture
def storage(database: Path, tmp_path: Path) -> Path:
    shutil.copy(database, tmp_path)
    return tmp_path


def carry_out(storage: Path, digits: tuple[str, str], name: str = "job", more: str = "", choice: Choice | None = None):  # type: ignore[no-untyped-def]
    file = storage / f"{name}.yaml"
    file.write_text(JOB.format(name=name, data=Path(digits[0]).parent, storage=storage, more=more))
    return run.run(check.check(schema.load(file)), choice, str(file))


def test_a_chain_goes_side_by_side_is_never_repeated_and_lends_its_stages(
    two: Cluster, storage: Path, digits: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    found = carry_out(storage, digits)
    assert [result.model for result in found] == ["a", "deep-B", "deep-D", "deep-B+late"]
    assert two.began[0] == "a"
    assert set(two.began[1:3]) == {"deep-B", "deep-D"}
    assert sorted(two.began) == ["a", "deep-B", "deep-D", "late"]
    assert frozenset({"deep-B", "deep-D"}) in two.together
    assert all(len(names) <= 2 for names in two.together)
    first = capsys.readouterr().out
    assert "deep-D: net D, S 34: will run" in first
    check_mlflow(storage)

    two.began.clear()
    assert carry_out(storage, digits) == found
    assert two.began == [], "all of it was done"
    carry_out(storage, digits, "other", "jitter: {net: D, scale: [32, 40], init: {from: deep-D}, epochs: 1}")
    assert two.began == ["jitter"], "another job has the rest"
    assert capsys.readouterr().out.count("in job job (finished after") == 4


def check_mlflow(storage: Path) -> None:
    client = MlflowClient(f"sqlite:///{storage}/mlflow.db")
    experiment = client.get_experiment_by_name("job")
    runs = {r.info.run_name: r for r in client.search_runs([experiment.experiment_id])}
    assert {name: run.info.status for name, run in runs.items()} == dict.fromkeys(
        ("job", "a", "deep-B", "deep-D", "late"), "FINISHED"
    )
    nets = {name: run.data.metrics["top1_error"] for name, run in runs.items() if name not in ("job", "late")}
    assert all(0 <= error <= 1 for error in nets.values())
    model = client.get_registered_model("job")
    assert set(model.aliases) >= {"best", "deep-B", "deep-D", "late"}


def test_a_stage_that_fails_takes_with_it_what_waits_for_it_and_nothing_else(
    two: Cluster, storage: Path, digits: tuple[str, str]
) -> None:
    two.broken = {"deep-D"}
    with pytest.raises(TrainingError) as caught:
        carry_out(storage, digits)
    assert str(caught.value).splitlines() == [
        "deep-D failed: it is broken",
        "not done, since they wait for deep-D: late, test of deep-D, test of late",
    ]
    assert caught.value.exit_status == 1
    assert sorted(two.began) == ["a", "deep-B", "deep-D"]
    phases = {line["name"]: line["phase"] for line in read(storage / "runs/job/status.json")["board"]["lines"]}
    assert phases == {
        **dict.fromkeys(("a", "deep-B", "test of a", "test of deep-B"), "done"),
        "deep-D": "failed",
        **dict.fromkeys(("late", "test of deep-D", "test of late"), "left out"),
    }
    two.broken = set()
    two.began.clear()
    found = carry_out(storage, digits)
    assert sorted(two.began) == ["deep-D", "late"], "what is missing, and nothing else"
    assert len(found) == 4


def test_a_stop_ends_all_parts_and_the_next_run_goes_on(two: Cluster, storage: Path, digits: tuple[str, str]) -> None:
    two.held = "deep-D"

    def ask() -> None:
        while "deep-D" not in two.began:
            time.sleep(0.01)
        (storage / "runs/job/stop.json").write_text(
            json.dumps({"id": read(storage / "runs/job/lease.json")["id"], "from": "a test", "now": False})
        )

    asking = threading.Thread(target=ask)
    asking.start()
    with pytest.raises(KeyboardInterrupt, match="verydeep stop"):
        carry_out(storage, digits)
    asking.join()
    assert read(storage / "runs/job/status.json")["ended"]["how"] == "stopped"
    assert not (storage / "runs/job/lease.json").exists()
    two.held = ""
    two.began.clear()
    assert len(carry_out(storage, digits)) == 4
    assert "a" not in two.began


def test_a_choice_of_stages_leaves_the_others_out(two: Cluster, storage: Path, digits: tuple[str, str]) -> None:
    found = carry_out(storage, digits, choice=Choice(until=("deep-B",)))
    assert two.began == ["a", "deep-B"]
    assert found == [], "each test has stages that are not wanted"
    two.began.clear()
    carry_out(storage, digits, choice=Choice(only=("deep-B",), fresh=True))
    assert two.began == ["deep-B"]


def read(file: Path) -> dict[str, Any]:
    content = json.loads(file.read_text())
    assert isinstance(content, dict)
    return content
