"""Checkpoints: what they hold, and that any damage is found."""

import json
import os
import pickle
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

from cluster import checkpoint, sealed
from cluster.checkpoint import Card, Checkpoint, Epoch, Progress
from cluster.metrics import Totals
from cluster.writer import Writer
from pipelines.errors import CheckpointError
from pipelines.location import Location

CARD = Card("A", ("ant", "bee", "çà et là"), 32, 0.05, (1.5, 2.25, 0.1), 64.0, (32, 48), True)


def epoch(accuracy: float, loss: float = 0.1 + 0.2) -> Epoch:
    return Epoch(
        loss=loss,
        accuracy=accuracy,
        accuracy5=1.0,
        gradient_norm=0.3,
        validation_loss=loss,
        validation_accuracy=accuracy,
        validation_accuracy5=1.0,
        learning_rate=1e-3,
        images_per_second=1234.5,
        waiting=0.01,
        flops_per_second=1e12,
        peak_memory_bytes=1 << 30,
        seconds=6.7,
    )


def made(accuracies: tuple[float, ...] = (), step: int = 0, seed: int = 0, **changes: Any) -> Checkpoint:
    """A small checkpoint of random tensors of all types that nets have, after so many epochs and steps."""
    generator = torch.Generator().manual_seed(seed)
    weights = {
        "conv1_1.weight": torch.randn(5, 3, 3, 3, generator=generator).to(memory_format=torch.channels_last),
        "fc1.weight": torch.randn(4, 7, generator=generator).t(),
        "half": torch.randn(3, 5, generator=generator).bfloat16(),
        "scalar": torch.randn((), generator=generator),
        "count": torch.tensor(12345678901),
        "flag": torch.tensor([True, False, True]),
        "none": torch.zeros(0, 3),
        "tiny": torch.tensor([1e-45, -0.0]),
    }
    parts: dict[str, Any] = {
        "momentum": {"fc1.weight": torch.randn(7, 4, generator=generator)},
        "average": None,
        "progress": Progress([epoch(a) for a in accuracies], step, Totals(step, step / 3, step, step), step / 7),
        "settings": {"seed": 2**64 - 1, "init": {"from": None}, "scale": [32, 48]},
        "run": "f" * 32,
    }
    return Checkpoint(CARD, weights, **(parts | changes))


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    def raw(tensor: Tensor) -> bytes:
        return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()

    return one.keys() == other.keys() and all(
        (one[k].dtype, one[k].shape, raw(one[k])) == (other[k].dtype, other[k].shape, raw(other[k])) for k in one
    )


def save(folder: Location, *saved: Checkpoint, keep: int = 100) -> None:
    with closing(Writer(folder, keep)) as writer:
        for each in saved:
            writer.save(each)
            writer.wait()


def names(folder: Location) -> list[str]:
    return sorted(folder.files())


@pytest.fixture
def folder(tmp_path: Path) -> Location:
    return Location.of(tmp_path / "stage")


def test_a_checkpoint_is_read_back_to_the_bit(folder: Location) -> None:
    average = {name: tensor * 2 for name, tensor in made().weights.items()}
    odd = Progress([epoch(0.1, float("inf")), epoch(0.2, float("nan"))], 3, Totals(7, -1e-300, 2, 3, 1), 0.1)
    for saved in (made(momentum={}, run=None, average=average), made(progress=odd), made((0.1, 0.9, 0.5))):
        save(folder, saved)
        place = checkpoint.path_of(folder, len(saved.progress.epochs), saved.progress.step)
        found, head = checkpoint.load(place), checkpoint.read_head(place)
        assert same(found.weights, saved.weights)
        assert same(found.momentum, saved.momentum)
        assert same(found.average or {}, saved.average or {})
        assert (found.average is None) == (saved.average is None)
        assert same(found.delivered, saved.weights if saved.average is None else saved.average)
        for own in (found, head):
            assert (own.card, own.settings, own.run) == (saved.card, saved.settings, saved.run)
            assert repr(own.progress) == repr(saved.progress)  # NaN is not equal to itself
    assert names(folder) == [
        f"epoch-{name}.safetensors" for name in ("0000", "0002-step-000003", "0003")
    ]  # fmt: skip


def test_another_reader_of_safetensors_finds_the_same(folder: Location) -> None:
    saved = made((0.5,))
    save(folder, saved)
    file = checkpoint.path_of(folder, 1).path
    own = {f"weights/{name}": tensor for name, tensor in saved.weights.items()}
    assert same(safetensors.torch.load_file(file), own | {"momentum/fc1.weight": saved.momentum["fc1.weight"]})
    with safetensors.safe_open(file, "pt") as opened:
        assert json.loads(opened.metadata()["settings"]) == saved.settings


def test_tensors_lie_where_their_types_may_lie(folder: Location) -> None:
    save(folder, made())
    for tensor in checkpoint.load(checkpoint.path_of(folder, 0)).weights.values():
        assert tensor.data_ptr() % tensor.element_size() == 0
        tensor.zero_()  # memory of its own, that may be written to


def test_a_file_cut_off_or_with_a_bit_flipped_anywhere_is_refused(folder: Location) -> None:
    save(folder, made((0.5,)))
    good = Path(checkpoint.path_of(folder, 1).path)
    content = good.read_bytes()
    torn = Location.of(good.with_name("torn.safetensors"))
    random = np.random.default_rng(0)
    data = sealed.read_head(Location.of(good)).start
    for at in (*range(0, len(content)), *random.integers(0, len(content), 200)):
        damaged = bytearray(content)
        damaged[at] ^= 1 << int(random.integers(8))
        Path(torn.path).write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"torn\.safetensors: not a whole checkpoint$"):
            checkpoint.load(torn)
        if at < data:  # what is found without looking at the data
            with pytest.raises(CheckpointError, match=r"not a whole checkpoint$"):
                checkpoint.read_head(torn)
    for end in (*range(0, len(content), 7), len(content) - 1, len(content) + 1):
        Path(torn.path).write_bytes((content + b"\0")[:end])
        for read in (checkpoint.load, checkpoint.read_head):
            with pytest.raises(CheckpointError, match=r"not a whole checkpoint$"):
                read(torn)


def test_blocks_of_zeros_or_of_another_checkpoint_are_found(folder: Location) -> None:
    """As a disk leaves them that lost power, or an upload whose parts were mixed up."""
    save(folder, made((0.5,)), made((0.5, 0.5), seed=1))
    one, other = (Path(checkpoint.path_of(folder, n).path).read_bytes() for n in (1, 2))
    torn = folder / "torn.safetensors"
    for first in range(0, len(one) - 64, 64):
        for block in (bytes(64), other[first : first + 64]):
            if one[first : first + 64] != block:
                torn.write(one[:first], block, one[first + 64 :])
                with pytest.raises(CheckpointError, match=r"not a whole checkpoint$"):
                    checkpoint.load(torn)


def test_the_newest_whole_one_is_taken_with_a_warning_for_others(
    folder: Location, caplog: pytest.LogCaptureFixture
) -> None:
    assert checkpoint.newest(folder) is None
    assert checkpoint.progress(folder) == Progress()
    save(folder, made((0.5,)), made((0.5,), 9), made((0.5,), 10), made((0.5, 0.6)))
    (folder / "epoch-0009.pt").write(b"of an earlier version")
    last = Path(checkpoint.path_of(folder, 2).path)
    last.write_bytes(last.read_bytes()[:-1])
    for read in (checkpoint.newest, checkpoint.progress):
        found = read(folder)
        progress = found.progress if isinstance(found, Checkpoint) else found
        assert progress == made((0.5,), 10).progress
        assert "passed over" in caplog.text
        assert "epoch-0002" in caplog.text
        caplog.clear()


class Trap:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.place),)

    def __init__(self, place: Path) -> None:
        self.place = place


def test_a_file_with_a_pickle_inside_is_refused_and_executes_nothing(tmp_path: Path) -> None:
    trap = Trap(tmp_path / "sprung")
    torch.save({"version": 1, "weights": trap}, tmp_path / "epoch-0001.pt")
    (tmp_path / "epoch-0002.safetensors").write_bytes(pickle.dumps(trap))
    (tmp_path / "epoch-0003.safetensors").write_bytes((tmp_path / "epoch-0001.pt").read_bytes())
    for name, reason in (("1.pt", "torch.save"), ("2.safetensors", "not a whole"), ("3.safetensors", "torch.save")):
        for read in (checkpoint.load, checkpoint.read_head):
            with pytest.raises(CheckpointError, match=rf"epoch-000{name}: .*{reason}") as caught:
                read(Location.of(tmp_path / f"epoch-000{name}"))
            assert len(str(caught.value).splitlines()) == 1
    assert checkpoint.newest(Location.of(tmp_path)) is None
    assert not trap.place.exists()
    pickle.loads(pickle.dumps(trap))  # it would have
    assert trap.place.exists()


def test_foreign_files_are_refused_with_a_line(folder: Location) -> None:
    place = folder / "x.safetensors"
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        checkpoint.load(place)
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        checkpoint.read_head(place)
    for content in (b"", b"name: demo\n", bytes(100), safetensors.torch.save({"a": torch.ones(3)})):
        place.write(content)
        with pytest.raises(CheckpointError, match="not a whole checkpoint"):
            checkpoint.load(place)
    for notes, reason in (({}, "of this version"), ({"version": checkpoint.VERSION}, "of this program: 'card'")):
        place.write(*sealed.pack({"weights/a": torch.ones(3)}, notes))
        with pytest.raises(CheckpointError, match=reason):
            checkpoint.load(place)
