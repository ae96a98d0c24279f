"""A process that hangs is ended, one that works is not."""

import socket
import subprocess
import sys
import time

import pytest

from cluster import network
from cluster.network import interface_of
from cluster.watchdog import Watchdog


def test_a_hang_is_told_of_with_its_place() -> None:
    told: list[str] = []
    ended: list[int] = []
    dog = Watchdog(0.2, told.append, ended.append)
    deadline = time.monotonic() + 20
    while not ended and time.monotonic() < deadline:
        time.sleep(0.01)
    dog.close()
    assert ended[0] == 1
    assert "it hangs in test_a_hang_is_told_of_with_its_place (test_watchdog.py:" in told[0]


def test_steps_keep_the_watchdog_still_and_a_slow_one_moves_its_limit() -> None:
    told: list[str] = []
    dog = Watchdog(1.0, told.append, lambda status: None)
    dog._longest = 1.0  # a step that took so long
    for pause in (0.3, 1.5, 0.3, 1.5):
        time.sleep(pause)
        dog.beat()
    dog.close()
    assert told == []


def test_a_hang_that_keeps_the_interpreters_lock_ends_the_process() -> None:
    """Here in a regular expression that backtracks for years."""
    program = "import re\nfrom cluster.watchdog import Watchdog\nWatchdog(0.5, print)\nre.match(r'(a+)+b', 'a' * 60)\n"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "Timeout" in done.stderr
    assert "in match" in done.stderr


def test_the_interface_of_an_address_is_found() -> None:
    assert interface_of("127.0.0.1") in {name for _, name in socket.if_nameindex() if name.startswith("lo")}
    assert interface_of("192.0.2.77") is None


def test_the_interface_is_chosen_by_its_whole_name_unless_a_user_has(monkeypatch: pytest.MonkeyPatch) -> None:
    loopback = interface_of("127.0.0.1")
    monkeypatch.setattr(network.ray.util, "get_node_ip_address", lambda: "127.0.0.1")
    monkeypatch.setattr(network.os, "environ", environment := {"GLOO_SOCKET_IFNAME": "mine"})
    network._choose_interface()
    assert environment == {"GLOO_SOCKET_IFNAME": "mine", "NCCL_SOCKET_IFNAME": f"={loopback}"}
