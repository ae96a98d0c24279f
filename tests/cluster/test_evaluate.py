"""Tests of nets on data sets: against Pillow and plain passes, image by image; on any number of workers; refused."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cluster import checkpoint, init, nets, sealed
from cluster.checkpoint import Card, Checkpoint, Progress
from cluster.evaluate import Evaluation, Looked, Viewer, assembled, check
from cluster.posteriors import Posteriors, average
from cluster.vgg import VGG
from cluster.views import View, views
from cluster.world import World
from pipelines import reference
from pipelines.errors import CheckpointError, DataError, SettingsError, TrainingError
from pipelines.location import Location
from pipelines.order import part
from pipelines.shards import DataSet
from tests.pipelines.test_grid import one_by_one
from tests.pipelines.test_loader import damage

MEAN, STD = (120.0, 110.0, 100.0), 60.0
CLASSES = ("ant", "bee", "cat")
ALL = views("both", (32, 41), mirror=True)


def written(file: Path, classes: tuple[str, ...] = CLASSES, change: Callable[[VGG], Any] = lambda net: None) -> str:
    """A checkpoint of a narrow net for images of 32 pixels, with random weights."""
    card = Card("A", classes, 32, 0.1, MEAN, STD, (32, 48), True)
    net = card.build()
    init.randomise(net, "kaiming", 0.01, seed=2)
    change(net)
    saved = Checkpoint(card, net.state_dict(), {}, None, Progress(), {})
    tensors = {f"weights/{name}": tensor.detach().contiguous() for name, tensor in saved.weights.items()}
    Location.of(file).write(*sealed.pack(tensors, checkpoint.notes(saved)))
    return str(file)


@pytest.fixture(scope="module")
def net_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.set_num_threads(1)
    return written(tmp_path_factory.mktemp("nets") / "net.safetensors")


def on(test: Evaluation, workers: int = 1) -> dict[View, Posteriors]:
    """As so many workers do it, one after the other."""
    data = DataSet.open(test.data)
    pieces = [range(*part(data.rows, rank, workers)) for rank in range(workers)]
    viewer = Viewer(test, World.single(), lambda record: None)
    return assembled(test, nets.look(Location.of(test.checkpoint)), data.manifest, map(viewer, filter(len, pieces)))


def pictures_of(data: DataSet, scale: int) -> list[Tensor]:
    """(1, 3, H, W) each, by Pillow."""
    groups = [data.read_group(i) for i in range(len(data.manifest.group_rows))]
    pixels = [np.asarray(reference.rescale(i.tobytes(), scale), np.float32) for group in groups for i in group.encoded]
    return [torch.from_numpy((p - np.float32(MEAN)).transpose(2, 0, 1) / np.float32(STD))[None] for p in pixels]


def slowly(net: VGG, view: View, image: Tensor) -> Tensor:
    """(classes,): one look after the other, layer by layer where it matters."""
    height, width = image.shape[2:]
    if view.mode == "dense":
        y, x = height % 32 // 2, width % 32 // 2
        looks = [image[:, :, y : y + height // 32 * 32, x : x + width // 32 * 32]]
    else:
        looks = [image[:, :, y : y + 32, x : x + 32] for y, x in one_by_one(height, width, 32, 5)]
    looks += [look.flip(3) for look in looks] if view.mirror else []
    found = []
    for look in looks:
        x = net.features(look)
        for fc in (net.fc1, net.fc2, net.fc3):
            x = F.conv2d(x, fc.weight[:, :, None, None], fc.bias)
            x = x if fc is net.fc3 else F.relu(x)
        found.append(F.softmax(x.flatten(2).double().mean(2)[0], 0))
    return torch.stack(found).mean(0)


def test_posteriors_are_those_of_images_made_by_pillow_and_looked_at_one_by_one(
    picture_set: DataSet, net_file: str
) -> None:
    """But for Pillow's rounding to whole grey levels, which the posteriors of other images are much further off."""
    looks = (View("dense", 32, True), View("dense", 75, False), View("multi-crop", 41, True))
    viewer = Viewer(Evaluation(net_file, picture_set.location.absolute, looks), World.single(), lambda record: None)
    rows = range(20, 36)
    found = viewer(rows)
    assert tuple(found) == looks
    net = nets.load(Location.of(net_file)).build()
    with torch.inference_mode():
        for view, looked in found.items():
            assert sorted(looked.rows.tolist()) == list(rows)
            pictures = pictures_of(picture_set, view.scale)
            expected = torch.stack([slowly(net, view, pictures[row]) for row in looked.rows]).numpy()
            off = np.abs(looked.scores - expected).max()
            assert off < 0.004, view
            assert np.abs(looked.scores - np.roll(expected, 1, axis=0)).max() > 20 * off


def test_every_image_comes_once_with_its_name_and_label_on_any_number_of_workers(
    picture_set: DataSet, net_file: str
) -> None:
    test = Evaluation(net_file, picture_set.location.absolute, views("both", (40,), mirror=True))
    groups = [picture_set.read_group(i) for i in range(len(picture_set.manifest.group_rows))]
    alone = on(test)
    for workers in (2, 3, 70):
        for view, found in on(test, workers).items():
            assert found.names == [name for group in groups for name in group.names]
            assert np.array_equal(found.labels, np.concatenate([group.labels for group in groups]))
            assert np.allclose(found.scores, alone[view].scores, rtol=0, atol=1e-6)
            assert np.allclose(found.scores.sum(axis=1), 1)
            assert (found.totals.images, found.totals.top1) == (60, alone[view].totals.top1)
            assert found.totals.top5 == 60, "of three classes"
            assert (found.classes, found.data) == (CLASSES, picture_set.manifest.fingerprint)
            assert found.origin["mode"] == view.mode
    assert average(list(alone.values())).totals.images == 60


def test_ties_count_against_the_net(picture_set: DataSet, tmp_path: Path) -> None:
    def silent(net: VGG) -> None:
        torch.nn.init.zeros_(net.fc3.weight)
        torch.nn.init.zeros_(net.fc3.bias)

    file = written(tmp_path / "net.safetensors", change=silent)
    for found in on(Evaluation(file, picture_set.location.absolute, ALL)).values():
        assert np.allclose(found.scores, 1 / 3)
        assert found.totals.top1 == 0


def test_images_that_cannot_be_decoded_are_named_and_counted_and_do_no_harm(
    picture_set: DataSet, net_file: str, tmp_path: Path
) -> None:
    data = damage(picture_set, tmp_path / "data", {7: b"no image", 30: b"GIF89a"})
    records: list[dict[str, Any]] = []
    test = Evaluation(net_file, data.location.absolute, views("both", (41,), mirror=False))
    viewer = Viewer(test, World.single(), records.append)
    pieces = [viewer(range(20)), viewer(range(20, 60))]
    found = assembled(test, nets.look(Location.of(net_file)), data.manifest, pieces)
    good = on(replace(test, data=picture_set.location.absolute))
    for view in test.views:
        assert found[view].unreadable == (7, 30)
        assert found[view].totals.images == 60
        others = np.delete(np.arange(60), [7, 30])
        assert np.allclose(found[view].scores[others], good[view].scores[others], rtol=0, atol=1e-6)
        assert not np.allclose(found[view].scores[7], good[view].scores[7], rtol=0, atol=1e-4)
    named = {record["name"] for record in records if record["kind"] == "unreadable"}
    assert named == {found[test.views[0]].names[row] for row in (7, 30)}
    assert sum(record["images"] for record in records if record["kind"] == "tested") == 60 * 2


@pytest.mark.parametrize(("rows", "told"), [([*range(60)][:-6], 54), ([*range(60), 3], 59)])
def test_an_image_left_out_or_tested_twice_is_noticed(
    picture_set: DataSet, net_file: str, rows: list[int], told: int
) -> None:
    view = View("dense", 32, False)
    test = Evaluation(net_file, picture_set.location.absolute, (view,))
    n = len(rows)
    looked = Looked(
        np.array(rows), np.zeros(n, np.int64), ["x"] * n, np.ones((n, 3), np.float32), frozenset(), 0.1, 0.1
    )
    with pytest.raises(TrainingError, match=rf"{told} of 60 images were tested"):
        assembled(test, nets.look(Location.of(net_file)), picture_set.manifest, [{view: looked}])


def refusal(data: DataSet, file: str, looks: tuple[View, ...] = ALL, named: bool = True) -> str:
    """What is said before any worker is asked, in one line."""
    label = replace(nets.look(Location.of(file)), named=named)
    with pytest.raises((DataError, SettingsError)) as caught:
        check(Evaluation(file, data.location.absolute, looks), label, data.manifest)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def test_a_net_of_other_classes_is_refused_in_a_line(picture_set: DataSet, tmp_path: Path) -> None:
    other = written(tmp_path / "other.safetensors", ("ant", "bee", "dog"))
    many = written(tmp_path / "many.safetensors", ("ant", "bee", "cat", "dog"))
    assert "'cat' in the place of 'dog'" in refusal(picture_set, other)
    assert "has 3 classes" in refusal(picture_set, many)
    assert "trained on 4" in refusal(picture_set, many, named=False)
    test = Evaluation(other, picture_set.location.absolute, (View("dense", 32, False),))
    label = replace(nets.look(Location.of(other)), named=False)
    check(test, label, picture_set.manifest)
    viewer = Viewer(test, World.single(), lambda record: None)
    found = assembled(test, label, picture_set.manifest, [viewer(range(60))])
    assert found[test.views[0]].classes == CLASSES, "the data set's"


def test_a_scale_below_the_crop_is_refused_in_a_line(picture_set: DataSet, net_file: str) -> None:
    for mode in ("dense", "multi-crop"):
        said = refusal(picture_set, net_file, (View("dense", 40, True), View(mode, 31, True)))  # type: ignore[arg-type]
        assert said.startswith("scale 31 is too small")


def test_a_file_that_is_no_net_is_refused_in_a_line(picture_set: DataSet, net_file: str, tmp_path: Path) -> None:
    whole = Path(net_file).read_bytes()
    for content in (b"", b"no net", whole[:-1], whole[: len(whole) // 2]):
        (tmp_path / "net.safetensors").write_bytes(content)
        with pytest.raises(CheckpointError) as caught:
            Viewer(
                Evaluation(str(tmp_path / "net.safetensors"), picture_set.location.absolute, ALL),
                World.single(),
                lambda record: None,
            )
        assert str(tmp_path) in str(caught.value)
        assert len(str(caught.value).splitlines()) == 1


def test_time_is_told_by_view(picture_set: DataSet, net_file: str) -> None:
    viewer = Viewer(Evaluation(net_file, picture_set.location.absolute, ALL), World.single(), lambda record: None)
    for looked in viewer(range(12)).values():
        assert 0 < looked.net_seconds < looked.seconds
        assert looked.scores.dtype == np.float32


def test_a_file_that_is_replaced_after_it_was_chosen_is_refused(net_file: str, picture_set: DataSet) -> None:
    test = Evaluation(net_file, str(picture_set.location), ALL, seal="of another file")
    with pytest.raises(CheckpointError, match=f"^{net_file}: is another file than it was"):
        Viewer(test, World.single(), lambda record: None)
