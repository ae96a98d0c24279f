"""ImageNet's archives, rebuilt small: each image has the colour of its class, so that no table of labels is trusted."""

import io
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from jobs import cli
from pipelines import imagenet, sources
from pipelines.errors import DataError
from pipelines.prepare import Layout, prepare
from pipelines.shards import DataSet

# Numbers are not in the order of identifiers, and inner synsets lie among the leaves, in both orders.
SYNSETS = [  # number, identifier, words, children
    (1, "n02119789", "kit fox, Vulpes macrotis", 0),
    (2, "n03126707", "crane", 0),
    (3, "n01503061", "bird", 2),
    (4, "n02012849", "crane", 0),
    (5, "n01440764", "tench, Tinca tinca", 0),
    (6, "n00001740", "entity", 5),
]
COLOURS = {
    "n02119789": (220, 30, 40),
    "n03126707": (30, 210, 50),
    "n02012849": (40, 50, 230),
    "n01440764": (200, 200, 20),
}
VALIDATION = [4, 1, 1, 5, 2, 4, 2, 5, 5]  # numbers of the validation images, in the order of their names


@dataclass(frozen=True)
class Archives:
    train: Path
    val: Path
    devkit: Path


def picture(wnid: str, i: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (40 + i, 50 - i), COLOURS[wnid]).save(out, "JPEG")
    return out.getvalue()


def tar(files: dict[str, bytes], mode: str = "w") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as archive:
        for name, content in files.items():
            header = tarfile.TarInfo(name)
            header.size, header.mtime = len(content), 1.5  # not whole: a second header holds it
            archive.addfile(header, io.BytesIO(content))
    return out.getvalue()


def meta(synsets: list[tuple[int, str, str, int]]) -> bytes:
    fields = ("ILSVRC2012_ID", "WNID", "words", "num_children")
    table = np.zeros((len(synsets), 1), dtype=[(name, "O") for name in fields])
    for i, synset in enumerate(synsets):
        table[i, 0] = synset
    out = io.BytesIO()
    savemat(out, {"synsets": table})
    return out.getvalue()


def devkit(numbers: list[int]) -> dict[str, bytes]:
    folder = "ILSVRC2012_devkit_t12"
    return {
        f"{folder}/readme.txt": b"Development kit",
        f"{folder}/{imagenet.META}": meta(SYNSETS),
        f"{folder}/{imagenet.GROUND_TRUTH}": "".join(f"{n}\n" for n in numbers).encode(),
    }


def training_files() -> dict[str, bytes]:
    """By class, neither in the order of identifiers nor in that of numbers; nor are a class's images in order."""
    return {
        f"{wnid}.tar": tar({f"{wnid}_{i}.JPEG": picture(wnid, i) for i in (7, 10, 2, 4)[: 3 + k % 2]})
        for k, wnid in enumerate(["n03126707", "n01440764", "n02119789", "n02012849"])
    }


def validation_files() -> dict[str, bytes]:
    wnid = {number: name for number, name, *_ in SYNSETS}
    names = [f"ILSVRC2012_val_{i + 1:08d}.JPEG" for i in range(len(VALIDATION))]
    files = {name: picture(wnid[n], i) for i, (name, n) in enumerate(zip(names, VALIDATION, strict=True))}
    return dict(sorted(files.items(), key=lambda item: item[0][::-1]))  # another order than that of the names


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Archives:
    root = tmp_path_factory.mktemp("archives")
    found = Archives(root / "train.tar", root / "val.tar", root / "devkit.tar.gz")
    found.train.write_bytes(tar(training_files()))
    found.val.write_bytes(tar(validation_files()))
    found.devkit.write_bytes(tar(devkit(VALIDATION), "w:gz"))
    return found


def rows(place: Path) -> list[tuple[str, bytes, str]]:
    """(name, encoded, class)"""
    data = DataSet.open(str(place))
    groups = [data.read_group(g) for g in range(len(data.manifest.group_rows))]
    return [
        (name, bytes(encoded), data.manifest.classes[label])
        for group in groups
        for name, encoded, label in zip(group.names, group.encoded, group.labels, strict=True)
    ]


@pytest.fixture(scope="module")
def made(archives: Archives, tmp_path_factory: pytest.TempPathFactory) -> Path:
    dest = tmp_path_factory.mktemp("made")
    places = ["--train", archives.train, "--val", archives.val, "--devkit", archives.devkit, dest]
    assert cli.main(["prepare", "imagenet", *map(str, places)]) == 0
    return dest


@pytest.mark.parametrize(("part", "count"), [("train", 14), ("val", 9)])
def test_each_image_has_the_class_of_its_colour(made: Path, part: str, count: int) -> None:
    seen = rows(made / part)
    assert len(seen) == count
    for name, encoded, title in seen:
        wnid = title.split()[0]
        colour = np.asarray(Image.open(io.BytesIO(encoded))).mean(axis=(0, 1))
        assert np.abs(colour - COLOURS[wnid]).max() < 4, (name, title, colour)
        assert part == "val" or name.startswith(f"{wnid}/{wnid}_")


def test_labels_are_the_places_of_the_sorted_identifiers(made: Path) -> None:
    classes = ("n01440764 tench", "n02012849 crane", "n02119789 kit fox", "n03126707 crane")
    assert DataSet.open(str(made / "train")).manifest.classes == classes
    assert DataSet.open(str(made / "val")).manifest.classes == classes


def test_the_training_set_is_that_of_the_unpacked_folders(archives: Archives, tmp_path: Path) -> None:
    with tarfile.open(archives.train) as outer:
        for member in outer:
            with tarfile.open(fileobj=outer.extractfile(member)) as inner:
                inner.extractall(tmp_path / "src" / Path(member.name).stem, filter="data")
    layout = Layout(group_bytes=4_000, shard_bytes=8_000)
    kit = imagenet.devkit(archives.devkit)
    packed = prepare(imagenet.training(archives.train, kit), tmp_path / "a", layout=layout, seed=3, threads=3)
    unpacked = prepare(sources.folder(tmp_path / "src"), tmp_path / "b", layout=layout, seed=3)
    assert len(packed.group_xxh3) > 2
    assert packed.group_xxh3 == unpacked.group_xxh3
    assert packed.statistics == unpacked.statistics
    assert [r[:2] for r in rows(tmp_path / "a")] == [r[:2] for r in rows(tmp_path / "b")]
    assert all(title.startswith(Path(name).parent.name) for name, _, title in rows(tmp_path / "a"))


def test_the_validation_set_has_the_labels_of_the_unpacked_files(
    archives: Archives, tmp_path: Path, made: Path
) -> None:
    with tarfile.open(archives.val) as archive:
        archive.extractall(tmp_path, filter="data")
    leaves = sorted(wnid for _, wnid, _, children in SYNSETS if not children)
    label = {number: leaves.index(wnid) for number, wnid, _, children in SYNSETS if not children}
    expected = {p.name: (p.read_bytes(), label[n]) for p, n in zip(sorted(tmp_path.iterdir()), VALIDATION, strict=True)}
    data = DataSet.open(str(made / "val"))
    group = data.read_group(0)
    assert {n: (bytes(e), k) for n, e, k in zip(group.names, group.encoded, group.labels, strict=True)} == expected


@pytest.mark.parametrize("part", ["train", "val"])
def test_one_archive_alone_is_enough(archives: Archives, made: Path, tmp_path: Path, part: str) -> None:
    command = ["prepare", "imagenet", f"--{part}", getattr(archives, part), "--devkit", archives.devkit, tmp_path]
    assert cli.main(list(map(str, command))) == 0
    assert [p.name for p in tmp_path.iterdir()] == [part]
    assert rows(tmp_path / part) == rows(made / part)


def test_what_is_wrong_with_archives_is_told_in_one_line(archives: Archives, tmp_path: Path) -> None:
    kit = imagenet.devkit(archives.devkit)

    def file(content: bytes) -> Path:
        path = tmp_path / "file"
        path.write_bytes(content)
        return path

    train, val = archives.train.read_bytes(), archives.val.read_bytes()
    unknown = {**training_files(), "n09999999.tar": tar({"a.JPEG": picture("n01440764", 0)})}
    some = dict(list(training_files().items())[:3])
    inside = train.index(b"n02119789_10.JPEG")  # a header in the midst of the archive
    damaged = train[:inside] + b"X" + train[inside + 1 :]
    without_meta = {name: content for name, content in devkit(VALIDATION).items() if not name.endswith(".mat")}
    no_matlab = {**devkit(VALIDATION), f"ILSVRC2012_devkit_t12/{imagenet.META}": b"MATLAB" * 40}
    cases = [
        (lambda: imagenet.training(tmp_path / "none", kit), "none: cannot be read: No such file"),
        (lambda: imagenet.training(file(b"hello" * 500), kit), "file: not a tar archive"),
        (lambda: imagenet.training(file(b""), kit), "file: not a tar archive"),
        (lambda: imagenet.validation(file(picture("n01440764", 1)), kit), "file: not a tar archive"),
        (lambda: imagenet.training(archives.val, kit), "not archives of classes; is it the archive of --val"),
        (lambda: imagenet.validation(archives.train, kit), "not images; is it the archive of --train"),
        (lambda: imagenet.training(archives.devkit, kit), "devkit.tar.gz: not a tar archive"),
        (lambda: imagenet.training(file(train[: len(train) // 2]), kit), "ends too early; fetch it again"),
        (lambda: imagenet.validation(file(val[: len(val) // 2]), kit), "ends too early; fetch it again"),
        (lambda: imagenet.validation(file(val.rstrip(b"\0")[:-600]), kit), "ends too early; fetch it again"),
        (lambda: imagenet.training(file(damaged), kit), "file: is damaged .no tar header at byte"),
        (lambda: imagenet.training(file(tar(unknown)), kit), r"class n09999999 is unknown to .*devkit\.tar\.gz"),
        (lambda: imagenet.training(file(tar(some)), kit), "no images of 1 of the 4 classes, such as n02012849"),
        (lambda: imagenet.training(file(tar({})), kit), "no images of 4 of the 4 classes, such as n01440764"),
        (lambda: imagenet.devkit(file(tar(devkit(VALIDATION[:-1])))), None),
        (lambda: imagenet.validation(archives.val, imagenet.devkit(tmp_path / "file")), "holds 9 images, .* of 8"),
        (lambda: imagenet.devkit(file(tar(devkit([4, 3])))), "ground_truth.txt: 3 is not the number of a class"),
        (lambda: imagenet.devkit(file(tar(without_meta, "w:gz"))), r"holds no data/meta\.mat; is it ILSVRC2012_devkit"),
        (lambda: imagenet.devkit(archives.val), r"holds no data/meta\.mat"),
        (lambda: imagenet.devkit(file(tar(no_matlab))), r"data/meta\.mat cannot be read: "),
        (lambda: imagenet.devkit(file(b"hello" * 500)), "not a whole archive: "),
        (lambda: imagenet.devkit(file(archives.devkit.read_bytes()[:-500])), "not a whole archive: "),
        (lambda: imagenet.devkit(tmp_path / "none"), "not a whole archive: .*No such file"),
    ]
    for call, message in cases:
        if message is None:
            call()
            continue
        with pytest.raises(DataError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)


def test_an_archive_has_to_be_named(archives: Archives, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["prepare", "imagenet", "--devkit", str(archives.devkit), str(tmp_path / "d")]) == 2
    assert capsys.readouterr().err == "verydeep: give --train, --val or both\n"


def test_an_archive_cut_short_meanwhile_ends_the_preparation_which_goes_on_when_it_is_whole(
    archives: Archives, tmp_path: Path
) -> None:
    shorter = tmp_path / "val.tar"
    shorter.write_bytes(archives.val.read_bytes())
    source = imagenet.validation(shorter, imagenet.devkit(archives.devkit))
    with shorter.open("r+b") as stream:
        stream.truncate(shorter.stat().st_size // 2)
    with pytest.raises(
        DataError, match=r"val\.tar: ILSVRC\S+ cannot be read: the archive has become shorter; the same"
    ):
        prepare(source, tmp_path / "d")
    assert not (tmp_path / "d").exists()
    with shorter.open("r+b") as stream:
        stream.write(archives.val.read_bytes())
    assert (prepare(source, tmp_path / "d").rows, DataSet.open(str(tmp_path / "d")).manifest.rejected) == (9, 0)
