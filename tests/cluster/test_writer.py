"""How checkpoints are written beside training, and which are kept."""

import errno
import logging
import os
import resource
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pyarrow import fs as arrow_fs

from cluster import checkpoint
from cluster.writer import Writer, kept
from pipelines.errors import CheckpointError
from pipelines.location import Location
from tests.cluster.test_checkpoint import epoch, made, names, same, save


@pytest.fixture
def folder(tmp_path: Path) -> Location:
    return Location.of(tmp_path / "stage")


class Held(arrow_fs.FileSystemHandler):  # type: ignore[misc]
    """A disk on which no file is opened for writing until it is let; it notes the order."""

    def __init__(self) -> None:
        self.disk = arrow_fs.LocalFileSystem()
        self.reached, self.let = threading.Semaphore(0), threading.Semaphore(0)
        self.written: list[str] = []
        self.failures: list[OSError] = []

    def open_output_stream(self, path: str, metadata: object) -> Any:
        del metadata
        self.reached.release()
        self.let.acquire()
        if self.failures:
            raise self.failures.pop(0)
        Path(path).parent.mkdir(exist_ok=True)
        self.written.append(Path(path).name.removesuffix(".safetensors"))
        return self.disk.open_output_stream(path)

    def get_file_info(self, paths: list[str]) -> Any:
        return self.disk.get_file_info(paths)

    def get_file_info_selector(self, selector: object) -> Any:
        return self.disk.get_file_info(selector)

    def delete_file(self, path: str) -> None:
        self.disk.delete_file(path)

    def open_input_file(self, path: str) -> Any:
        return self.disk.open_input_file(path)

    def _refused(self, *arguments: object) -> Any:
        raise NotImplementedError

    copy_file = create_dir = delete_dir = delete_dir_contents = delete_root_dir_contents = move = _refused
    open_append_stream = open_input_stream = normalize_path = _refused

    def get_type_name(self) -> str:
        return "held"


@pytest.fixture
def held(tmp_path: Path) -> Iterator[tuple[Held, Location]]:
    handler = Held()
    yield handler, Location(arrow_fs.PyFileSystem(handler), str(tmp_path / "held"), "held")
    handler.let.release(100)


def test_what_waits_in_the_middle_of_an_epoch_is_replaced_and_an_epochs_end_never(
    held: tuple[Held, Location],
) -> None:
    disk, folder = held
    with closing(Writer(folder, 100)) as writer:
        writer.save(made((), 1))
        disk.reached.acquire()  # step 1 is being written; the others wait
        for saved in (made((), 2), made((), 3), made((0.1,)), made((0.1,), 4)):
            if saved.progress.step == 4:  # has to wait for the epoch's end, so that someone else has to move it on
                late = threading.Thread(target=writer.save, args=(saved,))
                late.start()
                late.join(0.1)
                assert late.is_alive()
            else:
                writer.save(saved)
        disk.let.release(100)
        late.join()
        writer.wait()
        assert disk.written == ["epoch-0000-step-000001", "epoch-0001", "epoch-0001-step-000004"]


def test_a_snapshot_is_of_the_moment_of_its_save(held: tuple[Held, Location]) -> None:
    disk, folder = held
    saved, copy = made((0.5,)), made((0.5,))
    with closing(Writer(folder, 2)) as writer:
        writer.save(made())
        disk.reached.acquire()
        writer.save(saved)
        for tensor in (*saved.weights.values(), *saved.momentum.values()):
            tensor.zero_()
        saved.progress.epochs.append(epoch(0.9))
        saved.progress.step = 7
        disk.let.release(100)
    found = checkpoint.load(checkpoint.path_of(folder, 1))
    assert same(found.weights, copy.weights)
    assert same(found.momentum, copy.momentum)
    assert found.progress == copy.progress


def test_a_passing_failure_is_tried_again_and_a_lasting_one_told_once(held: tuple[Held, Location]) -> None:
    disk, folder = held
    disk.let.release(100)
    with closing(Writer(folder, 2)) as writer:
        disk.failures = [ConnectionResetError(104, "Connection reset by peer")]
        writer.save(made())
        writer.wait()
        assert disk.written == ["epoch-0000"]
        disk.failures = [OSError(28, "No space left on device")]
        writer.save(made((0.5,)))
        with pytest.raises(CheckpointError, match=r"^held/epoch-0001\.safetensors: cannot be written: No space"):
            writer.wait()
        writer.save(made((0.5,)))
        writer.wait()
    assert names(folder) == ["epoch-0000.safetensors", "epoch-0001.safetensors"]


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """As on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_and_a_folder_that_is_none_are_a_line_and_leave_what_was_there(folder: Location) -> None:
    save(folder, made((0.5,)))
    big = made((0.5, 0.5), momentum={"fc1.weight": torch.ones(1 << 16)})
    told = pytest.raises(CheckpointError, match=r"epoch-0002\.safetensors: cannot be written: File too large$")
    with told, files_of_at_most(1 << 16):
        save(folder, big)
    assert os.listdir(folder.path) == ["epoch-0001.safetensors"]
    found = checkpoint.newest(folder)
    assert found is not None
    assert len(found.progress.epochs) == 1
    with pytest.raises(CheckpointError, match="cannot be written: "):
        save(checkpoint.path_of(folder, 1) / "below", made())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("group", ["weights", "momentum", "average"])
def test_what_is_not_finite_is_not_written(
    folder: Location, group: str, value: float, caplog: pytest.LogCaptureFixture
) -> None:
    save(folder, made((0.5,)))
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        bad = torch.ones(2, 3, 500, dtype=dtype)
        bad[1, 2, 77] = value
        for step in (4, 0):
            spoilt = made((0.5, 0.5), step, **({group: {"fc1": bad}} if group != "weights" else {}))
            if group == "weights":
                spoilt.weights["fc1"] = bad
            told = f"not written: {group}/fc1 has values that are not finite"
            if step:
                save(folder, spoilt)
                assert told in caplog.text
            else:  # no epoch ends so
                with pytest.raises(CheckpointError, match=told):
                    save(folder, spoilt)
            assert names(folder) == ["epoch-0001.safetensors"]
            caplog.clear()


def test_the_newest_and_the_best_are_kept(folder: Location) -> None:
    with closing(Writer(folder, 2)) as writer:

        def after(accuracies: tuple[float, ...], step: int = 0) -> list[str]:
            writer.save(made(accuracies, step))
            writer.wait()
            return sorted(name.removeprefix("epoch-").removesuffix(".safetensors") for name in names(folder))

        assert after((), 5) == ["0000-step-000005"]
        assert after((0.1,)) == ["0000-step-000005", "0001"]
        assert after((0.1, 0.9)) == ["0001", "0002"]
        assert after((0.1, 0.9), 5) == ["0002", "0002-step-000005"]
        assert after((0.1, 0.9), 9) == ["0002", "0002-step-000005", "0002-step-000009"]
        assert after((0.1, 0.9, 0.3)) == ["0002", "0002-step-000009", "0003"]
        assert after((0.1, 0.9, 0.3, 0.9)) == ["0002", "0003", "0004"]
        assert after((0.1, 0.9, 0.3, 0.9, 0.95)) == ["0004", "0005"]


def test_retention_follows_its_rule_in_any_case() -> None:
    random = np.random.default_rng(0)
    for _ in range(500):
        files = {(int(e), int(s)) for e, s in random.integers(0, 5, (8, 2))}
        written = sorted(files)[random.integers(len(files))]
        best = int(random.integers(0, 5)) if random.integers(2) else None
        keep = int(random.integers(1, 4))
        left = kept(files, written, best, keep)
        assert written in left
        assert left <= files
        for file in files:
            newer = sum(file < other <= written for other in files)
            assert (file in left) == (file == (best, 0) or file > written or newer < keep)


def test_a_damaged_file_that_was_passed_over_goes_and_a_newer_one_of_somebody_else_stays(folder: Location) -> None:
    for name in ("epoch-0001-step-000002", "epoch-0007"):
        (folder / f"{name}.safetensors").write(b"damaged")
    _, damaged = checkpoint.newest_of(folder)
    assert damaged == {(1, 2), (7, 0)}
    save(folder, made((0.5,) * 9))
    with closing(Writer(folder, 2, damaged)) as writer:
        writer.save(made((0.5,), 3))
    assert names(folder) == ["epoch-0001-step-000003.safetensors", "epoch-0009.safetensors"]


def test_what_cannot_be_read_now_is_not_passed_over(folder: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    """An older one, or a run from the beginning, would take its place."""
    save(folder, made((0.5,)))

    def refuse(*_: object) -> bytes:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Location, "read", refuse)
    for read in (checkpoint.newest, checkpoint.progress):
        with pytest.raises(CheckpointError, match="cannot be read: Permission denied"):
            read(folder)


def test_what_interrupted_writes_left_goes_after_an_hour(folder: Location) -> None:
    save(folder, made())
    old, fresh, foreign = (Path(folder.path, name) for name in (".epoch-0001.1a.part", ".epoch-0001.2b.part", "notes"))
    for file in (old, fresh, foreign):
        file.write_bytes(b"some")
    for file in (old, foreign):
        os.utime(file, (time.time() - 4000,) * 2)
    save(folder, made((0.5,)))
    assert (old.exists(), fresh.exists(), foreign.exists()) == (False, True, True)


def test_saving_does_not_wait_for_the_disk(held: tuple[Held, Location], caplog: pytest.LogCaptureFixture) -> None:
    """Both have to copy the same bytes; that nothing is opened for writing meanwhile is certain."""
    disk, folder = held
    with caplog.at_level(logging.WARNING), closing(Writer(folder, 2)) as writer:
        writer.save(made())
        disk.reached.acquire()
        writer.save(made((0.5,)))
        assert disk.written == []
        disk.let.release(100)
    assert disk.written == ["epoch-0000", "epoch-0001"]
