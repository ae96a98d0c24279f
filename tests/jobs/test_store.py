"""A job's storage in an object store (moto's S3, with the real client) and on a disk."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import torch

from cluster import checkpoint, nets
from cluster.train import Stage, train
from cluster.world import World
from cluster.writer import Writer
from jobs import schema
from jobs.check import check
from jobs.checkpoints import net_file
from jobs.cli import main
from jobs.plan import State
from jobs.store import Store, read_json, read_text, write_json, write_text
from pipelines.errors import CheckpointError, ClusterError
from pipelines.location import Location
from pipelines.shards import DataSet
from tests.cluster.test_checkpoint import made, names, same
from tests.cluster.test_train import settings
from tests.pipelines.test_shards import Server

JOB = """name: t
data: {data}
storage: {storage}
train: {{input_size: 32, width: 0.05, epochs: 3}}
stages:
  a: {{net: A, scale: 32}}
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("empty"))
    yield server
    server.stop()


@pytest.fixture
def remote(server: Server, request: pytest.FixtureRequest) -> Location:
    return Location.of(server.place.replace("sets/train", request.node.name.partition("[")[0]))


def job(tmp_path: Path, storage: object, data: str = "digits") -> str:
    path = tmp_path / "job.yaml"
    path.write_text(JOB.format(storage=storage, data=data))
    return str(path)


def told(verb: str, path: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert main([verb, path]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    return error


def test_checkpoints_in_an_object_store(remote: Location, caplog: pytest.LogCaptureFixture) -> None:
    big = {"fc1.weight": torch.randn(4_000_000, generator=torch.Generator().manual_seed(0))}  # several parts
    with closing(Writer(remote, 1)) as writer:
        for saved in (made((0.9,)), made((0.9,), 4), made((0.9, 0.1), momentum=big)):
            writer.save(saved)
            writer.wait()
    assert names(remote) == ["epoch-0001.safetensors", "epoch-0002.safetensors"]
    found = checkpoint.newest(remote)
    assert found is not None
    assert same(found.momentum, big)
    assert checkpoint.progress(remote) == found.progress
    last = checkpoint.path_of(remote, 2)
    last.write(last.read()[:-1])
    found = checkpoint.newest(remote)
    assert found is not None
    assert len(found.progress.epochs) == 1
    assert "epoch-0002.safetensors" in caplog.text


def test_an_upload_that_is_broken_off_is_never_taken_for_a_checkpoint(remote: Location) -> None:
    with closing(Writer(remote, 1)) as writer:
        writer.save(made((0.9,)))
    whole = checkpoint.path_of(remote, 1).read()
    for end in (5, 100, len(whole) - 1):
        with pytest.raises(TypeError):  # what is no bytes ends the upload in its midst, and Arrow completes it
            checkpoint.path_of(remote, 2).write(whole[:end], None)  # type: ignore[arg-type]
        found = checkpoint.newest(remote)
        assert found is not None
        assert len(found.progress.epochs) == 1


def test_a_stage_is_trained_resumed_finished_and_tested_in_an_object_store(
    remote: Location, digits: tuple[str, str], tmp_path: Path
) -> None:
    torch.set_num_threads(1)
    store = Store.of(remote, "t")
    store.check()
    store.create()
    assert store.root.files() == {}
    folder = store.stage("a", "0123456789abcdef")
    assert (folder.finished(), folder.progress().epochs) == (None, [])
    for epochs in (1, 2):
        train(Stage("a", settings(epochs=epochs), *digits, folder.path.absolute), World.single(), lambda r: None)
        assert len(folder.progress().epochs) == epochs
    train(Stage("a", settings(), *digits, str(tmp_path)), World.single(), lambda r: None)
    near, far = checkpoint.newest(Location.of(tmp_path)), checkpoint.newest(folder.path)
    assert near is not None
    assert far is not None
    assert same(near.weights, far.weights)
    assert folder.finish(far.progress, "last") == folder.finished()
    assert store.stage("a", "0123456789abcxyz").finished() is None
    finished = folder.finished()
    assert finished is not None
    assert same(nets.load(finished.delivered).weights, near.weights)
    with finished.delivered.on_disk() as copy:
        assert copy.name == "epoch-0002.safetensors"
        assert copy.read_bytes() == bytes(finished.delivered.read())
    assert not copy.exists()
    folder.begin(fresh=True)
    folder.begin(fresh=True)
    assert list(folder.path.files()) == ["key.json"]
    assert folder.finished() is None


@pytest.mark.parametrize("near", [True, False])
def test_notes_are_there_whole_or_not_at_all(near: bool, remote: Location, tmp_path: Path) -> None:
    note = (Location.of(tmp_path) if near else remote) / "deep" / "note.json"
    assert read_json(note) is None
    for content in ({"a": 1.5}, {"b": ["çà"]}):
        write_json(note, content)
        assert read_json(note) == content
    for text in ("[1]", "{", ""):
        write_text(note, text)
        assert (read_text(note), read_json(note)) == (text, None)
    folder = (Location.of(tmp_path) if near else remote) / "deep"
    assert list(folder.files()) == ["note.json"]  # and nothing that was written aside


def test_a_stage_that_lost_its_checkpoint_is_not_marked_as_done(tmp_path: Path) -> None:
    folder = Store.of(Location.of(tmp_path), "t").stage("a", "0" * 64)
    with pytest.raises(
        CheckpointError, match=r"epoch-0002\.safetensors: no such checkpoint, of the epoch that stage a"
    ):
        folder.finish(made((0.5, 0.6)).progress, "best")
    assert folder.finished() is None


def test_the_digits_are_prepared_into_an_object_store_and_the_plan_tells_the_step(
    remote: Location, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = job(tmp_path, remote)
    checked = check(schema.load(path))
    assert DataSet.open(checked.data.train).rows == checked.training.rows == 1438
    assert checked.data.train.startswith("s3://")
    folder = checked.folders["a"]
    assert checked.states() == {"a": State(False, 0, steps=6)}
    for accuracies, step, line in (((), 2, "after step 2 of 6"), ((0.5,), 4, "after epoch 1, step 4 of 6")):
        with closing(Writer(folder.path, 1)) as writer:
            writer.save(made(accuracies, step))
        assert main(["plan", path]) == 0
        assert f"    goes on: {line}" in capsys.readouterr().out.splitlines()


def test_a_storage_that_cannot_be_used_is_one_line_before_anything_starts(
    server: Server, remote: Location, digits: tuple[str, str], tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    data = f"{{train: {digits[0]}, val: {digits[1]}}}"
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    without = told("run", job(tmp_path, remote, data), capsys)
    assert "MLflow's own database cannot be kept in an object store; set MLFLOW_TRACKING_URI" in without
    assert remote.files() == {}
    nowhere = server.place.replace("@pictures/sets", "@nowhere/sets")
    assert "/runs/t?" in told("plan", job(tmp_path, nowhere, data), capsys)
    assert "cannot be written: there is no bucket nowhere" in told("plan", job(tmp_path, nowhere, data), capsys)
    assert "storage: xx://b/c: no such place: " in told("plan", job(tmp_path, "xx://b/c", data), capsys)
    with pytest.raises(ClusterError, match=r"runs/t\?.* cannot be written: .*NO_SUCH_BUCKET"):
        Store.of(Location.of(nowhere), "t").create()


def test_what_a_stage_starts_from_may_be_anywhere(remote: Location, tmp_path: Path) -> None:
    for source, file in (
        ("a", False),
        ("a.b", False),
        ("x.safetensors", True),
        ("x.pth", True),
        ("./x", True),
        ("s3://b/c?d=e", True),
    ):
        assert schema.is_file(source) == file
    with closing(Writer(remote, 1)) as writer:
        writer.save(made((0.5,)))
    place = net_file((remote / "epoch-0001.safetensors").absolute)
    assert place.path == net_file(remote.absolute).path, "the folder stands for it"
    assert checkpoint.read_head(place).card.net == "A"
    torch.save({"version": 1}, tmp_path / "old.pt")
    with pytest.raises(CheckpointError, match=r"old\.pt: written by torch\.save, as by earlier versions"):
        checkpoint.read_head(net_file(str(tmp_path / "old.pt")))
    with pytest.raises(CheckpointError, match="no such place"):
        net_file("xx://b/c.safetensors")
