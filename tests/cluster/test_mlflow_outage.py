"""What MLflow is told arrives, all of it and once, whatever happens to a real server on PostgreSQL meanwhile."""

import hashlib
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median, quantiles

import pytest
from mlflow import MlflowClient

from cluster.track import Tracker
from jobs import cli
from pipelines.location import Location
from tests.cluster.mlflow_server import Postgres, Server, wait_for

ROOT = Path(__file__).parent.parent.parent
PROCESS = """
import sys, time
from cluster.track import Tracker
from pipelines.location import Location

uri, spool, known, first = sys.argv[1:]
tracker = Tracker(uri, "outage", Location.of(spool))
run = tracker.open_run("killed", None, {}, known)
for step in range(int(first), 100_000):
    tracker.metrics(run, {"loss": 1 / step}, step)
    print(step, flush=True)
    time.sleep(0.005)
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Not started; its database is."""
    database = Postgres()
    server = Server(tmp_path_factory.mktemp("mlflow"), database)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
            patch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
            database.start()
            yield server
    finally:
        server.down()
        database.stop()
        shutil.rmtree(database.folder, ignore_errors=True)


@contextmanager
def patience() -> Iterator[None]:
    """For a server on a busy machine, which has all to be read."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "120")
        yield


class Training:
    """Logs as training does, and remembers what."""

    def __init__(self, uri: str, folder: Path, name: str) -> None:
        self.folder, self.name, self.said = folder, name, list[str]()
        self.spool = Location.of(folder / "spool")
        self.tracker = Tracker(uri, "outage", self.spool, self.said.append)
        self.parent = self.tracker.open_run(f"job of {name}", None, {"job": name}, None)
        self.run = self.tracker.open_run(name, self.parent, {"stage": name, "net": "A"}, None)
        self.params = {f"setting.{i}": str(i) for i in range(120)}  # more than a batch holds
        self.tracker.parameters(self.run, {"setting": dict(enumerate(range(120)))})
        self.points: list[tuple[int, int, float]] = []
        self.files: set[str] = set()
        (folder / "files").mkdir(parents=True)

    def steps(self, count: int, seconds: float = 0.0) -> None:
        for step in range(len(self.points) + 1, len(self.points) + count + 1):
            self.points.append((step, 1_700_000_000_000 + step, random.random()))
            _, at, value = self.points[-1]
            self.tracker.metrics(self.run, {"loss": value, "accuracy": 1 - value}, step, at / 1000)
            if step % 100 == 0:
                file = self.folder / "files" / f"{step}.txt"
                file.write_text(str(step))
                self.tracker.artifact(self.run, Location.of(file), "files")
                self.tracker.text(self.run, str(step), "last.txt")
                self.files.add(f"files/{step}.txt")
            time.sleep(seconds)

    def end(self) -> None:
        self.tracker.end_run(self.run, "FINISHED")
        self.tracker.end_run(self.parent, "FINISHED")

    @patience()
    def check(self, uri: str) -> None:
        """All is there, nothing twice, and nothing is left in the spool."""
        client = MlflowClient(uri)
        experiment = client.get_experiment_by_name("outage")
        assert experiment is not None
        by_id = {
            ours: client.search_runs([experiment.experiment_id], f"tags.`verydeep.run` = '{ours}'")
            for ours in (self.parent, self.run)
        }
        (parent,), (run,) = by_id.values()
        number = run.info.run_id
        assert (run.info.run_name, run.info.status, parent.info.status) == (self.name, "FINISHED", "FINISHED")
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert (run.data.tags["stage"], run.data.tags["net"], run.data.tags["restarts"]) == (self.name, "A", "0")
        assert run.data.params == self.params
        for key, of in (("loss", lambda v: v), ("accuracy", lambda v: 1 - v)):
            history = sorted((m.step, m.timestamp, m.value) for m in client.get_metric_history(number, key))
            assert history == [(step, at, of(value)) for step, at, value in self.points]
        assert {file.path for file in client.list_artifacts(number, "files")} == self.files
        last = Path(client.download_artifacts(number, "last.txt", str(self.folder))).read_text()
        assert last == str(len(self.points) // 100 * 100)
        assert not self.spool.files()


def test_a_server_that_is_down_at_the_start_has_all_when_it_comes(server: Server, tmp_path: Path) -> None:
    training = Training(server.uri, tmp_path, "early")
    training.steps(250)
    wait_for(lambda: training.said)
    server.up()
    training.steps(250)
    training.end()
    assert training.tracker.settle(120)
    training.tracker.close()
    training.check(server.uri)
    assert ["does not answer" in line for line in training.said] == [True, False]
    assert "is back" in training.said[1]


def test_answers_that_are_lost_make_nothing_twice(server: Server, tmp_path: Path) -> None:
    server.up()
    with unreliable(server.port) as (port, cut):
        training = Training(f"http://127.0.0.1:{port}", tmp_path, "cut")
        for _ in range(8):
            training.steps(60, 0.004)
        training.end()
        assert training.tracker.settle(120)
        training.tracker.close()
    assert len(cut) > 5
    training.check(server.uri)


def test_a_killed_server_a_killed_process_and_what_is_left_for_sync(server: Server, tmp_path: Path) -> None:
    server.up()
    through, left = (Training(server.uri, tmp_path / name, name) for name in ("through", "left"))
    killed = start_process(server.uri, tmp_path, "0" * 32, 1)
    for training in (through, left):
        training.steps(300, 0.001)
    server.down()
    for training in (through, left):
        training.steps(250, 0.001)
        training.end()
    wait_for(lambda: left.said)
    killed_at = ended(killed)
    left.tracker.close()
    assert "verydeep sync" in left.said[-1]
    again = start_process(server.uri, tmp_path, "0" * 32, killed_at + 2)  # still without the server
    time.sleep(0.5)
    server.up()
    assert through.tracker.settle(120)
    through.tracker.close()
    through.check(server.uri)
    assert cli.main(["sync", str(tmp_path / "left")]) == 0
    left.check(server.uri)
    wait_for(lambda: steps_of(server.uri)[-1:] > [killed_at + 20])
    last = ended(again)
    assert cli.main(["sync", str(tmp_path / "spool")]) == 0
    steps = steps_of(server.uri)
    assert set(range(1, killed_at + 1)) | set(range(killed_at + 2, last + 1)) <= set(steps)
    assert (
        len(steps) == len(set(steps)) <= last + 1
    )  # each process may have written a step that it did not get to print


def test_a_database_that_goes_and_comes_back_under_the_server(server: Server, tmp_path: Path) -> None:
    server.up()
    training = Training(server.uri, tmp_path, "database")
    training.steps(150, 0.001)
    server.database.stop()
    training.steps(200, 0.005)
    wait_for(lambda: training.said)
    server.database.start()
    training.steps(150)
    training.end()
    assert training.tracker.settle(120)
    training.tracker.close()
    training.check(server.uri)


def test_a_database_that_can_be_read_but_not_written_is_an_outage(server: Server, tmp_path: Path) -> None:
    server.up()
    training = Training(server.uri, tmp_path, "read only")
    training.steps(150, 0.001)
    assert training.tracker.settle(60)
    server.database.read_only(True)
    training.steps(200, 0.001)
    wait_for(lambda: training.said)
    server.database.read_only(False)
    training.steps(150)
    training.end()
    assert training.tracker.settle(120)
    training.tracker.close()
    training.check(server.uri)
    assert [("takes nothing" in line, "is back" in line) for line in training.said] == [(True, False), (False, True)]


@pytest.mark.parametrize("state", ["up", "down", "hanging"])
def test_a_call_takes_less_than_a_hundredth_of_a_step(
    state: str, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    server.up() if state == "up" else server.down()
    values = {f"metric_{i}": i / 7 for i in range(10)}
    work = bytes(1 << 18)
    calls, calls_cpu, steps, steps_cpu = [], [], [], []
    with socket.create_server(("127.0.0.1", 0)) as silent:
        uri = f"http://127.0.0.1:{silent.getsockname()[1]}" if state == "hanging" else server.uri
        tracker = Tracker(uri, "cost", Location.of(tmp_path / "spool"), lambda line: None)
        run = tracker.open_run("cost", None, {}, None)
        for step in range(60 if state == "hanging" else 30):  # past several calls that wait in vain
            began, began_cpu = time.perf_counter(), time.thread_time()
            while time.thread_time() - began_cpu < 0.05:
                hashlib.sha256(work)
            steps.append(time.perf_counter() - began)
            steps_cpu.append(time.thread_time() - began_cpu)
            began, began_cpu = time.perf_counter(), time.thread_time()
            tracker.metrics(run, values, step)
            calls.append(time.perf_counter() - began)
            calls_cpu.append(time.thread_time() - began_cpu)
        tracker.close()
    told = f"{state}: {1e6 * median(calls):.0f} us, 99th percentile {1e6 * quantiles(calls, n=100)[98]:.0f} us"
    print(f"{told}; a step {1e3 * median(steps):.0f} ms")
    assert median(calls) < 0.01 * median(steps), told
    assert sum(calls_cpu) < 0.01 * sum(steps_cpu), told
    assert max(calls) < 1, told  # none waits for the server's silence


def start_process(uri: str, folder: Path, run: str, first: int) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", PROCESS, uri, str(folder / "spool"), run, str(first)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    return process


def ended(process: "subprocess.Popen[str]") -> int:
    """Killed; the last step that it said it had logged."""
    process.send_signal(signal.SIGKILL)
    assert process.stdout is not None
    lines = process.stdout.read().splitlines()
    process.wait()
    return int(lines[-1])


@patience()
def steps_of(uri: str) -> list[int]:
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("outage")
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id], f"tags.`verydeep.run` = '{'0' * 32}'")
    return sorted(m.step for run in found for m in client.get_metric_history(run.info.run_id, "loss"))


class unreliable:
    """A way to the server that now and then is cut after the request went through, before its answer comes."""

    def __init__(self, port: int) -> None:
        self._port, self._cut = port, list[int]()
        self._random = random.Random(3)
        self._listening = socket.create_server(("127.0.0.1", 0))

    def __enter__(self) -> tuple[int, list[int]]:
        threading.Thread(target=self._accept, daemon=True).start()
        return self._listening.getsockname()[1], self._cut

    def __exit__(self, *_: object) -> None:
        self._listening.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, socket.create_connection(("127.0.0.1", self._port)) as server:
            forward = threading.Thread(target=self._copy, args=(client, server), daemon=True)
            forward.start()
            while answer := receive(server):
                if self._random.random() < 0.15:
                    self._cut.append(len(answer))
                    break
                client.sendall(answer)
            for end in (client, server):
                with_shutdown(end)
            forward.join()

    def _copy(self, client: socket.socket, server: socket.socket) -> None:
        while request := receive(client):
            server.sendall(request)
        with_shutdown(server)


def receive(end: socket.socket) -> bytes:
    try:
        return end.recv(1 << 16)
    except OSError:
        return b""


def with_shutdown(end: socket.socket) -> None:
    try:
        end.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass
