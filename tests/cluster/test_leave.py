"""The preStop hook, on processes of a test's own that look like Ray's. Never on all that are to be seen: there may
be other people's jobs among them."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from cluster import leave

PATIENCE_SECONDS = 60
TITLE = "ray::JobSupervisor.run"  # as Ray has it
START = "import subprocess, sys, time\nchildren = [subprocess.Popen(sys.argv[1:2] + ['-c', x]) for x in sys.argv[2:]]\n"
FOR_THE_FIRST = START + "children[0].wait()\n"  # and ends after it
FOR_NONE = START + "while True: time.sleep(0.05)\n"  # one that ends stays in the table
WAITING = """
import pathlib, signal, sys, time
here = pathlib.Path({folder!r})
def stop(*_):
    (here / "asked").touch()
    time.sleep({seconds})
    (here / "saved").touch()
    sys.exit(130)
if {seconds} is not None:
    signal.signal(signal.SIGUSR1, stop)
(here / "{name}").touch()
while True:
    time.sleep(0.05)
"""


def program(folder: Path, name: str, seconds: float | None) -> str:
    """One that takes so long to stop when it is asked; None: that does not catch the signal, and would die of it."""
    return WAITING.format(folder=str(folder), name=name, seconds=seconds)


def wait(reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@contextmanager
def tree(title: str, waits: str, folder: Path, **seconds: float | None) -> Iterator[list[psutil.Process]]:
    """A process under this title, and those below it, by their names, when they have begun."""
    programs = [program(folder, name, how_long) for name, how_long in seconds.items()]
    command = ["bash", "-c", 'exec -a "$0" "$@"', title, sys.executable, "-c", waits, sys.executable, *programs]
    started = subprocess.Popen(command)
    below: list[psutil.Process] = []
    try:
        wait(lambda: all((folder / name).exists() for name in seconds))
        below = sorted(psutil.Process(started.pid).children(), key=lambda process: process.pid)
        yield [psutil.Process(started.pid), *below]
    finally:
        for process in [*below, psutil.Process(started.pid)]:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        started.wait(PATIENCE_SECONDS)


def test_a_driver_stops_as_it_does_and_who_does_not_catch_the_signal_gets_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leave, "_NOTED_SECONDS", PATIENCE_SECONDS)
    with tree(TITLE, FOR_THE_FIRST, tmp_path, driver=0.5, helper=None) as (supervisor, _, helper):
        assert leave.leave(PATIENCE_SECONDS, [psutil.Process(), supervisor]) is None
        assert (tmp_path / "saved").exists()
        assert supervisor.status() == psutil.STATUS_ZOMBIE, "Ray had the time to note the end"
        assert helper.is_running()


def test_a_driver_whose_end_nobody_looks_at_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leave, "_NOTED_SECONDS", 0.1)
    with tree(TITLE, FOR_NONE, tmp_path, driver=0.0) as (supervisor, driver):
        assert leave.leave(PATIENCE_SECONDS, [supervisor]) is None
        assert driver.status() == psutil.STATUS_ZOMBIE
        assert supervisor.status() != psutil.STATUS_ZOMBIE, "it is waited for in vain"


def test_one_that_outstays_the_patience_is_a_line_and_goes_on(tmp_path: Path) -> None:
    with tree(TITLE, FOR_THE_FIRST, tmp_path, driver=3600.0) as (supervisor, driver):
        assert leave.leave(0.2, [supervisor]) == "verydeep: 1 of 1 drivers did not stop within 0.2 s"
        wait((tmp_path / "asked").exists)
        assert driver.is_running()


def test_only_drivers_of_submitted_jobs_are_asked(tmp_path: Path) -> None:
    with tree("ray::Worker", FOR_THE_FIRST, tmp_path, driver=0.0) as processes:
        assert leave.leave(PATIENCE_SECONDS, processes) is None
        assert all(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in processes)
        assert not (tmp_path / "asked").exists()


def test_who_has_ended_meanwhile_is_passed_over() -> None:
    ended = subprocess.Popen(["true"])
    process = psutil.Process(ended.pid)
    ended.wait()
    assert leave.leave(PATIENCE_SECONDS, [process]) is None
