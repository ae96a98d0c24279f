"""Nets exported and read again, by this program and by others."""

import json
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from cluster import checkpoint, export, exported, init, nets, published, sealed
from cluster.checkpoint import Card, Progress
from cluster.exported import Note
from cluster.nets import Trained
from cluster.table import CONFIGURATIONS
from pipelines.errors import CheckpointError, SettingsError
from pipelines.location import Location
from tests.cluster import layout
from tests.cluster.test_checkpoint import epoch, made, save
from tests.cluster.test_nets import by_safetensors, by_torch, fed, loaded

CARD = Card("A", ("ant", "bée", "cat"), 64, 0.03, (120.5, 110.25, 90.0), 37.5, (64, 96), flip=False)
PIXELS = torch.randint(256, (2, 3, 64, 64), generator=torch.Generator().manual_seed(1)).float()

IMPOSSIBLE: list[dict[str, object]] = [
    {"width": float("inf")},
    {"width": float("nan")},
    {"width": 1e15},
    {"width": 0},
    {"input_size": 0},
    {"input_size": -32},
    {"input_size": 32 * 10**12},
    {"pixel_std": 0},
    {"pixel_std": float("nan")},
    {"mean_rgb": [float("nan"), 1.0, 1.0]},
    {"scale": [0, 0]},
    {"scale": [-5, -5]},
    {"scale": [96, 64]},
    {"classes": []},
    {"net": "F"},
]


def net(card: Card = CARD, **changes: object) -> Trained:
    """With random weights and statistics."""
    card = replace(card, **changes)  # type: ignore[arg-type]
    model = card.build()
    init.randomise(model, "kaiming", 0.01, seed=4)
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            buffer.copy_(torch.rand(buffer.shape) + 0.5 if name.endswith("var") else torch.randn(buffer.shape) * 0.1)
    return Trained(card, model.state_dict(), "seal", errors=(0.25, 0.125))


def scores(trained: Trained) -> Tensor:
    with torch.inference_mode():
        return trained.build()(fed(trained.card, PIXELS))


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize(
    ("name", "ending"), [(n, ".safetensors") for n in CONFIGURATIONS] + [(n, ".pth") for n in "ABDE"]
)
def test_what_is_exported_reads_back_as_it_was(name: str, ending: str, batch_norm: bool, tmp_path: Path) -> None:
    trained, place = net(net=name, batch_norm=batch_norm), Location.of(tmp_path / "new" / f"x{ending}")
    export.write(trained, place)
    back, label = nets.load(place), nets.look(place)
    assert replace(back, seal="seal", weights={}) == replace(trained, weights={})
    assert (label.card, label.named, label.seal) == (trained.card, True, back.seal)
    assert back.weights.keys() == trained.weights.keys()
    assert all(torch.equal(value, trained.weights[key]) for key, value in back.weights.items())
    assert [file.name for file in (tmp_path / "new").iterdir()] == [place.name]


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("name", layout.CONFIGURATIONS)
def test_torchvisions_net_takes_the_pth_and_gives_the_same_scores(name: str, batch_norm: bool, tmp_path: Path) -> None:
    trained = net(net=name, batch_norm=batch_norm)
    export.write(trained, Location.of(tmp_path / "x.pth"))
    model = layout.Published(name, 3, CARD.width, batch_norm, side=2).eval()
    model.load_state_dict(torch.load(tmp_path / "x.pth", weights_only=True), strict=True)
    with torch.inference_mode():
        theirs = model(layout.normalised(PIXELS, *export.normalisation(trained.card)))
    assert float(theirs.std()) > 0.01
    torch.testing.assert_close(scores(trained), theirs, rtol=1e-4, atol=1e-4)


def test_the_safetensors_library_opens_it_and_finds_the_card(tmp_path: Path) -> None:
    trained = net(batch_norm=True)
    export.write(trained, Location.of(tmp_path / "x.safetensors"))
    with safetensors.safe_open(tmp_path / "x.safetensors", "pt") as file:
        assert set(file.keys()) == set(trained.weights)
        assert all(torch.equal(file.get_tensor(key), value) for key, value in trained.weights.items())
        notes = file.metadata()
    assert notes["format"] == "pt"
    for text in (
        '"net": "A"',
        '"ant", "b\\u00e9e", "cat"',
        "[120.5, 110.25, 90.0]",
        '"scale": [64, 96]',
        '"pixel_std": 37.5',
    ):
        assert text in notes["card"]
    assert notes["errors"] == "[0.25, 0.125]"


def test_a_bit_that_flips_in_an_exported_safetensors_file_is_found(tmp_path: Path) -> None:
    export.write(net(), Location.of(tmp_path / "x.safetensors"))
    content = (tmp_path / "x.safetensors").read_bytes()
    for at in (3, 40, 200, len(content) // 2, len(content) - 1):
        (tmp_path / "x.safetensors").write_bytes(content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :])
        with pytest.raises(CheckpointError, match=r"x\.safetensors: "):
            nets.load(Location.of(tmp_path / "x.safetensors"))


def test_of_a_checkpoint_the_average_is_exported_and_nothing_else(tmp_path: Path) -> None:
    trained = net()
    average = {key: value + 1 for key, value in trained.weights.items()}
    saved = made((0.5, 0.75), momentum=trained.weights, average=average)
    save(Location.of(tmp_path), replace(saved, card=trained.card, weights=trained.weights))
    delivered = nets.load(checkpoint.path_of(Location.of(tmp_path), 2))
    assert delivered.errors == pytest.approx((0.25, 1 - epoch(0.75).validation_accuracy5))
    for ending in (".pth", ".safetensors"):
        export.write(delivered, Location.of(tmp_path / f"x{ending}"))
        back = nets.load(Location.of(tmp_path / f"x{ending}"))
        assert back.errors == delivered.errors
        assert all(torch.equal(value, average[key]) for key, value in back.weights.items())
        assert (tmp_path / f"x{ending}").stat().st_size < 1.3 * sum(value.nbytes for value in average.values()) + 10_000


@pytest.mark.parametrize("progress", [Progress(), Progress([epoch(0.5)], step=3)])
def test_the_error_of_weights_that_were_not_validated_is_not_known(progress: Progress, tmp_path: Path) -> None:
    save(Location.of(tmp_path), made(progress=progress))
    assert nets.load(checkpoint.path_of(Location.of(tmp_path), len(progress.epochs), progress.step)).errors is None


@pytest.mark.parametrize("save_as", [by_torch, by_safetensors])
@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
def test_a_torchvision_net_goes_through_it_with_its_scores(
    save_as: Callable[[dict[str, Tensor], Path], None], ending: str, tmp_path: Path
) -> None:
    """Its pixels are not those that torchvision's files are taken to be for: the file says so, or it would be lost."""
    model = layout.random("B", 3, 0.03, batch_norm=True, side=2)
    trained = loaded(model.state_dict(), tmp_path / "from.file", save_as)
    export.write(trained, Location.of(tmp_path / f"x{ending}"))
    back = nets.load(Location.of(tmp_path / f"x{ending}"))
    assert not back.named
    with torch.inference_mode():
        torch.testing.assert_close(scores(back), model(layout.normalised(PIXELS)), rtol=1e-4, atol=1e-4)


def test_a_note_that_does_not_fit_the_weights_is_refused(tmp_path: Path) -> None:
    export.write(net(), Location.of(tmp_path / "x.pth"))
    state = torch.load(tmp_path / "x.pth", weights_only=True)
    state._metadata["verydeep"]["card"] = state._metadata["verydeep"]["card"].replace('"A"', '"B"')
    torch.save(state, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=r"x\.pth: .* vgg13 of 3 classes"):
        nets.load(Location.of(tmp_path / "x.pth"))
    for wrong in ('{"net": "A"}', '{"net"', "7", [7], None):
        state._metadata["verydeep"]["card"] = wrong
        torch.save(state, tmp_path / "x.pth")
        with pytest.raises(CheckpointError, match=r"x\.pth: what it says of its net cannot be read"):
            nets.load(Location.of(tmp_path / "x.pth"))
    for wrong in (7, {"verydeep": "2"}):
        state._metadata["verydeep"] = wrong
        torch.save(state, tmp_path / "x.pth")
        with pytest.raises(CheckpointError, match=r"x\.pth: written by another version of the program"):
            nets.load(Location.of(tmp_path / "x.pth"))


@pytest.mark.parametrize(
    ("change", "ending"),
    [
        *product(IMPOSSIBLE, (".pth", ".safetensors")),
        ({"net": "C"}, ".pth"),
        ({"net": "A-LRN"}, ".pth"),
    ],
)
def test_a_note_of_a_net_that_cannot_be_is_a_line(change: dict[str, object], ending: str, tmp_path: Path) -> None:
    place, kept = Location.of(tmp_path / f"x{ending}"), net()
    note = exported.texts(Note(kept.card))
    note["card"] = json.dumps({**json.loads(note["card"]), **change})
    if ending == ".pth":
        state = OrderedDict(published.state_of(kept.weights, kept.card))
        state._metadata = OrderedDict({exported.KEY: note})  # type: ignore[attr-defined]
        torch.save(state, place.path)
    else:
        place.write(*sealed.pack(kept.weights, note))
    for read in (nets.load, nets.look):
        with pytest.raises(CheckpointError, match=rf"x\{ending}: ") as raised:
            read(place)
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["A-LRN", "C"])
def test_what_torchvision_has_no_net_for_is_told_in_a_line_and_not_written(name: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=f"torchvision has no nets of configuration {name}, only of A, B, D, E"):
        export.write(net(net=name), Location.of(tmp_path / "x.pth"))
    assert not list(tmp_path.iterdir())


def test_the_ending_chooses_and_others_are_refused(tmp_path: Path) -> None:
    for name in ("x.pt", "x", "x.pth.zip"):
        with pytest.raises(SettingsError, match=r"has to end in \.pth, \.safetensors or \.onnx"):
            export.write(net(), Location.of(tmp_path / name))
    with pytest.raises(SettingsError, match=r"dense is of \.onnx alone"):
        export.write(net(), Location.of(tmp_path / "x.pth"), dense=True)
    assert not list(tmp_path.iterdir())
