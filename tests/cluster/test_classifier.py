"""Images classified by onnxruntime, Pillow and NumPy, against torch behind DALI."""

import base64
import importlib.util
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray

from cluster import onnx_file
from cluster.nets import Trained
from pipelines import classifier as module
from pipelines import still
from pipelines.classifier import Classifier
from pipelines.loader import WholeBatches
from pipelines.location import Location
from pipelines.seat import Seat
from pipelines.shards import DataSet
from tests.cluster.nets import random_net
from tests.conftest import encoded


@pytest.fixture
def net(tmp_path: Path) -> tuple[Trained, Path]:
    """And its file."""
    trained = random_net("A", classes=tuple("abcdefg"))
    onnx_file.write(trained, Location.of(tmp_path / "net.onnx"), dense=True)
    return trained, tmp_path / "net.onnx"


def dense_test(trained: Trained, data: DataSet, scale: int) -> NDArray[np.float32]:
    """(rows, classes): the paper's test by torch, over the pictures that a job's test sees."""
    torch.set_num_threads(1)
    card, dense = trained.card, trained.build().dense()
    found = np.full((data.rows, len(card.classes)), np.nan, np.float32)
    seat = Seat(0, 1, torch.device("cpu"), 1)
    with torch.inference_mode():
        for batch in WholeBatches(data, scale, card.mean_rgb, card.pixel_std, 32, seat):
            views = [batch.images, batch.images.flip(3)] if card.flip else [batch.images]
            each = [dense(view).mean(dim=(2, 3)).softmax(dim=1) for view in views]
            found[batch.rows] = torch.stack(each).mean(dim=0).numpy()
    return found


def images_of(data: DataSet) -> list[bytes]:
    groups = [data.read_group(i) for i in range(len(data.group_starts) - 1)]
    return [bytes(image) for group in groups for image in group.encoded]


@pytest.mark.parametrize(("flip", "scale"), [(True, None), (False, 100)])
def test_it_finds_what_a_dense_test_finds(
    flip: bool, scale: int | None, picture_set: DataSet, digits: tuple[str, str], tmp_path: Path
) -> None:
    """Of photographs' shapes and of digits: the same five best, and their probabilities, at S or at another Q."""
    trained = random_net("A", classes=tuple("abcdefg"), flip=flip)
    onnx_file.write(trained, Location.of(tmp_path / "net.onnx"), dense=True)
    classifier, seen = Classifier(tmp_path / "net.onnx", scale), 0
    for data in (picture_set, DataSet.open(digits[1])):
        expected = dense_test(trained, data, scale or 80)
        assert np.ptp(expected, axis=0).max() > 0.05  # they are not all the same
        for image, row in zip(images_of(data), expected, strict=True):
            best = classifier.best(image)
            order = np.argsort(-row, kind="stable")[:5]
            assert [name for name, _ in best] == ["abcdefg"[i] for i in order]
            assert np.allclose([probability for _, probability in best], row[order], atol=1e-5)
            seen += 1
    assert seen >= 100


ALONE = """
import json, sys
sys.path += sys.argv[1:2]
from net.classifier import Classifier
with open(sys.argv[3], "rb") as image:
    print(json.dumps(Classifier(sys.argv[2]).best(image.read())))
"""


def test_two_files_beside_onnxruntime_pillow_and_numpy_are_enough(net: tuple[Trained, Path], tmp_path: Path) -> None:
    """The interpreter is shown no other packages."""
    (tmp_path / "net").mkdir()
    for each in (module, still):
        shutil.copy(str(each.__file__), tmp_path / "net")
    for name in ("onnxruntime", "PIL", "numpy"):
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.origin is not None
        package = Path(spec.origin).parent
        for folder in (package, *package.parent.glob(f"{name.replace('PIL', 'pillow')}.libs")):
            (tmp_path / folder.name).symlink_to(folder)
    (tmp_path / "image").write_bytes(encoded(90, 70, 3, "JPEG"))
    command = [sys.executable, "-I", "-S", "-c", ALONE, str(tmp_path), str(net[1]), str(tmp_path / "image")]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert json.loads(out) == [list(pair) for pair in Classifier(net[1]).best(encoded(90, 70, 3, "JPEG"))]


def test_fewer_classes_than_are_asked_for_are_all_there(net: tuple[Trained, Path]) -> None:
    classifier, image = Classifier(net[1]), encoded(90, 70, 3, "JPEG")
    best = classifier.best(image, 10)
    assert sorted(name for name, _ in best) == list("abcdefg")
    assert sum(probability for _, probability in best) == pytest.approx(1)
    assert best[:2] == classifier.best(image, 2)


def test_what_is_no_image_is_told(net: tuple[Trained, Path]) -> None:
    for content in (b"", b"text", encoded(90, 70, 3, "JPEG")[:200]):
        with pytest.raises(still.Unreadable):
            Classifier(net[1]).best(content)


def test_texts_that_are_no_images_do_the_others_no_harm(net: tuple[Trained, Path]) -> None:
    image = encoded(90, 70, 3, "JPEG")
    table = pd.DataFrame({"image": [base64.b64encode(image).decode(), "\ud800", "ä", 7, image]})
    good, surrogate, letter, number, same = module.Served(Classifier(net[1])).predict(table)
    assert good == same
    assert good["error"] is None
    assert surrogate == letter == {"best": [], "error": "not an image"}
    assert number == {"best": [], "error": "neither bytes nor base64, but int"}


@pytest.mark.parametrize("kind", ["absent", "text", "plain", "foreign"])
def test_a_file_that_is_not_such_a_net_is_a_line(kind: str, net: tuple[Trained, Path], tmp_path: Path) -> None:
    file = tmp_path / "other.onnx"
    if kind == "text":
        file.write_text("no net")
    elif kind == "plain":
        onnx_file.write(net[0], Location.of(file), dense=False)
    elif kind == "foreign":
        file.write_bytes(net[1].read_bytes().replace(b"verydeep", b"somebody"))
    with pytest.raises(ValueError, match=re.escape(str(file))) as caught:
        Classifier(file)
    assert "\n" not in str(caught.value)


def test_a_scale_below_the_nets_input_is_refused(net: tuple[Trained, Path]) -> None:
    with pytest.raises(ValueError, match="Q = 63 is smaller than the net's input, 64 pixels"):
        Classifier(net[1], 63)


def test_an_odd_range_is_tested_in_its_middle(net: tuple[Trained, Path], tmp_path: Path) -> None:
    odd = replace(net[0], card=replace(net[0].card, scale=(64, 99)))
    onnx_file.write(odd, Location.of(tmp_path / "odd.onnx"), dense=True)
    assert [Classifier(file).scale for file in (net[1], tmp_path / "odd.onnx")] == [80, 81]
