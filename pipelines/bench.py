"""Measuring contenders against each other, whatever it is that they do.

Each contender lives in a process of its own and is driven from here, one at a time, in rounds; its turn within a round
rotates. A contender goes from rest to rest: it does one round of its work, then whatever it does ahead of the next
(queues that fill up again), and the turn ends when none of its threads runs any more. So a turn holds the work of one
round exactly, prefetched or not, and nobody computes while another is measured.

cpu       user and system time of the contender's process and of all its children over a turn
wall      from the command to the last moment at which one of its threads was seen running
memory    the largest proportional set size of these processes together, looked at while the first round warms up
"""

import gc
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol, TypeVar

from pipelines.errors import BenchError, first_line

Setting = dict[str, Any]
Log = Callable[[str], None]

_LOOK_SECONDS = 0.002
_REST_LOOKS = 15  # so many looks in a row that find no thread running are rest
_REST_SECONDS_MOST = 60.0
_STOP_SECONDS_MOST = 20.0
_MEMORY_LOOK_SECONDS = 0.05
_EQUAL = 1.05  # CPU times no further apart count as equal when settings are chosen: rounds differ by as much


class Work(Protocol):
    """What a contender does, opened in its process with one setting."""

    def round(self) -> int:
        """One round; returns how many items it did."""

    def facts(self) -> dict[str, Any]:
        """One round that is not measured; returns what was seen of its results, for a check."""

    def close(self) -> None: ...


@dataclass(frozen=True)
class Contender:
    """`open(**setting)` begins its work; it is called in another process, so it must be picklable. `choices` are the
    settings to try, the default first. `packages`: modules that it needs beside those of verydeep."""

    name: str
    description: str
    open: Callable[..., Work]
    choices: dict[str, tuple[Any, ...]]
    packages: tuple[str, ...] = ()

    @property
    def default(self) -> Setting:
        return {knob: values[0] for knob, values in self.choices.items()}

    @property
    def missing(self) -> list[str]:
        return [package for package in self.packages if find_spec(package) is None]


@dataclass(frozen=True)
class Turn:
    """One contender's part of one round. `idle_cpu_seconds`: used since its last turn, when it had nothing to do."""

    items: int
    wall_seconds: float
    cpu_seconds: float
    idle_cpu_seconds: float

    @property
    def cpu_per_item(self) -> float:
        return self.cpu_seconds / self.items


@dataclass(frozen=True)
class Result:
    """A contender's turns, one for each measured round, with the setting that they were taken with."""

    name: str
    description: str
    setting: Setting
    turns: tuple[Turn, ...]
    peak_bytes: int
    facts: dict[str, Any]
    trials: tuple[tuple[Setting, Turn], ...]  # what the setting was chosen by; none if it is the default


def compare(
    contenders: Sequence[Contender],
    rounds: int,
    tune: bool,
    log: Log,
    check: Callable[[list[tuple[str, dict[str, Any]]]], None],
) -> list[Result]:
    """Results in the contenders' order. `check` is given the facts of the first round, and raises what is wrong."""
    chosen = {c.name: tuned(c, log) if tune else (c.default, []) for c in contenders}
    with _all_open(contenders, {name: setting for name, (setting, _) in chosen.items()}) as processes:
        log("warming up")
        warm = [process.warm_up() for process in processes]
        check([(c.name, facts) for c, (facts, _) in zip(contenders, warm, strict=True)])
        turns: dict[str, list[Turn]] = {c.name: [] for c in contenders}
        for number in range(rounds):
            log(f"round {number + 1} of {rounds}")
            for process in rotated(processes, number):
                turns[process.name].append(process.turn())
    results = []
    for c, (facts, peak) in zip(contenders, warm, strict=True):
        setting, trials = chosen[c.name]
        results.append(Result(c.name, c.description, setting, tuple(turns[c.name]), peak, facts, tuple(trials)))
    return results


T = TypeVar("T")


def rotated(things: Sequence[T], by: int) -> list[T]:
    k = by % len(things)
    return [*things[k:], *things[:k]]


def tuned(contender: Contender, log: Log) -> tuple[Setting, list[tuple[Setting, Turn]]]:
    """The best setting and the trials: one knob after the other, each at its best value with the others as they are."""
    best, trials = contender.default, list[tuple[Setting, Turn]]()
    with _open_process(contender) as process:
        for knob, values in contender.choices.items():
            candidates = [best | {knob: value} for value in values]
            for setting in candidates:
                if all(setting != tried for tried, _ in trials):
                    trials.append((setting, process.trial(setting)))
            best = candidates[best_turn([turn for c in candidates for tried, turn in trials if tried == c])]
    log(f"{contender.name}: {len(trials)} settings tried, best: {setting_text(best)}")
    return best, trials


def best_turn(turns: Sequence[Turn]) -> int:
    """The position of the least CPU time per item; of those that are about equal in it, the fastest."""
    least = min(turn.cpu_per_item for turn in turns)
    equal = [i for i, turn in enumerate(turns) if turn.cpu_per_item <= _EQUAL * least]
    return max(equal, key=lambda i: turns[i].items / turns[i].wall_seconds)


def setting_text(setting: Setting) -> str:
    return " ".join(f"{knob}={value}" for knob, value in setting.items())


class Process:
    """A contender's process, seen from the one that measures. A fresh interpreter, which imports its own alone."""

    def __init__(self, contender: Contender) -> None:
        self.name = contender.name
        ours, theirs = socket.socketpair()
        path = f"import sys; sys.path[:] = {sys.path!r}"  # the same modules as here, wherever they lie
        code = f"{path}; from pipelines.bench import serve; serve({theirs.fileno()})"
        self._process = subprocess.Popen([sys.executable, "-c", code], pass_fds=[theirs.fileno()])
        theirs.close()
        self._pipe = Connection(ours.detach())
        self._pipe.send(contender.open)
        self._rest_cpu = 0.0  # its CPU time at the end of its last turn

    def open(self, setting: Setting) -> None:
        self._ask("open", setting)
        self._until_rest()

    def trial(self, setting: Setting) -> Turn:
        """The better of two turns with this setting, the first of which warms up."""
        self.open(setting)
        turns = self.turn(), self.turn()
        self._ask("close")
        return min(turns, key=lambda turn: turn.cpu_per_item)

    def warm_up(self) -> tuple[dict[str, Any], int]:
        """(facts, peak bytes of memory) of a round."""
        self._pipe.send(("facts", None))
        peak = 0
        while not self._pipe.poll(_MEMORY_LOOK_SECONDS):
            peak = max(peak, memory_bytes(tree(self._process.pid)))
        facts = self._answer()
        self._until_rest()
        return facts, max(peak, memory_bytes(tree(self._process.pid)))

    def turn(self) -> Turn:
        before, start = cpu_seconds(tree(self._process.pid)), time.monotonic()
        idle = before - self._rest_cpu
        items = self._ask("round")
        end = self._until_rest()
        return Turn(items, end - start, self._rest_cpu - before, idle)

    def stop(self) -> None:
        self._pipe.close()  # it ends by itself, and so lets its own children end
        try:
            self._process.wait(_STOP_SECONDS_MOST)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _until_rest(self) -> float:
        """Waits until no thread of the contender runs; returns when one was last seen running."""
        last, looks, started = time.monotonic(), 0, time.monotonic()
        processes = tree(self._process.pid)
        while looks < _REST_LOOKS:
            looks = 0 if busy(processes) else looks + 1
            now = time.monotonic()
            if looks == 0:
                last = now
            if now - started > _REST_SECONDS_MOST:
                raise BenchError(f"{self.name}: does not come to rest after its round, so others cannot be measured")
            time.sleep(_LOOK_SECONDS)
        self._rest_cpu = cpu_seconds(processes)
        return last

    def _ask(self, command: str, argument: object = None) -> Any:
        self._pipe.send((command, argument))
        return self._answer()

    def _answer(self) -> Any:
        try:
            failed, answer = self._pipe.recv()
        except (EOFError, ConnectionResetError):
            raise BenchError(f"{self.name}: its process ended with status {self._process.wait()}") from None
        if failed:
            raise BenchError(f"{self.name}: {answer}")
        return answer


@contextmanager
def _open_process(contender: Contender) -> Iterator[Process]:
    process = Process(contender)
    try:
        yield process
    finally:
        process.stop()


@contextmanager
def _all_open(contenders: Sequence[Contender], settings: dict[str, Setting]) -> Iterator[list[Process]]:
    processes: list[Process] = []
    try:
        for contender in contenders:
            processes.append(Process(contender))
        for process in processes:
            process.open(settings[process.name])
        yield processes
    finally:
        for process in processes:
            process.stop()


def serve(descriptor: int) -> None:
    """What a contender's process does until the other end of this socket closes: answers (failed, answer)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that measures hears of it, and closes its end
    pipe = Connection(descriptor)
    begin: Callable[..., Work] = pipe.recv()
    gc.freeze()  # as training's workers do: what was imported is not looked through again and again
    work: Work | None = None
    while True:
        try:
            command, argument = pipe.recv()
        except EOFError:
            break
        answer: object = None
        try:
            if command == "open":
                work = begin(**argument)
            elif work is None:
                raise AssertionError(f"{command} before open")
            elif command == "close":
                work.close()
                work = None
                gc.collect()
            else:
                answer = work.round() if command == "round" else work.facts()
        except Exception as error:  # this process's edge: the reason is told where it is measured
            pipe.send((True, f"{type(error).__name__}: {first_line(error)}"))
        else:
            pipe.send((False, answer))
    if work is not None:
        work.close()


def tree(pid: int) -> list[int]:
    """The process and all below it."""
    parents = {int(p.name): _stat(p) for p in Path("/proc").iterdir() if p.name.isdigit()}
    below: dict[int, list[int]] = {}
    for child, stat in parents.items():
        if stat:
            below.setdefault(int(stat[1]), []).append(child)
    found, position = [pid], 0
    while position < len(found):
        found += below.get(found[position], [])
        position += 1
    return found


def cpu_seconds(pids: Sequence[int]) -> float:
    """User and system time of these processes, and of those below them that have ended."""
    return sum(_own_cpu_seconds(pid) + _ended_cpu_seconds(pid) for pid in pids)


def _own_cpu_seconds(pid: int) -> float:
    try:
        return time.clock_gettime(~pid << 3 | 2)  # Linux's clock of a process, in nanoseconds: clock_getcpuclockid(3)
    except OSError:  # it has ended meanwhile
        return 0.0


def _ended_cpu_seconds(pid: int) -> float:
    return sum(map(int, _stat(Path(f"/proc/{pid}"))[13:15])) / os.sysconf("SC_CLK_TCK")  # cutime and cstime: proc(5)


def busy(pids: Sequence[int]) -> bool:
    """Whether a thread of these processes runs, could run, or waits for the disk."""
    threads = (thread for pid in pids for thread in Path(f"/proc/{pid}/task").glob("*"))
    return any(_stat(thread)[:1] in (["R"], ["D"]) for thread in threads)


def memory_bytes(pids: Sequence[int]) -> int:
    """Proportional set size: pages that processes share count once."""
    lines = (line for pid in pids for line in _read(Path(f"/proc/{pid}/smaps_rollup")).splitlines())
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def _stat(process: Path) -> list[str]:
    """The fields of proc(5)'s stat from the third, the state, on; nothing if the process or thread has ended."""
    return _read(process / "stat").rpartition(")")[2].split()


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:  # the process or thread has ended meanwhile
        return ""
