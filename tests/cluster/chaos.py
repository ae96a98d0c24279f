"""Processes of a run on this machine, to be ended in the middle of it."""

import os
import signal
from pathlib import Path


def descendants(pid: int) -> dict[int, str]:
    """The processes below `pid`, each with its command line."""
    parents, lines = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                status = (entry / "stat").read_text()
                lines[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:  # it has ended meanwhile
                continue
            parents[int(entry.name)] = int(status.rpartition(")")[2].split()[1])
    below = {pid}
    while more := {child for child, parent in parents.items() if parent in below} - below:
        below |= more
    return {child: lines[child] for child in below - {pid} if child in lines}


def train_workers(pid: int) -> list[int]:
    """Ray Train's workers among the processes below `pid`."""
    return sorted(
        child for child, line in descendants(pid).items() if line.startswith("ray::") and "TrainWorker" in line
    )


def send(number: signal.Signals, *pids: int) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue
