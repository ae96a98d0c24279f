"""Storage that a node does not see is found before the first step."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from cluster import storage
from cluster.storage import Shared
from pipelines.errors import ClusterError

BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def hidden(cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder on a Ray that has a second node, for which another file system is mounted there."""
    del cluster
    place = tmp_path_factory.mktemp("hidden")
    private = ["unshare", "--mount", "--", "sh", "-c"]
    mount = f"mount -t tmpfs none {place}"
    if subprocess.run([*private, mount], capture_output=True, check=False).returncode:
        pytest.skip("no file system can be mounted here, as in a container without privileges")
    address = ray.get_runtime_context().gcs_address
    start = f"exec {BIN}/ray start --address={address} --num-cpus=1 --block"
    node = subprocess.Popen([*private, f"{mount} && {start}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while alive() < 2:
            assert node.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.2)
        yield place
    finally:
        node.terminate()
        node.wait(30)
    while alive() > 1:
        time.sleep(0.2)


def alive() -> int:
    return sum(node["Alive"] for node in ray.nodes())


def test_a_folder_that_another_node_does_not_see_is_named_with_the_node(hidden: Path) -> None:
    here = ray.util.get_node_ip_address()
    with pytest.raises(ClusterError) as caught:
        Shared().check(str(hidden / "stage"), [])
    line = f"{hidden}/stage: not seen on {here}: it has to be a folder that all nodes share, or an object store"
    assert str(caught.value) == line
    assert list((hidden / "stage").iterdir()) == [], "nothing is left behind"


def test_a_data_set_that_another_node_does_not_see_is_named_too(hidden: Path, tmp_path: Path) -> None:
    (hidden / "manifest.json").write_text("{}")
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(ClusterError) as caught:
        Shared().check(str(tmp_path), [str(hidden / "manifest.json"), str(tmp_path / "manifest.json")])
    assert str(caught.value).startswith(f"{hidden}/manifest.json: not seen on ")
    assert ";" not in str(caught.value), "what all nodes see is not named"


def test_a_shared_folder_passes_and_its_nodes_are_not_asked_again(
    hidden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del hidden
    shared = Shared()
    shared.check(str(tmp_path / "stage"), [])
    monkeypatch.setattr(storage, "look", None)
    shared.check(str(tmp_path / "stage"), [])
    with pytest.raises(AssertionError):  # a new one asks; what is no function cannot be sent
        Shared().check(str(tmp_path / "stage"), [])


def test_a_marker_of_other_content_is_not_the_one(tmp_path: Path) -> None:
    (tmp_path / "marker").write_bytes(b"of another cluster")
    places: dict[str, bytes | None] = {str(tmp_path / "marker"): b"ours", str(tmp_path / "none"): None}
    assert storage.look(places) == list(places)
    assert storage.look({str(tmp_path / "marker"): None}) == []
