"""Network namespaces, one for each worker, joined by links of a given bandwidth: Linux' iproute2, as root.

    worker 0's namespace          the bridge's namespace          worker 1's namespace
    eth0, 10.77.0.1  <-- veth -->  port0   bridge   port1  <-- veth -->  eth0, 10.77.0.2

Nothing is made in the machine's own namespace, whose firewall would see to bridged packets, and removing the namespaces
removes all that is in them.
"""

import os
import secrets
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from pipelines.errors import BenchError

INTERFACE = "eth0"
MOST = 254  # workers, whose addresses end in 1 to 254
_BURST_BYTES = 1 << 20  # what may go at once: a packet has up to 64 KiB, and 25 Gbit/s are 3 MB in a millisecond
_QUEUE_BYTES = 16 << 20
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True)
class Links:
    """`run`: a name for this run, which no other has."""

    run: str
    workers: int

    def namespace(self, rank: int) -> str:
        return f"{self.run}-{rank}"

    @property
    def bridge(self) -> str:
        return f"{self.run}-bridge"

    def address(self, rank: int) -> str:
        return f"10.77.0.{rank + 1}"

    def command(self, rank: int, program: list[str]) -> list[str]:
        """That runs a program in the worker's namespace, as the same process."""
        return ["ip", "netns", "exec", self.namespace(rank), *program]

    def shape(self, gbit: float) -> None:
        """Each worker's link, in both directions, to so many Gbit/s."""
        for rank in range(self.workers):
            for namespace, interface in ((self.namespace(rank), INTERFACE), (self.bridge, f"port{rank}")):
                _shape(namespace, interface, gbit)


def refusal() -> str | None:
    """Why there can be no such links here, or None if there can."""
    if os.geteuid() != 0:
        return "network namespaces take root"
    for program in ("ip", "tc"):
        if shutil.which(program) is None:
            return f"there is no {program} (Debian's package iproute2)"
    try:
        with links(1) as made:
            made.shape(1)
    except BenchError as error:
        return str(error)
    return None


@contextmanager
def links(workers: int) -> Iterator[Links]:
    """Removed at the end, whatever happens; processes in them have to have ended. Raises BenchError.

    In it SIGINT raises KeyboardInterrupt, SIGTERM and SIGHUP raise SystemExit; of the main thread alone.
    """
    made = Links(f"verydeep-{os.getpid()}-{secrets.token_hex(4)}", workers)
    added: list[str] = []
    with _ending_once():
        try:
            for name in (made.bridge, *map(made.namespace, range(workers))):
                _add(name, added)
            _join(made)
            yield made
        finally:
            _ignore_signals()
            for name in added:
                subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)


def _add(name: str, added: list[str]) -> None:
    added.append(name)  # before it is there, since a signal may come as soon as it is
    try:
        _call("ip", "netns", "add", name)
    except BenchError:
        added.remove(name)
        raise


@contextmanager
def _ending_once() -> Iterator[None]:
    """The first signal that ends programs raises an exception in the body, and those after it are ignored, so that they
    do not disturb the removal that it leads to. One that was ignored before stays so, as `nohup` wants SIGHUP to."""

    def end(number: int, frame: FrameType | None) -> None:
        _ignore_signals()
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        sys.exit(128 + number)

    before = {number: signal.getsignal(number) for number in _ENDING}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _ignore_signals() -> None:
    for number in _ENDING:
        signal.signal(number, signal.SIG_IGN)


def _join(made: Links) -> None:
    _call("ip", "-n", made.bridge, "link", "add", "bridge", "type", "bridge")
    _call("ip", "-n", made.bridge, "link", "set", "bridge", "up")
    for rank in range(made.workers):
        own, port = made.namespace(rank), f"port{rank}"
        _call("ip", "-n", made.bridge, "link", "add", port, "type", "veth", "peer", "name", INTERFACE, "netns", own)
        _call("ip", "-n", made.bridge, "link", "set", port, "master", "bridge", "up")
        _call("ip", "-n", own, "address", "add", f"{made.address(rank)}/24", "dev", INTERFACE)
        _call("ip", "-n", own, "link", "set", INTERFACE, "up")
        _call("ip", "-n", own, "link", "set", "lo", "up")


def _shape(namespace: str, interface: str, gbit: float) -> None:
    size = ("burst", str(_BURST_BYTES), "limit", str(_QUEUE_BYTES))
    rate = f"{round(gbit * 1e9)}bit"
    _call("tc", "-n", namespace, "qdisc", "replace", "dev", interface, "root", "tbf", "rate", rate, *size)


def _call(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[0]
        raise BenchError(f"{' '.join(command)}: {reason}")
