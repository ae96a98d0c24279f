"""One driver per job, whoever begins when, dies, or sleeps; on a disk and in an object store (moto's S3)."""

import errno
import json
import os
import random
import re
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.interrupt import Stop
from jobs import holder, lease
from jobs.cli import main
from jobs.holder import Holder
from jobs.lease import LEASE, STOP, Held, Lease, held
from jobs.slot import Slot
from pipelines.errors import ClusterError, LeaseError
from pipelines.location import Location
from tests.jobs import driver
from tests.pipelines.test_shards import Server

EXPIRY = 1.6


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("empty"))
    yield server
    server.stop()


@pytest.fixture(params=["disk", "store"])
def root(request: pytest.FixtureRequest, tmp_path: Path, server: Server) -> Location:
    if request.param == "disk":
        return Location.of(tmp_path / "runs" / "demo")
    return Location.of(server.place.replace("sets/train", f"{tmp_path.name}/runs/demo"))


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("EXPIRY", EXPIRY), ("RENEWAL", EXPIRY / 8), ("LOOK", EXPIRY / 40)):
        monkeypatch.setattr(lease, f"{name}_SECONDS", seconds)
    monkeypatch.setattr(lease, "_SETTLE_SECONDS", 0.4)
    monkeypatch.setattr("jobs.stop_cli.LOOK_SECONDS", EXPIRY / 40)
    monkeypatch.setattr("jobs.stop_cli.EXPIRY_SECONDS", EXPIRY)


def elsewhere(host: str = "h") -> Holder:
    """A driver on another machine, of which nothing can be seen from here."""
    return replace(Holder.here(), host=host, boot=uuid.uuid4().hex, pid=123)


def no_word(line: str) -> None:
    raise AssertionError(f"nobody had to wait: {line}")


def wait(until: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not until():
        assert time.monotonic() < end
        time.sleep(0.01)


def read(root: Location) -> Held | None:
    return Held.of(Slot(root / LEASE).read())


@contextmanager
def holding(root: Location, who: Holder, stop: Stop) -> Iterator[Lease]:
    with held(root, stop, who, no_word) as mine:
        yield mine


def test_a_file_is_swapped_by_one_at_a_time(tmp_path: Path) -> None:
    """Of many that count in it, each from what it has seen, none is lost."""
    slot = Slot(Location.of(tmp_path / "new" / "count"))
    assert slot.swap(None, "0")
    assert not slot.swap(None, "1")

    def count(times: int) -> None:
        while times:
            text = slot.read()
            times -= slot.swap(text, str(int(text or "") + 1))

    threads = [threading.Thread(target=count, args=(25,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert slot.read() == "100"
    assert slot.swap("100", None)
    assert slot.read() is None
    assert [path.name for path in (tmp_path / "new").iterdir()] == [".count.lock"]


@pytest.mark.parametrize(
    ("root", "before"),
    [
        *(("disk", before) for before in ("nobody", "a dead driver elsewhere", "a dead driver here", "damage")),
        *(("store", before) for before in ("nobody", "a dead driver elsewhere")),
    ],
    indirect=["root"],
)
def test_of_many_that_begin_at_once_exactly_one_runs_the_job(root: Location, before: str) -> None:
    dead = {"a dead driver elsewhere": elsewhere("gone"), "a dead driver here": replace(Holder.here(), started="1")}
    if before != "nobody":
        (root / LEASE).write(Held(dead[before], 7).text.encode() if before in dead else b'{"id": 1')
    done, running, refused = threading.Event(), [], []

    def run(name: str) -> None:
        try:
            with held(root, Stop(), elsewhere(name), lambda line: None) as mine:
                running.append(name)
                done.wait(60)
                mine.check()
        except LeaseError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=run, args=(f"h{i}",)) for i in range(6)]
    for thread in random.sample(threads, len(threads)):
        thread.start()
    wait(lambda: bool(running) and len(refused) == len(threads) - 1)
    assert len(running) == 1
    done.set()
    for thread in threads:
        thread.join()
    assert len(refused) == len(threads) - 1, "and it has it still"
    # In a store one may see another first, who then loses it to that one.
    named = [re.match(r"job demo is being run by host (h\d), process 123, since ", line) for line in refused]
    assert all(match and (match[1] == running[0] or root.disk is None) for match in named)
    assert read(root) is None


def test_of_processes_that_begin_at_once_exactly_one_runs_the_job(tmp_path: Path) -> None:
    drivers = [driver.started(tmp_path, 20) for _ in range(3)]
    lines = [driver.heard(each) for each in drivers]
    assert sorted(line.split()[0] for line in lines) == ["held", "refused:", "refused:"]
    winner = drivers[lines.index("held")]
    assert all(f"process {winner.pid}, since" in line for line in lines if line != "held")
    winner.kill()  # and the next one waits for nothing
    winner.wait()
    with holding(Location.of(tmp_path), Holder.here(), Stop()):
        assert (found := read(Location.of(tmp_path))) is not None
        assert found.holder.pid == os.getpid()
    for each in drivers:
        each.wait()


def test_a_driver_that_is_there_is_named_to_the_second_one_at_once(
    root: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    submitted = {"runtime_env": {}, "metadata": {"job_submission_id": "raysubmit_x"}}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(submitted))
    here = Holder.here()
    with holding(root, here, Stop()), pytest.raises(LeaseError) as raised, holding(root, Holder.here(), Stop()):
        pass
    assert raised.value.exit_status == 1
    assert str(raised.value) == (
        f"job demo is being run by host {here.host}, process {os.getpid()}, Ray job raysubmit_x, since {here.since}; "
        "`verydeep stop` ends it"
    )
    assert here.since.endswith(" UTC")
    assert replace(here, begun="2014-09-04T13:00:05+01:00").since == "2014-09-04 12:00:05 UTC"


def test_whether_a_process_is_there_is_told_of_this_machine_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    here = Holder.here()
    assert here.alive() is True
    assert replace(here, started="1").alive() is False, "another process with the same number"
    assert replace(here, pid=1 << 23).alive() is False
    for part in ("host", "boot", "namespace"):
        assert replace(here, **{part: "other"}).alive() is None
    child = os.fork()
    if not child:
        os._exit(0)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)  # ended, and its parent has not taken notice
    assert replace(here, pid=child).alive() is False
    os.waitpid(child, 0)
    monkeypatch.setattr(holder, "_PROC", Path("/nonexistent"))
    assert Holder.here().alive() is None, "where nothing is to be known, it is waited"


def test_a_dead_drivers_lease_expires_for_one_who_cannot_see_it(root: Location) -> None:
    (root / LEASE).write(Held(elsewhere("gone"), 3).text.encode())
    said: list[str] = []
    began = time.monotonic()
    with held(root, Stop(), elsewhere(), said.append):
        assert time.monotonic() - began >= EXPIRY
    (line,) = said
    assert line == "demo: waits up to 2 s to see whether it is still being run by host gone, process 123"


def test_waiting_for_a_lease_to_expire_can_be_stopped(root: Location) -> None:
    (root / LEASE).write(Held(elsewhere("gone"), 3).text.encode())
    stop = Stop()
    with pytest.raises(KeyboardInterrupt), held(root, stop, elsewhere(), lambda line: stop.ask("enough")):
        pass
    assert (found := read(root)) is not None
    assert found.holder.host == "gone"


def test_a_driver_that_slept_while_another_took_over_stops_at_once_and_writes_nothing(tmp_path: Path) -> None:
    sleeper = driver.started(tmp_path, EXPIRY)
    assert driver.heard(sleeper) == "held"
    sleeper.send_signal(signal.SIGSTOP)
    place = Slot(Location.of(tmp_path / LEASE))
    mine = Held.of(place.read())
    assert mine is not None
    seen = replace(mine, holder=replace(mine.holder, host="asleep"))  # as another machine would see it
    place.swap(place.read(), seen.text)
    with held(Location.of(tmp_path), Stop(), elsewhere("awake"), lambda line: None):
        sleeper.send_signal(signal.SIGCONT)
        line = driver.heard(sleeper)
        assert line.startswith(f"at once: another driver has taken over job {tmp_path.name}: host awake, process 123")
        sleeper.wait()
        assert (found := read(Location.of(tmp_path))) is not None
        assert found.holder.host == "awake"


def test_who_has_lost_the_lease_is_told_before_what_only_the_holder_may_do(root: Location) -> None:
    stop, other = Stop(), Held(elsewhere("thief"), 0).text
    with holding(root, elsewhere(), stop) as mine:
        mine.check()
        (root / LEASE).write(other.encode())
        wait(lambda: stop.asked)
        assert stop.at_once
        with pytest.raises(LeaseError, match="another driver has taken over job demo: host thief"):
            mine.check()
    assert Slot(root / LEASE).read() == other, "and is left to it"


def test_a_lease_that_is_deleted_under_its_holder_is_put_back(root: Location) -> None:
    stop = Stop()
    with holding(root, elsewhere("h"), stop) as mine:
        (root / LEASE).delete()
        wait(lambda: read(root) is not None)
        (root / LEASE).write(b"{")
        wait(lambda: read(root) is not None)
        mine.check()
    assert not stop.asked


@pytest.mark.parametrize("taken", [False, True])
def test_a_storage_that_was_away_for_longer_than_the_lease_lasts_is_looked_at_first(
    taken: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, stop, said = Location.of(tmp_path), Stop(), list[str]()

    def away(self: Slot) -> str:
        raise OSError(errno.ESTALE, "Stale file handle")

    with held(root, stop, elsewhere(), said.append) as mine:
        with monkeypatch.context() as outage:
            outage.setattr(Slot, "read", away)
            wait(lambda: bool(said))
            time.sleep(EXPIRY)
            assert not stop.asked, "it cannot know"
            before = Held(elsewhere("quicker"), 0) if taken else Held.of((tmp_path / LEASE).read_text())
            assert before is not None
            (root / LEASE).write(before.text.encode())
        if taken:
            with pytest.raises(LeaseError, match=r"another driver has taken over job .*: host quicker"):
                mine.check()
            assert stop.at_once
        else:
            mine.check()
            assert not stop.asked
            assert (found := read(root)) is not None
            assert found.counter > before.counter
    assert said == [f"{root / LEASE} cannot be renewed, tries go on: [Errno 116] Stale file handle"]


def test_a_storage_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ClusterError, match=r"storage: .*/file/lease\.json cannot be written"):
        held(Location.of(tmp_path / "file"), Stop(), Holder.here()).__enter__()


def stopped(folder: Path, capsys: pytest.CaptureFixture[str], *more: str) -> tuple[int, str, str]:
    status = main(["stop", str(folder), *more])
    out, error = capsys.readouterr()
    return status, out, error


@pytest.mark.parametrize("now", [False, True])
def test_verydeep_stop_ends_the_driver_and_says_where_the_job_stands(
    now: bool, copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (done,) = copied.glob("e-*/done.json")
    done.unlink()
    running = driver.started(copied, 20)
    assert driver.heard(running) == "held"
    (copied / STOP).write_text(json.dumps({"id": "of an earlier driver", "host": "x", "now": True}))
    assert running.poll() is None
    status, out, _ = stopped(copied, capsys, *["--now"] * now)
    assert status == 0
    asked, is_stopped, *standing = out.splitlines()
    assert asked.startswith(f"Asked host {Holder.here().host}, process {running.pid}, since ")
    assert is_stopped == "Job copied has stopped; `verydeep run` goes on with it"
    assert standing == ["  a: done, 4 epochs", "  e: after epoch 2"]
    why = driver.heard(running)
    assert why == f"{'at once: ' * now}asked by `verydeep stop` from {Holder.here().host}"
    running.wait()
    assert not (copied / STOP).exists()


def test_where_nobody_runs_the_job_there_is_nobody_to_stop(
    copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert stopped(copied, capsys) == (1, "", f"verydeep: nobody runs job copied ({copied})\n")
    dead = driver.started(copied, 20)
    assert driver.heard(dead) == "held"
    dead.kill()
    dead.wait()
    status, _, error = stopped(copied, capsys)
    assert status == 1
    assert error == (
        f"verydeep: nobody runs job copied any more: host {Holder.here().host}, process {dead.pid} has ended without "
        "a word; `verydeep run` goes on with the job\n"
    )
    (copied / LEASE).write_text(Held(elsewhere("gone"), 3).text)
    status, out, error = stopped(copied, capsys)
    assert status == 1
    assert out.startswith("Asked host gone, process 123, since ")
    assert "host gone, process 123 has said nothing for 2 s; " in error
    assert not (copied / STOP).exists(), "and the next driver is not stopped"
