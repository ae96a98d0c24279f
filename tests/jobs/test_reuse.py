"""What is done is never done again: by the same job, by another one, and wherever a driver was killed."""

import json
import shutil
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cluster import checkpoint
from jobs import check, decide, schema
from jobs.check import Checked
from jobs.cli import main
from jobs.plan import Action
from jobs.selection import Choice
from jobs.store import DONE, INDEX, JOB, KEY, STAGES, StageFolder, Store, write_json, write_text
from pipelines.location import Location
from tests.cluster.test_checkpoint import made, save
from tests.jobs import driver

EPOCHS = 2
TEXT = """name: {name}
data: {{train: {train}, val: {val}}}
storage: {storage}
train: {{input_size: 32, width: 0.05, epochs: 2}}
stages:
"""
CHAIN = "  a: {net: A, scale: 32}\n  e: {net: E, scale: 32, init: {from: a}}\n  b: {net: B, scale: 32}\n"


class Killed(BaseException):
    """Comes at a write, as SIGKILL would."""


class Jobs:
    """Job files in one storage, and runs of them that train nothing but write all that a run writes.

    `trained`: the checkpoint files that were written, by folder and name.
    """

    def __init__(self, digits: tuple[str, str], place: Path, template: Path) -> None:
        self.storage, self.trained = place / "storage", Counter[str]()
        self._digits, self._place, self._template = digits, place, template

    def file(self, name: str = "t", stages: str = CHAIN) -> Path:
        path = self._place / f"{name}.yaml"
        train, val = self._digits
        path.write_text(TEXT.format(name=name, train=train, val=val, storage=self.storage) + stages)
        return path

    def check(self, job: Path, *changes: str) -> Checked:
        return check.check(schema.load(job, changes))

    def run(self, job: Path, *changes: str, fresh: bool = False, generation: int = 0) -> list[Action]:
        checked = self.check(job, *changes)
        todo = decide.decisions(checked, Choice(fresh=fresh))
        checked.store.create()
        folders = checked.begun(todo)
        checked.store.note_stages(folders)
        write_text(checked.store.root / JOB, schema.resolved(checked.job))
        for decision in todo:
            folder = folders[decision.stage]
            if decision.action is Action.REUSE:
                assert folder.finished() is not None
            else:
                self._train(folder, generation)
        return [decision.action for decision in todo]

    def _train(self, folder: StageFolder, generation: int) -> None:
        folder.begin()
        while (done := len(folder.progress().epochs)) < EPOCHS:
            name = checkpoint.path_of(folder.path, done + 1).name
            (folder.path / name).write((self._template / str(generation) / name).read_bytes())
            self.trained[f"{folder.path.parent.name}/{folder.path.name}/{name}"] += 1
        folder.finish(folder.progress(), "best")

    def generations(self, folder: StageFolder) -> set[int]:
        """Which runs its checkpoints are of."""
        return {
            generation
            for place in checkpoint.files_of(folder.path).values()
            for generation in (0, 1)
            if place.read_bytes() == (self._template / str(generation) / place.name).read_bytes()
        }


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of two runs."""
    place = tmp_path_factory.mktemp("template")
    for generation in (0, 1):
        folder = Location.of(place / str(generation))
        save(folder, made((0.5,), seed=generation), made((0.5, 0.6), seed=generation))
    return place


@pytest.fixture
def jobs(digits: tuple[str, str], tmp_path: Path, template: Path) -> Jobs:
    return Jobs(digits, tmp_path, template)


@contextmanager
def killed(at: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], int]]:
    """The process dies before the change of the storage number `at`. The block is given how many there were."""
    count = 0

    def dying(change: Callable[..., None]) -> Callable[..., None]:
        def changed(*arguments: Any) -> None:
            nonlocal count
            count += 1
            if count == at:
                raise Killed
            change(*arguments)

        return changed

    with monkeypatch.context() as patched:
        patched.setattr(Location, "write", dying(Location.write))
        patched.setattr(Location, "delete", dying(Location.delete))
        try:
            yield lambda: count
        except Killed:
            pass


def everywhere(jobs: Jobs, monkeypatch: pytest.MonkeyPatch, run: Callable[[], object]) -> Iterator[None]:
    """Once for each change of the storage that `run` makes, killed before it; in the same storage each time."""
    kept = jobs.storage.with_name("kept")
    if jobs.storage.exists():
        shutil.copytree(jobs.storage, kept)
    with killed(0, monkeypatch) as counted:
        run()
    changes = counted()
    assert changes > 5
    for at in range(1, changes + 1):
        shutil.rmtree(jobs.storage)
        if kept.exists():
            shutil.copytree(kept, jobs.storage)
        jobs.trained.clear()
        with killed(at, monkeypatch):
            run()
        yield


def test_a_driver_that_is_killed_at_any_write_repeats_nothing_that_it_had_done(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = jobs.file()
    for _ in everywhere(jobs, monkeypatch, lambda: jobs.run(job)):
        done = {path.parent.name for path in jobs.storage.glob(f"runs/t/*/{DONE}")}
        actions = jobs.run(job)
        assert actions.count(Action.REUSE) == len(done)
        assert list(jobs.trained.values()) == [1] * 3 * EPOCHS
        assert jobs.run(job) == [Action.REUSE] * 3


def test_what_was_to_be_fresh_and_was_killed_is_old_or_new_and_never_both(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = jobs.file(stages=CHAIN.partition("  b:")[0])
    jobs.run(job)
    seen = set()
    for _ in everywhere(jobs, monkeypatch, lambda: jobs.run(job, fresh=True, generation=1)):
        folders = jobs.check(job).folders.values()
        was = [jobs.generations(folder) if folder.finished() else {1} for folder in folders]
        jobs.run(job, generation=1)
        assert [jobs.generations(folder) for folder in folders] == was
        assert all(folder.finished() for folder in folders)
        assert set(jobs.trained.values()) <= {1}
        seen.add(tuple(map(min, was)))
    assert seen == {(0, 0), (1, 0), (1, 1)}


def planned(text: str) -> list[str]:
    """What is done with each part, and why, in what `verydeep plan` prints."""
    actions = tuple(f"    {action.value}: " for action in Action)
    return [line.strip() for line in text.splitlines() if line.startswith(actions)]


def test_another_job_takes_what_is_done_and_trains_only_what_it_adds(
    jobs: Jobs, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs.run(jobs.file())
    jobs.trained.clear()
    more = jobs.file("u", CHAIN.replace("a", "first") + "  d: {net: D, scale: 32, init: {from: first}}\n")
    more.write_text(more.read_text().replace("scfirstle", "scale"))
    assert main(["plan", str(more)]) == 0
    assert planned(capsys.readouterr().out) == [
        *["done: in job t (finished after 2 epochs)"] * 3,
        "will run: nothing with these settings and data in the storage",
    ]
    assert jobs.run(more) == [Action.REUSE] * 3 + [Action.TRAIN]
    assert all(name.startswith("u/d-") for name in jobs.trained)
    noted = Store.of(Location.of(jobs.storage), "u").noted_stages()
    assert {name: (f.job, f.path.parent.name) for name, f in noted.items()} == {
        **dict.fromkeys(("first", "e", "b"), ("t", "t")),
        "d": (None, "u"),
    }
    assert all(folder.finished() is not None for folder in noted.values())
    assert main(["report", str(more)]) == 0
    page = (jobs.storage / "runs" / "u" / "report.html").read_text()
    assert "has not finished" not in page
    shutil.rmtree(jobs.storage / "runs" / "t")
    assert main(["report", str(more)]) == 0
    assert "Stage first has not finished: it was done in job t, and " in (
        (jobs.storage / "runs" / "u" / "report.html").read_text()
    )
    assert jobs.run(more) == [Action.TRAIN] * 3 + [Action.REUSE], "and what is gone is trained again"


def test_a_storage_that_was_moved_keeps_what_is_done(jobs: Jobs, tmp_path: Path) -> None:
    jobs.run(jobs.file())
    jobs.run(jobs.file("u"))
    jobs.storage = jobs.storage.rename(tmp_path / "elsewhere")
    assert jobs.run(jobs.file("v")) == [Action.REUSE] * 3
    assert {f.job for f in Store.of(Location.of(jobs.storage), "u").noted_stages().values()} == {"t"}
    assert all(f.finished() for f in Store.of(Location.of(jobs.storage), "u").noted_stages().values())


def test_fresh_trains_in_the_jobs_own_folder_and_leaves_others_alone(jobs: Jobs) -> None:
    jobs.run(jobs.file())
    jobs.trained.clear()
    other = jobs.file("u")
    assert jobs.run(other) == [Action.REUSE] * 3
    assert jobs.run(other, fresh=True, generation=1) == [Action.AGAIN] * 3
    assert all(name.startswith("u/") for name in jobs.trained)
    for name, generation in (("t", 0), ("u", 1)):
        for folder in jobs.check(jobs.file(name)).folders.values():
            assert folder.job is None
            assert jobs.generations(folder) == {generation}
    shutil.rmtree(jobs.storage / "runs" / "u")
    assert {f.job for f in jobs.check(other).folders.values()} == {"t"}, "the copy before is known still"


@pytest.mark.parametrize("content", ["{", '{"copies": 3}', '{"copies": [1, {"job": 1}, {"job": "x"}]}'])
def test_a_damaged_index_counts_as_none(content: str, jobs: Jobs) -> None:
    jobs.run(jobs.file())
    entries = list((jobs.storage / INDEX).iterdir())
    assert len(entries) == 3
    for entry in entries:
        entry.write_text(content)
    assert jobs.run(jobs.file()) == [Action.REUSE] * 3
    assert jobs.run(jobs.file("u")) == [Action.TRAIN] * 3
    assert jobs.run(jobs.file("v")) == [Action.REUSE] * 3


@pytest.mark.parametrize(
    "damage",
    [
        lambda done: done.unlink(),
        *(lambda done, text=text: done.write_text(text) for text in ("", "[1]", '{"key": "other"}')),
        lambda done: done.write_bytes(b"\xff\xfe"),
        *(
            lambda done, change=change: done.write_text(json.dumps({**json.loads(done.read_text()), **change}))
            for change in ({"epochs": []}, {"epochs": [{}]}, {"delivered": 5})
        ),
        lambda done: done.write_text(json.dumps({"key": json.loads(done.read_text())["key"]})),
        lambda done: checkpoint.path_of(Location.of(done.parent), EPOCHS).delete(),
    ],
)
def test_a_stage_whose_mark_or_net_is_damaged_is_not_done(
    damage: Callable[[Path], object], jobs: Jobs, capsys: pytest.CaptureFixture[str]
) -> None:
    job = jobs.file()
    jobs.run(job)
    (done,) = jobs.storage.glob(f"runs/t/a-*/{DONE}")
    damage(done)
    assert main(["plan", str(job)]) == 0
    epochs = len(list(done.parent.glob("epoch-*")))
    told = planned(capsys.readouterr().out)
    assert told[:2] == [f"goes on: after epoch {epochs}", "done: finished after 2 epochs"]
    assert jobs.run(job) == [Action.RESUME, Action.REUSE, Action.REUSE]
    assert jobs.run(job) == [Action.REUSE] * 3


def test_a_changed_setting_is_named(jobs: Jobs, capsys: pytest.CaptureFixture[str]) -> None:
    job = jobs.file()
    jobs.run(job)
    assert main(["plan", str(job), "--set", "stages.a.learning_rate=0.005", "--set", "stages.b.seed=1"]) == 0
    changed = "learning_rate changed: 0.01 -> 0.005"
    assert planned(capsys.readouterr().out) == [
        f"will run: {changed}",
        f"will run: it starts from another a ({changed})",
        "will run: seed changed: 0 -> 1",
    ]
    for note in jobs.storage.glob(f"runs/t/*/{KEY}"):
        note.write_text('{"key": "x", "content": {}}')
    assert main(["plan", str(job), "--set", "stages.a.learning_rate=0.005"]) == 0
    assert capsys.readouterr().out.count("nothing with these settings and data in the storage") == 2


def test_folders_that_earlier_versions_noted_are_read(jobs: Jobs) -> None:
    jobs.run(jobs.file())
    store, folders = Store.of(Location.of(jobs.storage), "t"), jobs.check(jobs.file()).folders
    for note in jobs.storage.glob(f"runs/t/*/{KEY}"):
        note.unlink()
    shutil.rmtree(jobs.storage / INDEX)
    write_json(store.root / STAGES, {**{name: folder.key for name, folder in folders.items()}, "x": 1, "y": {"key": 1}})
    assert {name: f.path.path for name, f in store.noted_stages().items()} == {
        n: f.path.path for n, f in folders.items()
    }
    assert jobs.run(jobs.file()) == [Action.REUSE] * 3


def test_a_second_driver_is_told_who_runs_the_job_and_leaves(jobs: Jobs, capsys: pytest.CaptureFixture[str]) -> None:
    job = jobs.file()
    first = driver.started(jobs.storage / "runs" / "t", 20)
    assert driver.heard(first) == "held"
    assert main(["run", str(job)]) == 1
    line = f"verydeep: job t is being run by host {socket.gethostname()}, process {first.pid}, since "
    assert capsys.readouterr().err.startswith(line)
    assert {path.name for path in (jobs.storage / "runs" / "t").iterdir()} == {"lease.json", ".lease.json.lock"}
    first.kill()
    first.wait()
