"""Nets out of files of every kind, and what is not one."""

import argparse
import os
import pickle
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from cluster import checkpoint, init, nets
from cluster.attempt import Stage
from cluster.checkpoint import Card
from cluster.train import train
from cluster.vgg import VGG, parameters
from cluster.world import World
from pipelines.errors import CheckpointError
from pipelines.location import Location
from tests.cluster import layout
from tests.cluster.test_train import settings

State = dict[str, Tensor]


def by_torch(state: Any, file: Path) -> None:
    torch.save(state, file)


def by_old_torch(state: Any, file: Path) -> None:
    torch.save(state, file, _use_new_zipfile_serialization=False)


def by_safetensors(state: State, file: Path) -> None:
    safetensors.torch.save_file(state, file)


def loaded(state: Any, file: Path, save: Callable[[Any, Path], None] = by_torch) -> nets.Trained:
    save(state, file)
    return nets.load(Location.of(file))


def fed(card: Card, pixels: Tensor) -> Tensor:
    return (pixels - torch.tensor(card.mean_rgb)[:, None, None]) / card.pixel_std


def scores_agree(trained: nets.Trained, model: layout.Published, size: int) -> None:
    """Ours on pixels less the mean, and the oracle on its own."""
    pixels = torch.randint(256, (2, 3, size, size)).float()
    with torch.inference_mode():
        expected = model(layout.normalised(pixels))
        assert float(expected.std()) > 0.1
        torch.testing.assert_close(trained.build()(fed(trained.card, pixels)), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("net", layout.CONFIGURATIONS)
@pytest.mark.parametrize("save", [by_torch, by_old_torch, by_safetensors])
def test_torchvisions_nets_give_torchvisions_scores(
    net: str, batch_norm: bool, save: Callable[[Any, Path], None], tmp_path: Path
) -> None:
    width = 0.125 if save is by_torch else 0.03
    model = layout.random(net, 11, width, batch_norm)
    trained = loaded(model.state_dict(), tmp_path / "misleading.name", save)
    card = trained.card
    assert (card.net, card.width, card.input_size, card.batch_norm) == (net, width, 224, batch_norm)
    assert (card.classes, trained.named) == (("0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "10"), False)
    assert (card.scale, card.flip) == ((256, 256), True)
    assert card.mean_rgb == pytest.approx((123.675, 116.28, 103.53))
    scores_agree(trained, model, 224)


def test_the_published_sizes_are_recognised(tmp_path: Path) -> None:
    """vgg16's own: 138,357,544 parameters of which none has to be read."""
    with torch.device("meta"):
        state = layout.Published("D", 1000).state_dict()
    assert sum(value.numel() for value in state.values()) == parameters("D")
    card = nets.published.card_of(state)
    assert (card.net, card.width, card.input_size, len(card.classes)) == ("D", 1.0, 224, 1000)
    assert nets.published.weights_of(state, card).keys() == VGG("D", 2, 32, 0.01).state_dict().keys()


@pytest.mark.parametrize("width", [0.01, 0.03, 0.05, 0.1, 1 / 3, 0.333, 0.7, 1.5])
@pytest.mark.parametrize("side", [1, 2, 3])
def test_width_and_input_size_follow_from_the_shapes(width: float, side: int) -> None:
    with torch.device("meta"):
        state = layout.Published("A", 3, width, side=side).state_dict()
    card = nets.published.card_of(state)
    assert card.input_size == 32 * side
    if width != 1 / 3:
        assert card.width == width
    with torch.device("meta"):
        shapes = [value.shape for value in card.build().state_dict().values()]
    assert sorted(shapes) == sorted(value.shape for value in state.values())


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"state_dict": state, "epoch": 3, "arch": "vgg11", "best_acc1": torch.tensor(71.0)},
        lambda state: {"model": state, "args": argparse.Namespace(lr=0.1, name="x"), "optimizer": {"state": {}}},
        lambda state: {f"module.{key}": value for key, value in state.items()},
        lambda state: {"model": {f"_orig_mod.{key}": value.double() for key, value in state.items()}},
        lambda state: {key.replace("features.", "features.module."): value for key, value in state.items()},
        lambda state: {key: torch.nn.Parameter(value) for key, value in state.items()},
    ],
)
def test_a_state_dict_is_found_where_training_scripts_keep_it(wrap: Callable[[State], Any], tmp_path: Path) -> None:
    model = layout.random("A", 4, 0.03, side=1)
    trained = loaded(wrap(model.state_dict()), tmp_path / "x.pth")
    scores_agree(trained, model, 32)


def test_batch_norms_of_before_batches_were_counted_load(tmp_path: Path) -> None:
    model = layout.random("B", 4, 0.03, batch_norm=True, side=1)
    state = {key: value for key, value in model.state_dict().items() if "num_batches" not in key}
    scores_agree(loaded(state, tmp_path / "x.pth"), model, 32)


class Payload:
    """Unpickled without care, makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("save", [by_torch, by_old_torch, lambda state, file: file.write_bytes(pickle.dumps(state))])
@pytest.mark.parametrize("read", [nets.load, nets.look])
def test_code_in_a_file_is_refused_and_not_executed(
    save: Callable[[Any, Path], None], read: Callable[[Location], Any], tmp_path: Path
) -> None:
    state = {**layout.random("A", 2, 0.03, side=1).state_dict(), "classifier.6.bias": Payload(tmp_path / "made")}
    save(state, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=r"x\.pth: not read, since it holds more than tensors") as raised:
        read(Location.of(tmp_path / "x.pth"))
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "made").exists()
    pickle.loads(pickle.dumps(Payload(tmp_path / "made")))
    assert (tmp_path / "made").exists()


def without(key: str) -> Callable[[State], Any]:
    return lambda state: {name: value for name, value in state.items() if name != key}


def other(key: str, value: Tensor) -> Callable[[State], Any]:
    return lambda state: {**state, key: value}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda state: {"conv1.weight": torch.ones(4, 3, 7, 7)}, "it has no features.0.weight, but conv1.weight"),
        (lambda state: {"weights": [1, 2]}, "holds no net's tensors, neither by themselves nor under state_dict"),
        (lambda state: [1, 2], "holds no net's tensors"),
        (lambda state: torch.ones(3), "holds no net's tensors"),
        (lambda state: torch.nn.Linear(2, 2), r"more than tensors \(torch.nn.modules.linear.Linear\)"),
        (without("features.11.weight"), "it has 7 convolutions; torchvision's nets have 8, 10, 13, 16"),
        (without("features.11.bias"), "it lacks features.11.bias, which vgg11 of 4 classes has"),
        (without("classifier.0.weight"), "it lacks classifier.0.weight"),
        (without("classifier.6.weight"), "it lacks classifier.6.weight"),
        (other("classifier.9.bias", torch.ones(1)), "it has classifier.9.bias, which vgg11 of 4 classes has not"),
        (other("classifier.3.bias", torch.ones(5)), r"classifier.3.bias is \(5,\), in vgg11 of 4 classes \(123,\)"),
        (other("classifier.0.weight", torch.ones(123, 31)), "classifier.0 takes 31 inputs, which 15 square maps do"),
        (
            other("classifier.0.weight", torch.ones(7, 15)),
            r"its layers' widths, \(2, 4, 8, 15, 15, 7\), are no multiple",
        ),
        (other("classifier.3.bias", torch.ones(123).to_sparse()), "holds no net's tensors"),
        (other("classifier.3.bias", torch.ones(123, dtype=torch.int8)), r"classifier.3.bias is of type torch.int8, in"),
        (other("classifier.6.weight", torch.ones(7)), "classifier.6.weight has 1 dimensions, not 2"),
        (other("features.3.weight", torch.ones(4, 2, 1, 1)), r"features.3.weight is \(4, 2, 1, 1\), in vgg11"),
        (other("classifier.6.weight", torch.ones(0, 123)), r"classifier.6.weight is empty, \(0, 123\)"),
        (other("features.18.weight", torch.ones(0, 15, 3, 3)), r"features.18.weight is empty, \(0, 15, 3, 3\)"),
        (lambda state: {key: value.to("meta") for key, value in state.items()}, "holds no net's tensors"),
    ],
)
def test_what_is_no_such_net_is_told_in_a_line(change: Callable[[State], Any], reason: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=reason) as raised:
        loaded(change(layout.random("A", 4, 0.03, side=1).state_dict()), tmp_path / "x.pth")
    assert str(raised.value).startswith(f"{tmp_path / 'x.pth'}: ")
    assert "\n" not in str(raised.value)


def test_configuration_c_is_not_torchvisions(tmp_path: Path) -> None:
    """Written as torchvision would, with 13 convolutions as D has, but kernels of 1."""
    state = layout.random("D", 4, 0.03, side=1).state_dict()
    state["features.14.weight"] = state["features.14.weight"][:, :, :1, :1].clone()
    with pytest.raises(CheckpointError, match=r"features.14.weight is \(8, 8, 1, 1\), in vgg16 of 4 classes"):
        loaded(state, tmp_path / "x.pth")


@pytest.mark.parametrize("save", [by_torch, by_old_torch, by_safetensors])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
@pytest.mark.parametrize("read", [nets.load, nets.look])
def test_a_file_cut_off_is_told_in_a_line(
    save: Callable[[Any, Path], None], share: float, read: Callable[[Location], Any], tmp_path: Path
) -> None:
    save(layout.random("A", 4, 0.03, side=1).state_dict(), tmp_path / "x.pth")
    content = (tmp_path / "x.pth").read_bytes()
    (tmp_path / "x.pth").write_bytes(content[: int(len(content) * share)])
    with pytest.raises(CheckpointError) as raised:
        read(Location.of(tmp_path / "x.pth"))
    assert str(raised.value).startswith(f"{tmp_path / 'x.pth'}: ")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("read", [nets.load, nets.look])
def test_a_bit_that_flips_in_a_file_of_torchs_is_found(read: Callable[[Location], Any], tmp_path: Path) -> None:
    """Where tensors lie, of which torch compares no checksums."""
    state, file = layout.random("A", 4, 0.03, side=1).state_dict(), tmp_path / "x.pth"
    by_torch(state, file)
    content = file.read_bytes()
    for name in ("features.0.weight", "classifier.3.weight", "classifier.6.bias"):
        at = content.index(state[name].numpy().tobytes()) + 2
        file.write_bytes(content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :])
        with pytest.raises(CheckpointError, match=r"x\.pth: damaged: the checksum of \S+ is not that of its content"):
            read(Location.of(file))


def test_a_file_that_was_written_without_checksums_loads(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        loaded(layout.random("A", 4, 0.03, side=1).state_dict(), tmp_path / "x.pth")
    finally:
        torch.serialization.set_crc32_options(True)


@pytest.mark.parametrize(
    "content", [b"some text\n", b"{}", b"\x00" * 100, b"\x80", b"PK\x03\x04 and more", b"", b"\x08" * 9]
)
def test_what_is_no_file_of_a_net_is_told_in_a_line(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(content)
    for read in (nets.load, nets.look):
        with pytest.raises(CheckpointError) as raised:
            read(Location.of(tmp_path / "x"))
        assert str(raised.value).startswith(f"{tmp_path / 'x'}: ")
        assert "\n" not in str(raised.value)


def test_a_file_that_is_not_there_or_a_folder_is_told_in_a_line(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="none: no such checkpoint"):
        nets.load(Location.of(tmp_path / "none"))
    with pytest.raises(CheckpointError, match="cannot be read: "):
        nets.look(Location.of(tmp_path))


@pytest.mark.parametrize("save", [by_torch, by_old_torch, by_safetensors])
def test_a_look_tells_what_loading_tells_and_the_seal_is_of_all_bytes(
    save: Callable[[Any, Path], None], tmp_path: Path
) -> None:
    state, place = layout.random("A", 4, 0.03, side=1).state_dict(), Location.of(tmp_path / "x")
    seals = set()
    for bias in (0.25, 0.5):
        state["classifier.6.bias"][3] = bias
        trained, label = loaded(state, tmp_path / "x", save), nets.look(place)
        assert (label.seal, label.named, asdict(label.card)) == (trained.seal, False, asdict(trained.card))
        seals.add(label.seal)
    assert len(seals) == 2


def test_a_torchvision_net_is_tuned_to_classes_of_ones_own(digits: tuple[str, str], tmp_path: Path) -> None:
    """With a rate of next to nothing the layers that come from the file are as in the file: on pixels that are divided
    by another number they give what torchvision's give; the last layer is drawn anew, for ten classes."""
    model = layout.random("A", 1000, 0.05, side=1)
    torch.save(model.state_dict(), tmp_path / "x.pth")
    start = {"init": {"from": str(tmp_path / "x.pth"), "except": ["fc3"], "random": "kaiming"}}
    stage = settings(epochs=1, batch=300, learning_rate=1e-12, weight_decay=0.0, **start)
    train(Stage("a", stage, *digits, str(tmp_path / "a"), str(tmp_path / "x.pth")), World.single(), lambda r: None)
    tuned = nets.load(checkpoint.path_of(Location.of(tmp_path / "a"), 1))
    assert (len(tuned.card.classes), tuned.named) == (10, True)
    net, fresh = tuned.build(), tuned.card.build()
    init.randomise(fresh, "kaiming", 0.01, stage.seed)
    torch.testing.assert_close(net.fc3.weight, fresh.fc3.weight)
    pixels = torch.randint(256, (2, 3, 32, 32)).float()
    ours = net.features(fed(replace(tuned.card, mean_rgb=tuple(255 * m for m in layout.MEAN)), pixels))
    with torch.inference_mode():
        torch.testing.assert_close(ours, model.features(layout.normalised(pixels)), rtol=1e-3, atol=1e-3)
