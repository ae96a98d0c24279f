"""Sets of images in Parquet files, written as the `datasets` library of the Hugging Face hub writes them."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from jobs import cli
from pipelines import audit, parquet, sources
from pipelines.augment import Recipe
from pipelines.errors import DataError
from pipelines.loader import TrainingBatches
from pipelines.order import Order
from pipelines.prepare import Layout, prepare
from pipelines.schema import REPORT
from pipelines.seat import Seat
from pipelines.shards import DataSet
from tests.conftest import encoded
from tests.pipelines.test_audit import BAD

CLASSES = ("ant", "bee", "cat")
Row = tuple[bytes | None, str | None, int | None]  # encoded, path, label


def write(
    file: Path, groups: Sequence[Sequence[Row]], classes: Sequence[str] | None = CLASSES, **others: pa.Array
) -> None:
    """A struct column, the features in the metadata, snappy, a page index. `others`: more columns, for one group."""
    image = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    label = {"dtype": "int64", "_type": "Value"} if classes is None else {"names": list(classes), "_type": "ClassLabel"}
    features = {"image": {"_type": "Image"}, "label": label}
    schema = pa.schema(
        {"image": image, "label": pa.int64(), **{name: column.type for name, column in others.items()}},
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    with pq.ParquetWriter(file, schema, compression="snappy", write_page_index=True) as writer:
        for rows in groups:
            images = pa.array([{"bytes": content, "path": path} for content, path, _ in rows], image)
            labels = pa.array([label for *_, label in rows], pa.int64())
            table = pa.Table.from_arrays([images, labels, *others.values()], schema=schema)
            writer.write_table(table, row_group_size=len(rows))


@pytest.fixture(scope="module")
def prepared(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    dest = tmp_path_factory.mktemp("prepared") / "d"
    prepare(sources.folder(pictures), dest, layout=Layout(group_bytes=16_000, shard_bytes=80_000))
    return DataSet.open(str(dest))


def groups_of(data: DataSet) -> list[list[Row]]:
    groups = [data.read_group(g) for g in range(len(data.manifest.group_rows))]
    return [[(bytes(e), n, int(k)) for e, n, k in zip(g.encoded, g.names, g.labels, strict=True)] for g in groups]


@pytest.fixture(scope="module")
def hub(prepared: DataSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The prepared pictures, group by group, in three files, with bad rows in between, a bad group, and a test split
    that is not labelled."""
    root = tmp_path_factory.mktemp("hub") / "set"
    groups = groups_of(prepared)
    assert len(groups) >= 8
    text, cut, nothing = (BAD["text.jpg"][0], "t.jpg", 1), (BAD["tail.jpg"][0], "c.jpg", 2), (None, "n.jpg", 0)
    third = len(groups) // 3
    parts = [groups[:third], groups[third : 2 * third], groups[2 * third :]]
    parts[0][0] = [text, *parts[0][0]]
    parts[1] = [[cut, nothing], *parts[1]]
    parts[2][1] = [*parts[2][1][:1], nothing, text, *parts[2][1][1:]]
    for i, part in enumerate(parts):
        write(root / "data" / f"train-{i:05d}-of-00003.parquet", part)
    write(root / "data" / "validation-00000-of-00001.parquet", [groups[0], groups[1]])
    write(root / "data" / "test-00000-of-00001.parquet", [[(content, path, -1) for content, path, _ in groups[2]]])
    return root


@pytest.fixture(scope="module")
def made(hub: Path) -> Path:
    assert cli.main(["prepare", "parquet", str(hub)]) == 0
    return hub / "verydeep"


def test_good_rows_are_those_of_the_same_images_prepared_from_a_folder(made: Path, prepared: DataSet) -> None:
    data = DataSet.open(str(made / "train"))
    assert data.manifest.group_rows == prepared.manifest.group_rows
    assert data.manifest.group_xxh3 == prepared.manifest.group_xxh3
    assert data.manifest.statistics == prepared.manifest.statistics
    assert data.manifest.fingerprint == prepared.manifest.fingerprint
    for g in range(len(data.manifest.group_rows)):
        a, b = data.read_group(g), prepared.read_group(g)
        assert list(map(bytes, a.encoded)) == list(map(bytes, b.encoded))
        assert a.names == b.names
        for name in ("labels", "widths", "heights"):
            assert np.array_equal(getattr(a, name), getattr(b, name))
    for first, last in [(0, data.rows), (7, 31), (5, 5), (data.rows - 1, data.rows)]:
        assert np.array_equal(data.read_sizes(first, last), prepared.read_sizes(first, last))
    assert DataSet.open(str(made / "val")).manifest.statistics is None


def test_training_on_it_is_training_on_the_folder(made: Path, prepared: DataSet) -> None:
    def batches(data: DataSet) -> list[tuple[torch.Tensor, torch.Tensor]]:
        assert data.manifest.statistics is not None
        recipe = Recipe((32, 48), 32, True, 0.1, 1.0, data.manifest.statistics)
        order = Order(data.manifest.group_rows, 16, 5)
        run = TrainingBatches(data, order, recipe, Seat(0, 1, torch.device("cpu"), 2), 0, 2 * order.steps_per_epoch)
        return [(b.images.clone(), b.labels.clone()) for b in run]

    ours, theirs = batches(DataSet.open(str(made / "train"))), batches(prepared)
    assert len(ours) == 8
    for (a, k), (b, m) in zip(ours, theirs, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(k, m)


def test_bad_rows_are_listed_with_file_and_row(made: Path) -> None:
    lines = (made / "train" / REPORT).read_text().splitlines()
    assert lines[0] == "file,reason"
    assert lines[1] == '"data/train-00000-of-00003.parquet, row 0: t.jpg",not an image'
    assert lines[2].startswith(
        '"data/train-00001-of-00003.parquet, row 0: c.jpg",cannot be decoded: image file is trunc'
    )
    assert lines[3] == '"data/train-00001-of-00003.parquet, row 1: n.jpg",it has no bytes'
    assert len(lines) == 6
    assert all("train-00002-of-00003.parquet, row " in line for line in lines[4:])


def test_it_is_small_and_moves_with_the_files(hub: Path, made: Path, tmp_path: Path) -> None:
    assert sorted(p.name for p in (made / "train").iterdir()) == ["index.parquet", "manifest.json", REPORT]
    assert sum(p.stat().st_size for p in made.rglob("*.*")) < 30_000
    moved = shutil.copytree(hub, tmp_path / "moved")
    hidden = hub.rename(hub.with_name("elsewhere"))
    try:
        a = DataSet.open(str(moved / "verydeep" / "train"))
        a.read_group(0)
        with pytest.raises(DataError, match="no such data set"):
            DataSet.open(str(made / "train"))
    finally:
        hidden.rename(hub)
    b = DataSet.open(str(made / "train"))
    assert a.manifest.fingerprint == b.manifest.fingerprint


def test_image_bytes_are_views(made: Path) -> None:
    group = DataSet.open(str(made / "train")).read_group(1)
    assert len(group.encoded) > 1
    assert all(not view.flags.owndata for view in group.encoded)
    places = [view.ctypes.data for view in group.encoded]
    assert places == list(places[0] + np.cumsum([0, *map(len, group.encoded)])[:-1])  # as Arrow has them


def test_files_elsewhere_are_named_absolutely(hub: Path, made: Path, tmp_path: Path) -> None:
    assert cli.main(["prepare", "parquet", str(hub), str(tmp_path / "d")]) == 0
    moved = (tmp_path / "d").rename(tmp_path / "e")
    data = DataSet.open(str(moved / "train"))
    assert data.manifest.shards[0].file == str(hub / "data" / "train-00000-of-00003.parquet")
    assert data.manifest.fingerprint == DataSet.open(str(made / "train")).manifest.fingerprint
    assert data.read_group(0).names == DataSet.open(str(made / "train")).read_group(0).names


def test_the_same_again_is_done_already_and_other_files_are_another_set(
    hub: Path, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["prepare", "parquet", str(hub)]) == 0
    assert capsys.readouterr().out.count("prepared already, ") == 2
    copy = shutil.copytree(hub, tmp_path / "copy")
    shutil.copy(copy / "data" / "validation-00000-of-00001.parquet", copy / "data" / "train-00001-of-00003.parquet")
    assert cli.main(["prepare", "parquet", str(copy)]) == 2
    assert "is there already" in capsys.readouterr().err
    assert cli.main(["prepare", "parquet", str(copy), "--overwrite"]) == 0
    assert DataSet.open(str(copy / "verydeep" / "train")).manifest.rejected == 3


def test_interrupted_and_begun_again_gives_the_same_bits(
    hub: Path, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(hub, tmp_path / "copy", ignore=shutil.ignore_patterns("verydeep"))
    split = parquet.splits(copy)["train"]
    whole, calls = audit.examine, []

    def interrupted(images: Sequence[audit.Image], colours: bool) -> list[audit.Image]:
        calls.append(len(images))
        if sum(calls) > 45:
            raise KeyboardInterrupt
        return whole(images, colours)

    monkeypatch.setattr(audit, "examine", interrupted)
    with pytest.raises(KeyboardInterrupt):
        parquet.refer(split, copy / "verydeep" / "train", threads=1)
    assert not (copy / "verydeep" / "train").exists()
    monkeypatch.setattr(audit, "examine", lambda images, colours: calls.append(-len(images)) or whole(images, colours))
    parquet.refer(split, copy / "verydeep" / "train", threads=2)
    assert "goes on after" in capsys.readouterr().err
    assert 0 < -sum(n for n in calls if n < 0) < 65
    for name in ("index.parquet", REPORT):
        assert (copy / "verydeep" / "train" / name).read_bytes() == (made / "train" / name).read_bytes()
    a, b = (json.loads((at / "train" / "manifest.json").read_text()) for at in (copy / "verydeep", made))
    assert a.pop("source") != b.pop("source")
    assert a == b


def test_strict_stops_at_the_first_bad_row_and_keeps_what_is_finished(
    hub: Path, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(hub, tmp_path / "copy", ignore=shutil.ignore_patterns("verydeep"))
    table = pq.read_table(copy / "data" / "train-00000-of-00003.parquet")
    pq.write_table(table.slice(1), copy / "data" / "train-00000-of-00003.parquet")
    split, dest = parquet.splits(copy)["train"], copy / "verydeep" / "train"
    with pytest.raises(
        DataError, match=r"copy: data/train-00001\S+, row 0: c.jpg cannot be trained on: .* without --strict leaves"
    ):
        parquet.refer(split, dest, strict=True)
    assert not dest.exists()
    assert parquet.refer(split, dest).rejected == 4
    assert "goes on after" in capsys.readouterr().err
    with pytest.raises(DataError, match="train: is there already, without 4 files, see "):
        parquet.refer(split, dest, strict=True)


@pytest.mark.parametrize("suffix", ["", "/data"])
def test_opening_the_files_themselves_names_the_command(hub: Path, suffix: str) -> None:
    with pytest.raises(DataError, match=rf"not a data set yet; `verydeep prepare parquet {hub}{suffix}` makes one"):
        DataSet.open(f"{hub}{suffix}")


def test_a_file_that_changed_is_told_of(hub: Path, made: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(hub, tmp_path / "copy")
    file = copy / "data" / "train-00001-of-00003.parquet"
    content = bytearray(file.read_bytes())
    column = pq.read_metadata(file).row_group(1).column(0)
    content[(column.dictionary_page_offset or column.data_page_offset) + column.total_compressed_size // 2] ^= 4
    file.write_bytes(content)
    data = DataSet.open(str(copy / "verydeep" / "train"))
    first = len(data.manifest.shards[0].group_rows)
    with pytest.raises(DataError, match=r"train-00001-of-00003\.parquet: row group 1 (changed since|cannot be read)"):
        data.read_group(first)
    data.read_group(first + 1)
    file.write_bytes(content[:-9])
    with pytest.raises(DataError, match=r"bytes instead of \d+ in \.\./\.\./data/train-00001-of-00003\.parquet"):
        DataSet.open(str(copy / "verydeep" / "train"))
    (copy / "verydeep" / "train" / "index.parquet").unlink()
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"index\.parquet: cannot be read"):
        DataSet.open(str(copy / "verydeep" / "train"))


def test_a_file_that_cannot_be_read_leaves_what_was_finished(hub: Path, made: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(hub, tmp_path / "copy", ignore=shutil.ignore_patterns("verydeep"))
    split = parquet.splits(copy)["train"]
    file = split.files[2]
    whole = file.read_bytes()
    file.write_bytes(b"\0" * (len(whole) // 2) + whole[len(whole) // 2 :])
    with pytest.raises(DataError, match=r"train-00002-of-00003\.parquet: cannot be read: ") as caught:
        parquet.refer(split, tmp_path / "d")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "d").exists()
    file.write_bytes(whole)
    assert json.loads((tmp_path / ".d.part" / "state.json").read_text())["state"]["shards"]
    manifest = parquet.refer(split, tmp_path / "d")
    assert manifest.fingerprint == DataSet.open(str(made / "train")).manifest.fingerprint


def tiny(n: int, classes: int = 3) -> list[Row]:
    return [(encoded(16, 16, i), f"{i}.png", i % classes) for i in range(n)]


def test_row_groups_of_a_hundred_and_other_layouts_are_read(tmp_path: Path) -> None:
    rows = tiny(230)
    write(tmp_path / "default" / "train" / "0000.parquet", [rows[:100], rows[100:200], rows[200:]], classes=None)
    plain = pa.table(
        {"jpg": pa.array([content for content, *_ in rows[:8]], pa.large_binary()), "cls": pa.array([2, 1, 0, 0] * 2)}
    )
    (tmp_path / "default" / "test").mkdir()
    pq.write_table(plain, tmp_path / "default" / "test" / "0000.parquet")
    assert cli.main(["prepare", "parquet", str(tmp_path), str(tmp_path / "d")]) == 0
    train, val = (DataSet.open(str(tmp_path / "d" / name)) for name in ("train", "val"))
    assert train.manifest.group_rows == (100, 100, 30)
    assert train.manifest.classes == val.manifest.classes == ("0", "1", "2")
    assert [bytes(e) for e in train.read_group(2).encoded] == [content for content, *_ in rows[200:]]
    group = val.read_group(0)
    assert group.labels.tolist() == [2, 1, 0, 0] * 2
    assert [bytes(e) for e in group.encoded] == [content for content, *_ in rows[:8]]
    assert group.names == [f"0000:{i}" for i in range(8)]


def test_images_without_a_path_are_named_after_their_file_whatever_its_name(tmp_path: Path) -> None:
    rows = [(content, None, label) for content, _, label in tiny(4)]
    write(tmp_path / "train-{x}.parquet", [rows])
    parquet.refer(parquet.splits(tmp_path)["train"], tmp_path / "d")
    assert DataSet.open(str(tmp_path / "d")).read_group(0).names == [f"train-{{x}}:{i}" for i in range(4)]


def test_of_several_columns_of_numbers_one_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = tiny(6)
    write(tmp_path / "train-00000-of-00001.parquet", [rows], classes=None, coarse=pa.array([0, 1] * 3))
    assert parquet.splits(tmp_path)["train"].labels.tolist() == [0, 1, 2] * 2
    assert parquet.splits(tmp_path, label="coarse")["train"].labels.tolist() == [0, 1] * 3
    table = pq.read_table(tmp_path / "train-00000-of-00001.parquet").rename_columns(["image", "fine", "coarse"])
    pq.write_table(table, tmp_path / "train-00000-of-00001.parquet")
    assert cli.main(["prepare", "parquet", str(tmp_path)]) == 2
    assert "found several: fine, coarse; name one with --label\n" in capsys.readouterr().err
    assert cli.main(["prepare", "parquet", str(tmp_path), "--label", "coarse"]) == 0


def test_what_cannot_be_taken_is_told_in_one_line(hub: Path, tmp_path: Path) -> None:
    rows = tiny(6)

    def set_of(name: str, *files: tuple[str, Callable[[Path], object]]) -> Path:
        for file, make in files:
            (tmp_path / name).mkdir(exist_ok=True)
            (tmp_path / name / file).parent.mkdir(exist_ok=True)
            make(tmp_path / name / file)
        return tmp_path / name

    good = ("train-00000-of-00001.parquet", lambda f: write(f, [rows]))
    ids = pa.array([0, 1, 2, 3, 4, 2**63], pa.uint64())
    images = pa.array([content for content, *_ in rows])
    cases = [
        (
            lambda: parquet.splits(
                set_of("m", ("train.parquet", lambda f: write(f, [[*rows, (*rows[0][:2], 10**9)]], None)))
            ),
            "'label' goes up to 1000000000 in 7 rows, so numbers no classes; name another column with --label",
        ),
        (
            lambda: parquet.splits(
                set_of("n", ("train.parquet", lambda f: pq.write_table(pa.table({"i": images, "id": ids}), f)))
            ),
            r"train\.parquet: 'id' are not labels: ",
        ),
        (lambda: parquet.splits(tmp_path / "none"), "none: no such folder"),
        (
            lambda: parquet.splits(set_of("a", ("x.parquet", lambda f: write(f, [rows])))),
            "no Parquet files of training",
        ),
        (lambda: parquet.splits(set_of("b", ("test.parquet", lambda f: write(f, [rows])))), "parquet, only of test$"),
        (lambda: parquet.splits(hub, "test"), r"test-00000\S+: all labels of its split are -1: it is unlabelled"),
        (lambda: parquet.splits(hub, "extra"), "no Parquet files of a split 'extra', but of test, train, validation"),
        (
            lambda: parquet.splits(set_of("c", ("train-00001-of-00003.parquet", lambda f: write(f, [rows])))),
            "1 of 3 files are there",
        ),
        (
            lambda: parquet.splits(set_of("d", ("train.parquet", lambda f: write(f, [rows], ["one"])))),
            "label 2 of its sp",
        ),
        (
            lambda: parquet.splits(set_of("e", good, ("validation.parquet", lambda f: write(f, [tiny(6, 4)], None)))),
            r"validation\.parquet: label 3 of its split is not among the 3 classes",
        ),
        (
            lambda: parquet.splits(set_of("f", ("train.parquet", lambda f: write(f, [[*rows, (*rows[0][:2], None)]])))),
            "1 of its 7 rows have no label",
        ),
        (
            lambda: parquet.splits(set_of("g", ("train.parquet", lambda f: f.write_bytes(b"PAR1")))),
            "not a whole Parquet",
        ),
        (
            lambda: parquet.splits(set_of("h", ("train.parquet", lambda f: pq.write_table(pa.table({"a": [1]}), f)))),
            "has 0 columns of encoded images among .'a'., expected one",
        ),
        (
            lambda: parquet.splits(
                set_of("i", ("train.parquet", lambda f: pq.write_table(pa.table({"a": [b"1"], "b": ["x"]}), f)))
            ),
            "expected a column of labels, whole numbers, found none among",
        ),
        (lambda: parquet.splits(hub, label="image"), "'image' is not a column of whole numbers; such are: label"),
        (
            lambda: parquet.splits(set_of("j", good, ("more/train-a.parquet", lambda f: write(f, [rows])))),
            "holds several sets, in .*: name the folder of one of them",
        ),
        (
            lambda: parquet.splits(
                set_of(
                    "k",
                    ("train-a.parquet", lambda f: write(f, [rows])),
                    ("train-b.parquet", lambda f: write(f, [rows], ["x", "y", "z"])),
                )
            ),
            r"train-b\.parquet: has other columns or classes than the first file",
        ),
        (
            lambda: parquet.refer(
                parquet.splits(set_of("l", ("train.parquet", lambda f: write(f, [[(b"x", "x", 0)]]))))["train"],
                tmp_path / "dest",
            ),
            "none of its 1 files is an image; the first, train.parquet, row 0: x: not an image",
        ),
    ]
    for call, message in cases:
        with pytest.raises(DataError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob(".dest*"))
