"""Which Ray is used."""

import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from cluster import launch

ROOT = Path(__file__).parent.parent.parent
SLOW = """
import time
from types import SimpleNamespace

from cluster import launch
from pipelines.errors import ClusterError

def get_node(*arguments):
    raise RuntimeError("This node has an IP address that is not there yet")

node = launch.ray._private.node
node.time = SimpleNamespace(**{**vars(time), "monotonic": lambda: 1000 * time.monotonic()})
launch.ray._private.services.get_node = get_node
try:
    launch.connect("local")
except ClusterError as error:
    print(error)
"""


def test_the_address_that_a_killed_ray_left_behind_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert launch._alive(None) is None, "nothing is there"
    (tmp_path / "ray").mkdir()
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        (tmp_path / "ray/ray_current_cluster").write_text(f"127.0.0.1:{server.getsockname()[1]}\n")
        assert launch._alive(None) is None, "Ray takes it"
    assert launch._alive(None) == "local"
    assert launch._alive("10.0.0.1:6379") == "10.0.0.1:6379"
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert launch._alive(None) is None


def test_a_local_ray_that_takes_too_long_to_come_up_is_one_line(tmp_path: Path) -> None:
    """Ray's own wait for its own processes, by a clock that runs faster than they start."""
    with tempfile.TemporaryDirectory(prefix="vd", ignore_cleanup_errors=True) as short:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_TMPDIR": short}
        command = [sys.executable, "-c", SLOW]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    (line,) = done.stdout.splitlines()
    assert "did not come up in time" in line
    assert "ray start --head" in line
