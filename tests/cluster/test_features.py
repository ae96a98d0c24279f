"""Features: against a net applied place by place to images that Pillow makes, and the file that they come to."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cluster import checkpoint, features, launch
from cluster.features import Described, Extraction, Extractor, Floats, Written
from cluster.interrupt import Stop
from cluster.place import Shape
from cluster.table import convolutions
from cluster.vgg import VGG
from cluster.world import World
from jobs.cli import main
from pipelines import reference
from pipelines.errors import TrainingError, VerydeepError
from pipelines.location import Location
from pipelines.shards import DataSet
from tests.cluster.test_evaluate import MEAN, STD, written
from tests.pipelines.test_graphs import source_bytes
from tests.pipelines.test_loader import damage

CLASSES = ("oak", "ash", "elm", "fir")  # of none of the data sets
WIDTH = 410  # 4096 times 0.1
DOCS = Path(__file__).parent.parent.parent / "docs"


def with_biases(net: VGG) -> None:
    for name, parameter in net.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, 0.0, 0.1, generator=torch.Generator().manual_seed(len(parameter)))


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> str:
    return written(tmp_path_factory.mktemp("net") / "net.safetensors", CLASSES, with_biases)


def described(task: Extraction, rows: range | None = None) -> Described:
    rows = range(DataSet.open(task.data).rows) if rows is None else rows
    return Extractor(task, World.single(), lambda record: None)(rows)


def by_places(net: dict[str, Tensor], encoded: bytes, scale: int, mirror: bool) -> Floats:
    """(C,) of one image, not normalised: FC layers as such, applied to one place of the last map after the other."""
    whole = np.asarray(reference.rescale(encoded, scale), np.float32)
    (h, w), (y, x) = (side // 32 * 32 for side in whole.shape[:2]), (side % 32 // 2 for side in whole.shape[:2])
    image = (whole[y : y + h, x : x + w] - MEAN) / STD
    found = []
    for view in (image, image[:, ::-1])[: 1 + mirror]:
        maps = torch.tensor(view.transpose(2, 0, 1).copy(), dtype=torch.float32)[None]
        for conv in convolutions("A"):
            if conv.index == 1 and conv.block > 1:
                maps = F.max_pool2d(maps, 2)
            maps = F.relu(F.conv2d(maps, net[f"{conv.name}.weight"], net[f"{conv.name}.bias"], padding=1))
        for place in F.max_pool2d(maps, 2)[0].flatten(1).T:  # crops of 32 pixels see one place each
            hidden = F.relu(net["fc1.weight"] @ place + net["fc1.bias"])
            found.append(F.relu(net["fc2.weight"] @ hidden + net["fc2.bias"]).numpy())
    return np.mean(found, axis=0)


@pytest.mark.parametrize(
    ("scales", "pool", "mirror", "normalise"),
    [((40, 70), "average", True, True), ((32, 64, 96), "stack", False, False), ((50, 64), "stack", True, True)],
)
def test_features_are_those_of_a_net_applied_place_by_place(
    net: str, picture_set: DataSet, scales: tuple[int, ...], pool: features.Pool, mirror: bool, normalise: bool
) -> None:
    torch.set_num_threads(1)
    weights = checkpoint.load(Location.of(net)).weights
    images = source_bytes(picture_set)
    found = described(Extraction(net, picture_set.location.path, scales, pool, mirror, normalise)).features
    for row in range(0, len(images), 5):
        each = [by_places(weights, images[row], scale, mirror) for scale in scales]
        expected = np.concatenate(each) if pool == "stack" else np.mean(each, axis=0)
        if normalise:
            expected /= np.sqrt((expected**2).sum())
        assert found[row].shape == expected.shape
        difference = np.linalg.norm(found[row] - expected) / np.linalg.norm(expected)
        assert difference < 0.02, (row, difference)  # Pillow rounds pixels, and takes others beyond the border


def test_what_is_all_zeros_stays_so() -> None:
    assert features.pooled([np.zeros((2, 3), np.float32)], "average", True).tolist() == [[0.0] * 3] * 2


def test_the_file_is_the_same_from_any_number_of_workers(
    net: str, picture_set: DataSet, tmp_path: Path, cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = damage(picture_set, tmp_path / "damaged", {7: b"not an image", 30: b"\xff\xd8\xff\xe0 nor this"})
    groups = [data.read_group(g) for g in range(len(data.manifest.group_rows))]
    task = Extraction(net, data.location.path, (40, 64), "stack")
    alone = described(task)
    monkeypatch.setattr(features, "PIECE_ROWS", 11)
    records: list[dict[str, object]] = []
    three, two = tmp_path / "new" / "three.parquet", tmp_path / "two.parquet"
    found = launch.run_features(task, Location.of(three), Shape(3, 1, 0, 3), records.append, Stop())
    assert found == Written(data.rows, 2 * WIDTH, 2)
    assert sum(int(str(r["images"])) for r in records if r["kind"] == "tested") == 2 * data.rows
    options = ["--scales", "64", "40", "64", "--pool", "stack", "--workers", "2"]
    assert main(["features", net, data.location.path, str(two), *options]) == 0
    for out in (two, three):
        table = pq.read_table(out)
        assert table.column_names == ["name", "label", "features"]
        assert table["name"].to_pylist() == [name for group in groups for name in group.names]
        assert np.array_equal(table["label"], np.concatenate([group.labels for group in groups]))
        np.testing.assert_allclose(np.stack(table["features"].to_numpy()), alone.features, atol=1e-6)
        about = json.loads(pq.read_metadata(out).metadata[b"verydeep"])
        assert about["unreadable"] == [7, 30] == list(alone.unreadable)
        assert (about["scales"], about["pool"], about["data"]) == ([40, 64], "stack", data.manifest.fingerprint)
        assert about["seal"] == checkpoint.read_head(Location.of(net)).seal
        assert pq.ParquetFile(out).num_row_groups == 6


def pieces(stop: BaseException | None = None) -> Iterator[Described]:
    for i in range(3):
        if i == 2 and stop is not None:
            raise stop
        yield Described([f"{i}"], np.array([i]), np.full((1, 5), i, np.float32), ())


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), TrainingError("the workers cannot go on")])
def test_a_file_that_is_not_finished_leaves_what_was_there(tmp_path: Path, stop: BaseException) -> None:
    out = tmp_path / "f.parquet"
    with pytest.raises(type(stop)):
        features.write(Location.of(out), pieces(stop), {})
    assert list(tmp_path.iterdir()) == []
    assert features.write(Location.of(out), pieces(), {}) == Written(3, 5, 0)
    before = out.read_bytes()
    with pytest.raises(type(stop)):
        features.write(Location.of(out), pieces(stop), {})
    assert out.read_bytes() == before
    assert list(tmp_path.iterdir()) == [out]


def test_before_the_first_piece_is_asked_for_it_is_known_that_the_file_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    def never() -> Iterator[Described]:
        raise AssertionError
        yield

    with pytest.raises(TrainingError, match=r"file/f\.parquet: cannot be written: ") as told:
        features.write(Location.of(tmp_path / "file" / "f.parquet"), never(), {})
    assert len(str(told.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ["{net}", "{data}", "f.parquet", "--scales", "64", "31"],
            "scale 31 is too small for {net}, which takes 32 pixels",
        ),
        (["{net}", "{data}", "f.parquet", "--scales", "-1"], "--scales -1: has to be 1 or more"),
        (["{net}", "{data}", "f.npy"], "f.npy: the name has to end in .parquet"),
        (["{net}", "{data}", "{folder}"], "{folder}: is a folder"),
        (["{net}", "{data}", "f.parquet", "--workers", "0"], "--workers 0: has to be 1 or more"),
        (["{net}", "nowhere", "f.parquet"], "nowhere: no such data set"),
        (["{data}/manifest.json", "{data}", "f.parquet"], "manifest.json"),
        (["nowhere.safetensors", "{data}", "f.parquet"], "nowhere.safetensors: "),
    ],
)
def test_what_cannot_be_is_a_line_before_anything_starts(
    net: str, picture_set: DataSet, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], line: str
) -> None:
    folder = tmp_path / "f.parquet"
    folder.mkdir()
    texts = {"net": net, "data": picture_set.location.path, "folder": str(folder)}
    assert main(["features", *(argument.format(**texts) for argument in arguments)]) == 2
    said = capsys.readouterr().err
    assert line.format(**texts) in said
    assert len(said.splitlines()) == 1


def test_a_linear_classifier_as_in_the_docs_tells_digits_apart_by_features_of_a_random_net(
    net: str, digits: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for data in digits:
        features.write(Location.of(f"{Path(data).name}.parquet"), [described(Extraction(net, data, (64,)))], {})
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / "testing.md").read_text(), re.DOTALL)
    (block,) = (block for block in blocks if "LinearSVC" in block)
    said: list[tuple[str, float]] = []
    exec(block, {"print": lambda *words: said.append(words)})
    assert said[0][1] > 0.3, "one in ten would be chance"


def test_a_checkpoint_that_cannot_be_read_is_an_error_of_the_users(picture_set: DataSet) -> None:
    with pytest.raises(VerydeepError, match=r"manifest\.json"):
        described(Extraction(f"{picture_set.location.path}/manifest.json", picture_set.location.path, (40,)))
