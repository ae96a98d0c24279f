import shutil
import struct
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import xxhash
from PIL import Image

from pipelines import sources
from pipelines.errors import DataError
from pipelines.prepare import REPORT, Layout, prepare
from pipelines.shards import DataSet
from tests.conftest import encoded


def test_every_image_arrives_byte_for_byte_with_its_label_and_size(picture_set: DataSet, pictures: Path) -> None:
    seen = set()
    for g in range(len(picture_set.manifest.group_rows)):
        group = picture_set.read_group(g)
        assert sum(len(e) for e in group.encoded) <= 20_000 or len(group.encoded) == 1
        for i, name in enumerate(group.names):
            assert bytes(group.encoded[i]) == (pictures / name).read_bytes()
            assert picture_set.manifest.classes[group.labels[i]] == Path(name).parent.name
            with Image.open(pictures / name) as image:
                assert image.size == (group.widths[i], group.heights[i])
            seen.add(name)
    assert len(seen) == picture_set.rows == 60
    assert len(picture_set.manifest.group_rows) > 4
    assert len(picture_set.manifest.shards) > 1


def test_the_manifest_has_the_checksum_of_each_row_group(picture_set: DataSet) -> None:
    for g, expected in enumerate(picture_set.manifest.group_xxh3):
        group = picture_set.read_group(g)
        content = b"".join(map(bytes, group.encoded)) + struct.pack(f"<{len(group.labels)}q", *group.labels)
        assert xxhash.xxh3_64(content).hexdigest() == expected


@pytest.mark.parametrize("what", ["image", "label"])
def test_a_row_group_that_changed_since_it_was_prepared_is_told_of(
    picture_set: DataSet, tmp_path: Path, what: str
) -> None:
    place = shutil.copytree(str(picture_set.location), tmp_path / "copy")
    shard = place / "part-00001.parquet"
    content = bytearray(shard.read_bytes())
    column = pq.read_metadata(shard).row_group(1).column(0 if what == "image" else 1)
    content[column.data_page_offset + column.total_compressed_size - 2] ^= 1
    shard.write_bytes(content)
    data = DataSet.open(str(place))
    first = len(data.manifest.shards[0].group_rows)
    for g in range(len(data.manifest.group_rows)):
        if g != first + 1:
            data.read_group(g)
    with pytest.raises(
        DataError, match=r"copy/part-00001\.parquet: row group 1 changed since it was prepared: "
    ) as told:
        data.read_group(first + 1)
    assert "\n" not in str(told.value)


def test_statistics_are_those_of_the_pixels(picture_set: DataSet, pictures: Path) -> None:
    images = [np.asarray(Image.open(p).convert("RGB"), np.float64).reshape(-1, 3) for p in pictures.rglob("*.*")]
    mean = np.mean([x.mean(axis=0) for x in images], axis=0)
    covariance = np.mean([(x - mean).T @ (x - mean) / len(x) for x in images], axis=0)
    s = picture_set.manifest.statistics
    assert s is not None
    np.testing.assert_allclose(s.mean_rgb, mean, rtol=1e-9)
    directions, deviations = np.asarray(s.rgb_components), np.asarray(s.rgb_deviations)
    np.testing.assert_allclose(directions.T @ np.diag(deviations**2) @ directions, covariance, rtol=1e-6)
    assert list(deviations) == sorted(deviations, reverse=True)


def test_preparing_again_gives_the_same_data_set(pictures: Path, tmp_path: Path) -> None:
    a = prepare(sources.folder(pictures), tmp_path / "a", seed=4)
    b = prepare(sources.folder(pictures), tmp_path / "b", seed=4, threads=1)
    c = prepare(sources.folder(pictures), tmp_path / "c", seed=5)
    assert a.fingerprint == b.fingerprint != c.fingerprint


def test_bad_files_are_left_out_and_listed(tmp_path: Path) -> None:
    root = tmp_path / "src"
    (root / "x").mkdir(parents=True)
    good = encoded(50, 40, 1, "JPEG")
    bad = {
        "cut.jpg": good[: len(good) // 2],
        "empty.jpg": b"",
        "tail.jpg": good[:-2],
        "text.jpg": b"hello",
        "gif.gif": encoded(50, 40, 1, "GIF"),
    }
    for name, content in {**bad, "good.jpg": good, "gray.png": encoded(50, 40, 2)}.items():
        (root / "x" / name).write_bytes(content)
    manifest = prepare(sources.folder(root), tmp_path / "dest")
    report = (tmp_path / "dest" / REPORT).read_text()
    assert manifest.rows + manifest.rejected == 7
    assert manifest.rows >= 2
    for name in ("cut.jpg", "empty.jpg", "text.jpg", "gif.gif"):
        assert f"x/{name}," in report
    assert "good.jpg" not in report


def test_a_preparation_that_comes_second_leaves_the_first_alone(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both found the place free when they began."""
    first = prepare(sources.folder(pictures), tmp_path / "d")
    monkeypatch.setattr(Path, "exists", lambda self: False)
    with pytest.raises(DataError, match="cannot be written"):
        prepare(sources.folder(pictures), tmp_path / "d", seed=1)
    monkeypatch.undo()
    assert DataSet.open(str(tmp_path / "d")).manifest == first
    assert [p.name for p in tmp_path.iterdir()] == ["d"]


def test_pictures_of_cameras_and_names_that_are_not_utf8_are_taken(tmp_path: Path) -> None:
    (tmp_path / "src" / "a").mkdir(parents=True)
    image = Image.new("RGB", (50, 40), (9, 99, 199))
    image.save(tmp_path / "src" / "a" / "two.jpg", "MPO", save_all=True, append_images=[image])
    with open(bytes(tmp_path / "src" / "a") + b"/caf\xe9.png", "wb") as stream:
        stream.write(encoded(50, 40, 3))
    manifest = prepare(sources.folder(tmp_path / "src"), tmp_path / "d")
    assert (manifest.rows, manifest.rejected) == (2, 0)
    names = DataSet.open(str(tmp_path / "d")).read_group(0).names
    assert sorted(names) == ["a/caf\\udce9.png", "a/two.jpg"]


def test_a_split_is_by_class_and_reproducible(pictures: Path) -> None:
    source = sources.folder(pictures)
    train, val = sources.split(source, 0.25, 7)
    assert sorted(train.names + val.names) == sorted(source.names)
    assert np.bincount(val.labels).tolist() == [5, 5, 5]
    assert sources.split(source, 0.25, 7)[1].names == val.names
    assert sources.split(source, 0.25, 8)[1].names != val.names


def test_what_cannot_be_prepared_is_told_in_one_line(pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "hollow" / "a").mkdir(parents=True)
    other = tmp_path / "other"
    (other / "zebra").mkdir(parents=True)
    (other / "zebra" / "1.png").write_bytes(b"x")
    cases = [
        (lambda: sources.folder(tmp_path / "none"), "no such folder"),
        (lambda: sources.folder(tmp_path / "hollow" / "a"), "holds no folders"),
        (lambda: sources.folder(tmp_path / "hollow"), "hold no files"),
        (lambda: sources.folder(other, ("ant", "bee")), "class 'zebra' is not among the training set's"),
        (lambda: sources.split(sources.folder(pictures), 1.5, 0), "between 0 and 1"),
        (lambda: prepare(sources.folder(other), tmp_path / "d"), "none of its 1 files is an image"),
        (lambda: prepare(sources.folder(pictures), tmp_path), "is there already"),
        (
            lambda: prepare(sources.folder(pictures), other / "zebra" / "1.png" / "d"),
            "cannot be written: ",
        ),
        (lambda: prepare(sources.folder(pictures), Path("s3://bucket/d")), "prepared in a folder"),
        (lambda: sources.folder("~nosuchuser/x"), "no such folder"),
        (lambda: sources.split(sources.folder(other), 0.5, 0), "no class has two images"),
        (lambda: DataSet.open(str(tmp_path / "no")), "no such data set"),
        (lambda: DataSet.open(str(tmp_path)), "not a data set"),
    ]
    for call, message in cases:
        with pytest.raises(DataError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "d").exists()
    prepare(sources.folder(pictures), tmp_path / "small", layout=Layout(), statistics=False)
    whole = (tmp_path / "small" / "part-00000.parquet").read_bytes()
    (tmp_path / "small" / "part-00000.parquet").write_bytes(whole[:-7])
    with pytest.raises(DataError, match=rf"has {len(whole) - 7} bytes instead of {len(whole)} in part-00000\.parquet"):
        DataSet.open(str(tmp_path / "small"))
    (tmp_path / "small" / "part-00000.parquet").unlink()
    with pytest.raises(DataError, match=r"lacks part-00000\.parquet"):
        DataSet.open(str(tmp_path / "small"))
