"""Which Ray is used."""

import socket
from pathlib import Path

import pytest

from cluster import launch


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
