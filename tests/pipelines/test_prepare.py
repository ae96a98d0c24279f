import csv
import errno
import itertools
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import xxhash
from PIL import Image

from pipelines import keys, sources
from pipelines.errors import DataError
from pipelines.keys import Purpose
from pipelines.prepare import Layout, prepare
from pipelines.schema import COLUMNS, MANIFEST, REPORT, checksum
from pipelines.shards import DataSet
from pipelines.sources import Source
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
        content = b""
        for i, image in enumerate(map(bytes, group.encoded)):
            content += struct.pack("<4q", len(image), group.labels[i], group.widths[i], group.heights[i])
            content += image + group.names[i].encode() + b"\0"
        assert xxhash.xxh3_64(content).hexdigest() == expected


def test_checksums_tell_apart_where_one_image_or_name_ends_and_the_next_begins() -> None:
    rows = [(b"ab", b"c"), (0, 1), (5, 6), (7, 8), ("xy", "z")]
    others = [[*rows], [(b"a", b"bc"), *rows[1:]], [*rows[:4], ("x", "yz")], [*rows[:2], (7, 8), (5, 6), rows[4]]]
    assert len({checksum(*columns) for columns in others}) == 4


@pytest.mark.parametrize("what", COLUMNS.names)
def test_a_row_group_that_changed_since_it_was_prepared_is_told_of(
    picture_set: DataSet, tmp_path: Path, what: str
) -> None:
    place = shutil.copytree(str(picture_set.location), tmp_path / "copy")
    shard = place / "part-00001.parquet"
    content = bytearray(shard.read_bytes())
    column = pq.read_metadata(shard).row_group(1).column(COLUMNS.names.index(what))
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


@pytest.fixture(scope="module")
def spoilt(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pictures, with two files among them that are none."""
    root = shutil.copytree(pictures, tmp_path_factory.mktemp("spoilt") / "src")
    (root / "ant" / "05.jpeg").write_bytes(b"hello")
    (root / "cat" / "99.png").write_bytes(b"")
    return root


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few images are checked at a time, so that an interruption loses few."""
    monkeypatch.setattr("pipelines.prepare._BATCH_IMAGES", 4)


SMALL = Layout(group_bytes=20_000, shard_bytes=60_000)
KILLED = """
import itertools, os, signal, sys
from dataclasses import replace
from pathlib import Path
from pipelines import prepare, sources

source, reads = sources.folder(sys.argv[1]), itertools.count()
def read(i):
    if next(reads) == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
    return source.read(i)
prepare._BATCH_IMAGES = 4
layout = prepare.Layout(group_bytes=20_000, shard_bytes=60_000)
prepare.prepare(replace(source, read=read), Path(sys.argv[2]), layout=layout, threads=2)
"""


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def interrupting(source: Source, after: int, how: type[BaseException] = KeyboardInterrupt) -> Source:
    """The source, which fails when the image that comes `after` others is read."""
    reads = itertools.count()

    def read(i: int) -> bytes:
        if next(reads) == after:
            raise how
        return source.read(i)

    return replace(source, read=read)


@pytest.mark.usefixtures("small_batches")
def test_interrupted_anywhere_and_begun_again_gives_the_same_bits(
    spoilt: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = sources.folder(spoilt)
    prepare(source, tmp_path / "whole", layout=SMALL)
    whole = contents(tmp_path / "whole")
    assert len(whole) >= 6
    assert REPORT in whole
    went_on = set()
    for first, second in [(3, 2), (20, 10), (33, 9), (50, 5), (61, 0)]:
        dest = tmp_path / f"after-{first}"
        for after in (first, second):
            with pytest.raises(KeyboardInterrupt):
                prepare(interrupting(source, after), dest, layout=SMALL, threads=2)
            assert not dest.exists()
        capsys.readouterr()
        prepare(source, dest, layout=SMALL, threads=3)
        assert contents(dest) == whole
        went_on |= set(re.findall(r"goes on after (\d+) of 62 images", capsys.readouterr().err))
    assert len(went_on) >= 2
    assert not list(tmp_path.glob(".*"))


@pytest.mark.usefixtures("small_batches")
def test_what_is_finished_is_not_read_again(spoilt: Path, tmp_path: Path) -> None:
    source = sources.folder(spoilt)
    with pytest.raises(KeyboardInterrupt):
        prepare(interrupting(source, 60), tmp_path / "d", layout=SMALL, threads=1)
    done = json.loads((tmp_path / ".d.part" / "state.json").read_text())["state"]["shards"]
    rows = sum(sum(shard["group_rows"]) for shard in done)
    assert rows > 20
    read: list[int] = []
    manifest = prepare(replace(source, read=lambda i: read.append(i) or source.read(i)), tmp_path / "d", layout=SMALL)
    assert 0 < len(read) <= 62 - rows
    read.clear()
    assert prepare(replace(source, read=read.append), tmp_path / "d", layout=SMALL) == manifest
    assert read == []


@pytest.mark.usefixtures("small_batches")
@pytest.mark.parametrize("number", ["EIO", "ESTALE", "EMFILE", "ENFILE", "ENOMEM", "ENOTCONN"])
def test_a_disk_or_a_network_that_fails_is_no_images_fault(spoilt: Path, tmp_path: Path, number: str) -> None:
    source = sources.folder(spoilt)
    reads = itertools.count()

    def read(i: int) -> bytes:
        if next(reads) >= 55:
            raise OSError(getattr(errno, number), os.strerror(getattr(errno, number)))
        return source.read(i)

    with pytest.raises(DataError, match=rf"src: \w+/\S+ cannot be read: {os.strerror(getattr(errno, number))}; "):
        prepare(replace(source, read=read), tmp_path / "d", layout=SMALL, threads=1)
    assert not (tmp_path / "d").exists()
    assert json.loads((tmp_path / ".d.part" / "state.json").read_text())["state"]["shards"]
    assert prepare(source, tmp_path / "d", layout=SMALL).rejected == 2
    prepare(source, tmp_path / "whole", layout=SMALL)
    assert contents(tmp_path / "d") == contents(tmp_path / "whole")


def test_files_that_will_never_be_read_are_left_out_with_the_reason(pictures: Path, tmp_path: Path) -> None:
    root = shutil.copytree(pictures, tmp_path / "src")
    (root / "ant" / "gone.png").symlink_to("nowhere")
    (root / "ant" / "round.png").symlink_to("round.png")
    (root / "bee" / "long.png").symlink_to("x" * 300)
    (root / "bee" / "through.png").symlink_to("01.jpeg/inside")
    source = sources.folder(root)

    def read(i: int) -> bytes:
        if source.names[i] == "cat/02.png":
            raise PermissionError(errno.EACCES, "Permission denied")
        if source.names[i] == "cat/05.jpeg":
            raise IsADirectoryError(errno.EISDIR, "Is a directory")
        return source.read(i)

    assert prepare(replace(source, read=read), tmp_path / "d").rows == 58
    with (tmp_path / "d" / REPORT).open(newline="") as stream:
        assert dict(list(csv.reader(stream))[1:]) == {
            "ant/gone.png": "cannot be read: No such file or directory",
            "ant/round.png": "cannot be read: Too many levels of symbolic links",
            "bee/long.png": "cannot be read: File name too long",
            "bee/through.png": "cannot be read: Not a directory",
            "cat/02.png": "cannot be read: Permission denied",
            "cat/05.jpeg": "cannot be read: Is a directory",
        }


def test_folders_that_links_lead_to_again_are_passed_over_and_named(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = shutil.copytree(pictures, tmp_path / "src")
    plain = sources.folder(root)
    (root / "bee").rename(tmp_path / "bees")
    shutil.copytree(pictures / "cat", tmp_path / "more" / "cats")
    (root / "bee").symlink_to(tmp_path / "bees")  # a class of its own, whatever leads to it too
    (root / "ant" / "again").symlink_to(".")
    (root / "ant" / "others").symlink_to("../cat")
    (root / "ant" / "up").symlink_to("..")
    (root / "ant" / "bees").symlink_to(tmp_path / "bees")
    (root / "cat" / "more").symlink_to(tmp_path / "more")
    (root / "cat" / "too").symlink_to(tmp_path / "more" / "cats")
    capsys.readouterr()
    source = sources.folder(root)
    more = [f"cat/more/cats/{p.name}" for p in (pictures / "cat").iterdir()]
    assert sorted(source.names) == sorted([*plain.names, *more])
    assert all(source.classes[k] == name.split("/")[0] for k, name in zip(source.labels, source.names, strict=True))
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{root}: passed over, since they lead to what is in it already: ")
    passed = line.rpartition(": ")[2].split(", ")
    assert sorted(passed) == ["ant/again", "ant/bees", "ant/others", "ant/up", "cat/too"]
    sources.folder(pictures)
    assert capsys.readouterr().err == ""


@pytest.mark.usefixtures("small_batches")
def test_strict_stops_at_the_first_bad_file_and_what_is_finished_is_gone_on_from(
    spoilt: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = sources.folder(spoilt)
    prepare(source, tmp_path / "whole", seed=7, layout=SMALL)
    reports = (tmp_path / "whole" / REPORT).read_text().splitlines()[1:]
    read: list[int] = []
    strictly = replace(source, read=lambda i: read.append(i) or source.read(i))
    with pytest.raises(
        DataError, match=r"src: \S+ cannot be trained on: .*; the same command without --strict"
    ) as told:
        prepare(strictly, tmp_path / "d", seed=7, layout=SMALL, strict=True, threads=1)
    assert "\n" not in str(told.value)
    assert reports[0].split(",")[0] in str(told.value)
    assert len(read) <= 36, "the first of them is the 27th; two batches more are under way"
    capsys.readouterr()
    prepare(source, tmp_path / "d", seed=7, layout=SMALL)
    assert "goes on after" in capsys.readouterr().err
    assert contents(tmp_path / "d") == contents(tmp_path / "whole")
    with pytest.raises(DataError, match=r"d: is there already, without 2 files, see .*rejected\.csv"):
        prepare(source, tmp_path / "d", seed=7, layout=SMALL, strict=True)


@pytest.mark.usefixtures("small_batches")
def test_strict_does_not_go_on_from_what_was_begun_with_files_left_out(spoilt: Path, tmp_path: Path) -> None:
    source = sources.folder(spoilt)
    bad = source.names.index("ant/05.jpeg")
    seed = next(s for s in range(99) if bad in keys.permutation(62, s, 0, Purpose.PREPARATION_ORDER)[:9])
    with pytest.raises(KeyboardInterrupt):
        prepare(interrupting(source, 61), tmp_path / "d", layout=SMALL, seed=seed, threads=1)
    state = (tmp_path / ".d.part" / "state.json").read_bytes()
    assert json.loads(state)["state"]["tally"]["rejected"]
    with pytest.raises(DataError, match=r"cannot be trained on: .*, remove \S+/\.d\.part and begin anew"):
        prepare(source, tmp_path / "d", layout=SMALL, seed=seed, strict=True)
    assert (tmp_path / ".d.part" / "state.json").read_bytes() == state
    assert prepare(source, tmp_path / "d", layout=SMALL, seed=seed).rejected == 2


def test_killed_and_begun_again_gives_the_same_bits(
    spoilt: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare(sources.folder(spoilt), tmp_path / "whole", layout=SMALL)
    killed = subprocess.run([sys.executable, "-c", KILLED, str(spoilt), str(tmp_path / "d"), "50"], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "d").exists()
    prepare(sources.folder(spoilt), tmp_path / "d", layout=SMALL)
    assert "d: goes on after" in capsys.readouterr().err
    assert contents(tmp_path / "d") == contents(tmp_path / "whole")
    assert not (tmp_path / ".d.part").exists()


def test_killed_right_after_the_data_set_came_to_its_place_leaves_nothing_in_the_end(
    pictures: Path, tmp_path: Path
) -> None:
    prepare(sources.folder(pictures), tmp_path / "d")
    (tmp_path / ".d.part" / "replaced").mkdir(parents=True)
    (tmp_path / ".d.part" / "lock").touch()
    prepare(sources.folder(pictures), tmp_path / "d")
    assert [p.name for p in tmp_path.iterdir()] == ["d"]


@pytest.mark.usefixtures("small_batches")
def test_what_was_begun_otherwise_is_begun_anew(
    spoilt: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = sources.folder(spoilt)
    with pytest.raises(KeyboardInterrupt):
        prepare(interrupting(source, 55), tmp_path / "d", layout=SMALL, threads=1)
    capsys.readouterr()
    prepare(source, tmp_path / "d", layout=SMALL, seed=1)
    assert capsys.readouterr().err.count("begun from other images or with other options, now begun anew\n") == 1
    prepare(source, tmp_path / "e", layout=SMALL, seed=1)
    assert contents(tmp_path / "d") == contents(tmp_path / "e")


def test_a_data_set_that_is_there_is_the_same_or_in_the_way(pictures: Path, spoilt: Path, tmp_path: Path) -> None:
    source = sources.folder(pictures)
    first = prepare(source, tmp_path / "d")
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "d").iterdir()}
    assert prepare(source, tmp_path / "d") == first
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "d").iterdir()} == before
    for other, options in [
        (source, {"seed": 1}),
        (source, {"statistics": False}),
        (source, {"layout": SMALL}),
        (sources.folder(spoilt), {}),
        (replace(source, labels=source.labels[::-1]), {}),
        (replace(source, sizes=source.sizes + 1), {}),
        (replace(source, classes=("a", "b", "c")), {}),
    ]:
        with pytest.raises(DataError, match="is there already; choose another place or give --overwrite"):
            prepare(other, tmp_path / "d", **options)
    assert prepare(source, tmp_path / "d", seed=1, overwrite=True).seed == 1
    (tmp_path / "d" / "part-00000.parquet").unlink()
    with pytest.raises(DataError, match="is there already"):
        prepare(source, tmp_path / "d", seed=1)
    assert [p.name for p in tmp_path.iterdir()] == ["d"]


def test_of_two_preparations_of_one_place_the_second_gets_a_line(pictures: Path, tmp_path: Path) -> None:
    source = sources.folder(pictures)
    told = []

    def read(i: int) -> bytes:
        if not told:
            with pytest.raises(DataError, match="d: another process is preparing it") as caught:
                prepare(source, tmp_path / "d", seed=1)
            told.append(str(caught.value))
        return source.read(i)

    manifest = prepare(replace(source, read=read), tmp_path / "d", threads=1)
    assert len(told) == 1
    assert manifest == prepare(source, tmp_path / "d")
    assert manifest.fingerprint == prepare(source, tmp_path / "alone").fingerprint


def test_what_came_to_the_place_meanwhile_is_left_alone(pictures: Path, tmp_path: Path) -> None:
    source = sources.folder(pictures)

    def read(i: int) -> bytes:
        (tmp_path / "d").mkdir(exist_ok=True)
        (tmp_path / "d" / "thesis").write_text("dear to somebody")
        return source.read(i)

    with pytest.raises(DataError, match="d: cannot be written: "):
        prepare(replace(source, read=read), tmp_path / "d")
    assert contents(tmp_path / "d") == {"thesis": b"dear to somebody"}


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


@pytest.mark.parametrize(
    "change",
    [
        {"group_rows": ["a"]},
        {"group_rows": None},
        {"group_rows": [[1]]},
        {"group_rows": {"a": 1}},
        {"file": 3},
        {"bytes": None},
        {"group_xxh3": 7},
    ],
)
def test_manifests_that_are_none_are_told_of_in_one_line(
    picture_set: DataSet, tmp_path: Path, change: dict[str, object]
) -> None:
    place = shutil.copytree(str(picture_set.location), tmp_path / "copy")
    manifest = json.loads((place / MANIFEST).read_text())
    manifest["shards"][0] |= change
    (place / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(DataError, match=r"copy") as told:
        DataSet.open(str(place))
    assert "\n" not in str(told.value)


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


def test_what_is_not_a_file_is_passed_over(pictures: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(pictures, tmp_path / "source"))
    os.mkfifo(copy / "ant" / "pipe.jpg")
    assert sources.folder(copy).names == sources.folder(pictures).names
