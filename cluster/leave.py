"""`python -m cluster.leave`: the preStop hook of a Ray node's container, so that a pod's end costs no training.

When it has ended Kubernetes sends SIGTERM, and Ray itself drains the node: drivers elsewhere take a checkpoint and go
on without it. What Ray does not tell is a driver on this very node: this asks it to stop, and waits until it has, and
until Ray has noted how the job ended. It does so with SIGUSR1, since Ray's `job stop` may send SIGTERM at the same
time, and a second SIGTERM would cut the checkpoint off.

It needs neither Ray nor the head, and always ends with status 0: of a hook that fails Kubernetes makes an event and
goes on all the same, and nobody would have to do anything about it.
"""

import argparse
import signal
import sys
import time

import psutil

_SUPERVISOR = "ray::JobSupervisor"  # the title of Ray's process that starts a submitted job's driver
_SECONDS = 60
_POLL_SECONDS = 0.2
_NOTED_SECONDS = 5.0  # for Ray to note a job's end; without a head it cannot


def leave(seconds: float) -> str | None:
    """Stops the drivers among the processes that are to be seen, a container's own, and waits so long for them, at
    most. A line if one did not end in time."""
    supervisors = [process for process in psutil.process_iter() if _title(process).startswith(_SUPERVISOR)]
    drivers = [process for each in supervisors for process in _below(each) if _catches(process, signal.SIGUSR1)]
    for driver in drivers:
        _send(driver, signal.SIGUSR1)
    if left := _wait(drivers, seconds):
        return f"verydeep: {left} of {len(drivers)} drivers did not stop within {seconds:g} s"
    if drivers:
        _wait(supervisors, _NOTED_SECONDS)
    return None


def _wait(processes: list[psutil.Process], seconds: float) -> int:
    """Until they have ended, so long at most. Returns how many have not.

    One whose parent has died stays in the table for good: a container's first process, `ray start`, does not look
    after others' children.
    """
    deadline = time.monotonic() + seconds
    while (left := sum(map(_runs, processes))) and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
    return left


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.Error:
        return False


def _below(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.Error:  # it has ended meanwhile
        return []


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def _catches(process: psutil.Process, number: signal.Signals) -> bool:
    """Whether it has a handler: by default the signal ends a process, and one that is starting has nothing to save."""
    try:
        with open(f"/proc/{process.pid}/status") as status:
            caught = next(line for line in status if line.startswith("SigCgt:"))
    except (OSError, StopIteration):
        return False
    return bool(int(caught.split()[1], 16) >> (number - 1) & 1)


def _send(process: psutil.Process, number: signal.Signals) -> None:
    try:
        process.send_signal(number)
    except psutil.Error:
        pass


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m cluster.leave", description="Before this Ray node ends.")
    parser.add_argument("--seconds", type=float, default=_SECONDS, help="that it waits for a driver, at most")
    began, line = time.monotonic(), leave(parser.parse_args().seconds)
    if line is not None:
        print(line, file=sys.stderr)
    elif (took := time.monotonic() - began) > 1:
        print(f"verydeep: the driver on this node stopped in {took:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
