"""A job's status in its storage: written by one process, looked at by another."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from jobs import current_run, follow, outline, schema, status
from jobs.board import Board
from jobs.cli import main
from jobs.current_run import Standing
from jobs.line import Line, Phase
from jobs.status import STATUS, Driver, Ended, Status, published
from pipelines.errors import DataError, TrainingError
from pipelines.location import Location
from tests.jobs.boards import NOW, epoch, small
from tests.jobs.finished import JOB_FILE, finished_run
from tests.jobs.terminal import ROOT, run_in_terminal


def board() -> Board:
    found = Board("job", [Line("a", "net A, S 34"), Line("e", "net E, S 34", ("a",))], "1 worker")
    found.set("a", Phase.RUNNING)
    found.hear("a", epoch(1, 4, 0.5))
    return found


def read(folder: Path) -> Status:
    found = status.read(Location.of(folder))
    assert found is not None
    return found


def wait_for(folder: Path, counter: int) -> Status:
    deadline = time.monotonic() + 60
    while not (folder / STATUS).exists() or (found := read(folder)).counter < counter:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


def test_what_is_known_is_written_when_it_changes_and_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(status, "_DISK_SECONDS", 0.05)
    known, told = board(), list[str]()
    with published(known, Location.of(tmp_path), told.append):
        first = wait_for(tmp_path, 1)
        assert (first.ended, first.driver) == (None, Driver.here())
        time.sleep(0.3)
        assert read(tmp_path).counter == 1, "nothing has changed"
        known.hear("a", epoch(2, 4, 0.75))
        assert wait_for(tmp_path, 2).board.lines[0].validation_accuracy == 0.75
        known.set("a", Phase.DONE)
    last = read(tmp_path)
    assert last.ended == Ended("done")
    assert last.board.lines == known.snapshot().lines
    assert not told
    assert [file.name for file in tmp_path.iterdir()] == [STATUS]


def test_a_driver_of_which_nothing_is_new_is_heard_of_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(status, "_DISK_SECONDS", 0.02)
    monkeypatch.setattr(status, "BEAT_SECONDS", 0.1)
    with published(board(), Location.of(tmp_path), print):
        wait_for(tmp_path, 4)


@pytest.mark.parametrize(
    ("error", "ended"),
    [
        (TrainingError("the loss is nan\nand more"), Ended("failed", "the loss is nan")),
        (KeyboardInterrupt(), Ended("stopped", "interrupted")),
        (ZeroDivisionError("by zero"), Ended("failed", "by zero")),
    ],
)
def test_the_last_one_says_how_the_run_ended(tmp_path: Path, error: BaseException, ended: Ended) -> None:
    with pytest.raises(type(error)), published(board(), Location.of(tmp_path), print):
        raise error
    assert read(tmp_path).ended == ended


def test_a_run_with_a_stage_that_failed_has_failed(tmp_path: Path) -> None:
    known = board()
    with published(known, Location.of(tmp_path), print):
        known.set("a", Phase.FAILED, "the loss is nan")
    assert read(tmp_path).ended == Ended("failed", "a failed")


def test_a_storage_that_fails_is_warned_of_once_and_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(status, "_DISK_SECONDS", 0.02)
    known, told = board(), list[str]()
    (tmp_path / "file").write_text("no folder")
    with published(known, Location.of(tmp_path / "file"), told.append):
        for i in range(10):
            known.hear("a", epoch(i, 20, 0.5))
            time.sleep(0.03)
    assert len(told) == 1
    assert told[0].startswith(f"warning: {tmp_path}/file/{STATUS} cannot be written: ")


def test_it_comes_back_from_json_as_it_was_and_damage_is_told_of(tmp_path: Path) -> None:
    before = Status(Driver("node-3", 42, "raysubmit_1"), NOW - 9, 7, NOW, Ended("failed", "why"), small())
    assert Status.of(json.loads(json.dumps(before.plain(), allow_nan=False))) == before
    assert Status.of({**before.plain(), "weather": "fair"}) == before
    text = json.dumps(before.plain())
    for damaged in (text[: len(text) // 2], "", "[]", text.replace('"version": 1', '"version": 99'), "\0" * 100):
        (tmp_path / STATUS).write_text(damaged)
        with pytest.raises(DataError, match=rf"^{tmp_path}/{STATUS}: damaged, or of a later version of the program$"):
            read(tmp_path)


DRIVER = """
import sys, time
from jobs.board import Board
from jobs.line import Line, Phase
from jobs import status
from pipelines.location import Location

status._DISK_SECONDS = 0.1
status.BEAT_SECONDS = 0.2
EPOCH = EPOCH_1
board = Board("job", [Line("a", "net A, S 34"), Line("e", "net E, S 34", ("a",))], "1 worker")
with status.published(board, Location.of(sys.argv[1]), print):
    board.set("a", Phase.RUNNING)
    for line in sys.stdin:
        exec(line)
""".replace("EPOCH_1", repr(epoch(1, 4, 0.5)))


class Elsewhere:
    """A job that runs in another process, which does what it is told."""

    def __init__(self, folder: Path) -> None:
        self.process = subprocess.Popen([sys.executable, "-c", DRIVER, folder], stdin=subprocess.PIPE, cwd=ROOT)
        wait_for(folder, 1)

    def do(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n".encode())
        self.process.stdin.flush()

    def end(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Elsewhere]:
    job = Elsewhere(tmp_path)
    yield job
    job.process.kill()
    job.process.wait()
    assert job.process.stdin is not None
    job.process.stdin.close()


def test_a_job_that_runs_elsewhere_is_seen_to_run_and_to_be_killed(
    elsewhere: Elsewhere, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["status", str(tmp_path)]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].startswith("job  0 of 2 done, 1 running")
    assert shown[1] == "● a    net A, S 34  starts"
    assert shown[2] == "○ └─e  net E, S 34  waits for a"
    assert shown[3].startswith(f"running on {Driver.here().host}, process {elsewhere.process.pid}, since 20")
    elsewhere.process.send_signal(signal.SIGKILL)
    elsewhere.process.wait()
    found = current_run.look(Location.of(tmp_path), 1.5)
    assert (found.standing, found.exit_status) == (Standing.SILENT, 1)
    assert found.text.startswith(f"not running: {Driver.here().host}, process {elsewhere.process.pid} was last heard")
    assert found.text.endswith(" UTC; `verydeep run` goes on where it stopped")


def test_following_a_job_tells_what_changes_until_it_is_done(
    elsewhere: Elsewhere, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    acts = iter(
        [
            'board.hear("a", EPOCH)',
            'board.hear("a", {"kind": "warning", "text": "worker 1 died"})',
            'board.hear("a", {"kind": "workers", "count": 1, "attempt": 2})',
            'board.set("a", Phase.DONE, "1 epochs"); board.set("e", Phase.RUNNING)',
            'board.set("e", Phase.FAILED, "the loss is nan")',
        ]
    )

    def pause(root: Location) -> float:
        """Between two looks the job gets on."""
        counter = read(tmp_path).counter
        if (act := next(acts, None)) is not None:
            elsewhere.do(act)
            wait_for(tmp_path, counter + 2)  # the one that was being written may be without it
        else:
            elsewhere.end()
        return 0.01

    monkeypatch.setattr(current_run, "pause", lambda root: 0.1)
    assert current_run.look(Location.of(tmp_path), 30).standing is Standing.RUNNING
    monkeypatch.setattr(
        current_run, "look", lambda root, _: current_run.Found(Standing.RUNNING, read(tmp_path).board, read(tmp_path))
    )
    monkeypatch.setattr(current_run, "pause", pause)
    assert follow.follow(Location.of(tmp_path), 30, as_json=False) == 1
    shown = capsys.readouterr().out.splitlines()
    assert shown[4:-1] == [
        "a  epoch 1/4  step 50/50  loss 1.5000  accuracy 0.500  validation 0.500 (epoch 1)  640 images/s  "
        "rate 0.01  at most 5 min left",
        "a: warning: worker 1 died",
        "a: 1 worker at work, attempt 2",
        "a: done, 1 epochs, best validation accuracy 0.500",
        "e: running",
        "e: failed: the loss is nan",
    ]
    assert shown[-1].startswith("failed on 20")
    assert shown[-1].endswith(" UTC: e failed")


def test_following_ends_when_the_driver_is_not_heard_of_any_more(
    elsewhere: Elsewhere, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[float] = []

    def pause(root: Location) -> float:
        looked.append(0)
        if len(looked) == 5:
            elsewhere.process.kill()
        return 0.1

    monkeypatch.setattr(current_run, "pause", pause)
    assert follow.follow(Location.of(tmp_path), 1.5, as_json=True) == 1
    standings = [json.loads(line)["standing"] for line in capsys.readouterr().out.splitlines()]
    assert standings[0] == "running"
    assert standings[-1] == "silent"
    assert set(standings) == {"running", "silent"}


def test_in_a_terminal_following_is_a_live_view_that_ends_with_how_the_job_ended(
    elsewhere: Elsewhere, tmp_path: Path
) -> None:
    def act(written: str, *_: object) -> None:
        if "running on" in written and not ended:
            ended.append(True)
            elsewhere.do('board.set("a", Phase.DONE, "4 epochs"); board.set("e", Phase.DONE, "2 epochs")')
            elsewhere.end()

    ended: list[bool] = []
    program = f"""
import sys
from jobs import follow
from pipelines.location import Location

sys.exit(follow.follow(Location.of({str(tmp_path)!r}), 30, as_json=False))
"""
    screen, code = run_in_terminal(program, 100, 24, act)
    shown = [line.rstrip() for line in screen.lines if line.strip()]
    assert code == 0
    assert screen.cursor_shown
    assert shown[0].startswith("job  2 of 2 done")
    assert shown[1].startswith("✓ a    net A, S 34  4 epochs")
    assert shown[2].startswith("✓ └─e  net E, S 34  2 epochs")
    assert shown[3].startswith("done on 20")
    assert len(shown) == 4


@pytest.fixture(scope="module")
def finished(digits: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished_run(digits, tmp_path_factory.mktemp("finished"))


def test_of_a_job_that_wrote_no_status_what_is_stored_is_shown(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "kinds"
    shutil.copytree(finished, run)
    assert main(["status", str(run)]) == 0
    assert [line.rstrip() for line in capsys.readouterr().out.splitlines()] == STORED
    (next(run.glob("e-*")) / "done.json").unlink()
    assert main(["status", str(run), "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["standing"] == "unknown"
    assert [line["phase"] for line in told["board"]["lines"]] == ["done", "stopped", "done", "waiting"]


STORED = [
    "kinds  4 of 4 done",
    "✓ a              net A, S 34                  validation 0.700 (epoch 3)  2 min",
    "✓ ├─test of a    dense, Q 34                  done",
    "✓ └─e            net E, S 32 to 40            validation 0.800 (epoch 2)  60 s",
    "✓   └─test of e  dense and multi-crop, Q 32…  done",
    "no run of this job tells how it stands; this is what it has stored",
]


def test_a_status_much_older_than_what_is_stored_does_not_count(finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "kinds"
    shutil.copytree(finished, run)
    old = Status(Driver.here(), NOW, 3, NOW, Ended("failed", "why"), small())
    (run / STATUS).write_text(json.dumps(old.plain()))
    assert current_run.look(Location.of(run), 0.5).text.startswith("failed on 1970-01-12")
    times = (datetime(2020, 1, 1, tzinfo=UTC).timestamp(),) * 2
    os.utime(run / STATUS, times)
    found = current_run.look(Location.of(run), 0.5)
    assert found.standing is Standing.UNKNOWN
    assert found.board.job == "kinds"


def test_what_is_no_job_is_told_of_in_one_line(
    digits: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "jobs").mkdir()
    job = tmp_path / "jobs" / "job.yaml"
    job.write_text(JOB_FILE.format(train=digits[0], val=digits[1], storage=tmp_path / "storage"))
    places = {
        str(job): f"verydeep: {tmp_path}/storage/runs/kinds: holds no run of a job (it has no job.yaml)\n",
        str(tmp_path / "none"): f"verydeep: {tmp_path}/none: holds no run of a job (it has no job.yaml)\n",
        str(tmp_path): f"verydeep: {tmp_path}: holds no run of a job (it has no job.yaml)\n",
    }
    for place, line in places.items():
        for more in ([], ["--follow"], ["--json"]):
            assert main(["status", place, *more]) == 2
            assert capsys.readouterr() == ("", line)
    (tmp_path / STATUS).write_text("{")
    assert main(["status", str(tmp_path)]) == 2
    expected = f"verydeep: {tmp_path}/{STATUS}: damaged, or of a later version of the program\n"
    assert capsys.readouterr().err == expected


def test_the_nodes_of_a_job_are_its_stages_and_the_tests_of_nets(digits: tuple[str, str]) -> None:
    job = schema.parse(
        JOB_FILE.format(train=digits[0], val=digits[1], storage="/nowhere")
        + "  file: {models: [./x.safetensors], mode: multi-crop, scales: [40, 36]}\n",
        "job.yaml",
    )
    assert outline.lines(job, {"./x.safetensors": "x"}) == [
        Line("a", "net A, S 34"),
        Line("e", "net E, S 32 to 40", ("a",)),
        Line("test of a", "dense, Q 34", ("a",)),
        Line("test of e", "dense and multi-crop, Q 32 34 36 40", ("e",)),
        Line("test of x", "multi-crop, Q 36 40"),
    ]
