"""Which files are taken, how they come out of DALI's decoder, and why others are refused."""

import io
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from nvidia.dali import fn, pipeline_def, types
from PIL import Image

from jobs import cli
from pipelines import sources
from pipelines.audit import Image as Candidate
from pipelines.audit import examine
from pipelines.augment import Recipe
from pipelines.loader import ValidationBatches
from pipelines.prepare import prepare
from pipelines.schema import REPORT, Statistics
from pipelines.seat import Seat
from pipelines.shards import DataSet
from tests.conftest import encoded, kept


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def picture() -> Image.Image:
    return Image.open(io.BytesIO(encoded(61, 43, 7)))


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: to be turned by 90 degrees
    return exif


def transparent_palette() -> bytes:
    return saved(picture().quantize(16), "PNG", transparency=3)


def sixteen_bits() -> bytes:
    return saved(Image.fromarray((np.arange(43 * 61).reshape(43, 61) * 24).astype(np.uint16)), "PNG")


GOOD = {
    "cmyk.jpg": saved(picture().convert("CMYK"), "JPEG"),
    "gray.jpg": saved(picture().convert("L"), "JPEG"),
    "gray.png": saved(picture().convert("L"), "PNG"),
    "gray-alpha.png": saved(picture().convert("LA"), "PNG"),
    "16-bit.png": sixteen_bits(),
    "really-png.JPEG": saved(picture(), "PNG"),
    "progressive.jpg": saved(picture(), "JPEG", progressive=True),
    "palette.png": transparent_palette(),
    "turned.jpg": saved(picture(), "JPEG", exif=turned()),
    "turned.png": saved(picture(), "PNG", exif=turned()),
    "turned.tif": saved(picture(), "TIFF", tiffinfo={0x0112: 6}),
    "pixel.jpg": saved(Image.new("RGB", (1, 1), (250, 0, 9)), "JPEG"),
    "pixel.png": saved(Image.new("L", (1, 1), 7), "PNG"),
    "two.mpo": saved(picture(), "MPO", save_all=True, append_images=[picture()]),
    "bits.png": saved(picture().convert("1"), "PNG"),
    "16-bit.tif": saved(Image.open(io.BytesIO(sixteen_bits())), "TIFF"),
    "web.webp": saved(picture(), "WEBP"),
}


def bomb() -> bytes:
    """A PNG file whose header promises 3.6 gigapixels."""
    png = bytearray(saved(Image.new("L", (1, 1)), "PNG"))
    png[16:24] = struct.pack(">II", 60_000, 60_000)
    png[29:33] = struct.pack(">I", zlib.crc32(png[12:29]))
    return bytes(png)


def with_marker(jpeg: bytes) -> bytes:
    """A start-of-frame marker in the middle of the scan."""
    middle = (jpeg.index(b"\xff\xda") + len(jpeg)) // 2
    return jpeg[:middle] + b"\xff\xc0" + jpeg[middle + 2 :]


def flipped(content: bytes, place: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 0x10]) + content[place + 1 :]


UNTAKEN = "whole, but of a kind that training's decoder does not read: "
GRAY = picture().convert("L")
JPEG, PNG = saved(picture(), "JPEG"), saved(picture(), "PNG")
BAD = {
    "half.jpg": (JPEG[: len(JPEG) // 2], "cannot be decoded: image file is truncated"),
    "tail.jpg": (JPEG[:-2], "cannot be decoded: image file is truncated"),
    "tail-progressive.jpg": (GOOD["progressive.jpg"][:-2], "cannot be decoded: image file is truncated"),
    "half.png": (PNG[: len(PNG) // 2], "cannot be decoded: image file is truncated"),
    "header.jpg": (JPEG[: JPEG.index(b"\xff\xda")], "cannot be decoded: "),
    "header.png": (PNG[:33], "not an image"),
    "empty.jpg": (b"", "the file is empty"),
    "text.jpg": (b"hello", "not an image"),
    "page.jpg": (b"<html><body>404: not found</body></html>", "not an image"),
    "gif.jpg": (saved(picture(), "GIF"), "GIF is not among the formats JPEG, PNG"),
    "flipped.png": (flipped(PNG, PNG.index(b"IDAT") + 40), "cannot be decoded: broken"),
    "marker.jpg": (with_marker(JPEG), "cannot be decoded: broken data stream"),
    "float.tif": (saved(GRAY.convert("F"), "TIFF"), "TIFF of mode F, which is not decoded as meant: save it as RGB"),
    "lab.tif": (saved(Image.new("LAB", (61, 43), (90, 20, 200)), "TIFF"), "TIFF of mode LAB, which"),
    "palette-alpha.tif": (saved(picture().quantize(16).convert("PA"), "TIFF"), "TIFF of mode PA, which"),
    "gray-alpha.tif": (saved(GRAY.convert("LA"), "TIFF"), "TIFF of mode LA, which"),
    "bits.tif": (saved(GRAY.convert("1"), "TIFF"), f"{UNTAKEN}save it as JPEG or PNG"),
    "32-bit.tif": (saved(GRAY.convert("I"), "TIFF"), f"{UNTAKEN}save it as JPEG or PNG (DALI: Invalid sample_type"),
    "bomb.png": (bomb(), "cannot be decoded: Image size (3600000000 pixels) exceeds limit"),
}


@pipeline_def
def _decode(content: bytes):  # type: ignore[no-untyped-def]
    files = fn.external_source(source=lambda: [np.frombuffer(content, np.uint8)], dtype=types.UINT8)
    return fn.decoders.image(files, output_type=types.RGB, adjust_orientation=False)


def decoded(content: bytes) -> NDArray[np.uint8]:
    """(H, W, 3) by DALI's decoder."""
    pipeline = _decode(content, batch_size=1, num_threads=1, device_id=None)
    pipeline.build()
    return np.array(pipeline.run()[0][0])


@pytest.mark.parametrize("name", GOOD)
def test_odd_but_good_images_are_taken_with_the_size_and_colours_that_dali_decodes(name: str) -> None:
    (image,) = examine([Candidate(GOOD[name], 0, name)], colours=True)
    pixels = decoded(GOOD[name])
    assert image.reason is None
    assert image.encoded == GOOD[name]
    assert pixels.shape == (image.height, image.width, 3)
    assert image.colours is not None
    flat = pixels.reshape(-1, 3).astype(np.int64)
    assert np.array_equal(image.colours.mean, flat.sum(axis=0) / len(flat))
    assert np.array_equal(image.colours.second_moment, flat.T @ flat / len(flat))


@pytest.mark.parametrize("name", [name for name in GOOD if not name.startswith(("16", "web"))])
def test_pixels_of_good_images_are_those_that_pillow_sees(name: str) -> None:
    with Image.open(io.BytesIO(GOOD[name])) as image:
        image.info.pop("transparency", None)
        expected = np.asarray(image.convert("RGB"), np.int64)
    found = decoded(GOOD[name])
    if name == "turned.tif":  # Pillow turns it
        expected = np.rot90(expected)
    assert np.abs(found - expected).max() <= 3


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_refused_with_the_reason(name: str) -> None:
    content, reason = BAD[name]
    before, image, after = examine([Candidate(c, 0, name) for c in (JPEG, content, PNG)], colours=True)
    assert image.reason is not None
    assert image.reason.startswith(reason)
    assert "\n" not in image.reason
    assert before.reason is after.reason is None


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of all of them."""
    root = tmp_path_factory.mktemp("mixed")
    (root / "x").mkdir()
    for name, content in {**GOOD, **{name: content for name, (content, _) in BAD.items()}}.items():
        (root / "x" / name).write_bytes(content)
    return root


def test_a_data_set_of_odd_images_feeds_the_net(mixed: Path, tmp_path: Path) -> None:
    manifest = prepare(sources.folder(mixed), tmp_path / "d", statistics=False)
    data = DataSet.open(str(tmp_path / "d"))
    assert (manifest.rows, manifest.rejected) == (len(GOOD), len(BAD))
    lines = (tmp_path / "d" / REPORT).read_text().splitlines()
    assert sorted(line.split(",")[0] for line in lines[1:]) == sorted(f"x/{name}" for name in BAD)
    assert all(f"{BAD[line.split(',')[0].removeprefix('x/')][1]}" in line.replace('"', "") for line in lines[1:])
    names = [name for g in range(len(manifest.group_rows)) for name in data.read_group(g).names]
    sizes = np.stack(data.read_sizes(0, data.rows), axis=1)
    assert {n: tuple(s) for n, s in zip(names, sizes.tolist(), strict=True)} == {
        f"x/{name}": decoded(content).shape[1::-1] for name, content in GOOD.items()
    }
    assert dict(zip(names, sizes.tolist(), strict=True))["x/turned.jpg"] == [61, 43]
    nothing = Statistics((0.0, 0.0, 0.0), ((0.0,) * 3,) * 3, (0.0, 0.0, 0.0))
    recipe = Recipe((32, 32), 32, False, 0.0, 1.0, nothing)
    (batch,) = kept(ValidationBatches(data, recipe, Seat(0, 1, torch.device("cpu"), 1)))
    assert batch.images.shape == (len(GOOD), 3, 32, 32)
    pixel = batch.images[names.index("x/pixel.png")]
    assert torch.all(pixel == 7)


def test_strict_makes_a_bad_file_an_error(mixed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["prepare", "folder", str(mixed), str(tmp_path / "e"), "--strict"]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("verydeep: ")]
    (name, reason) = re.findall(r"x/(\S+) cannot be trained on: (.*); the same", line)[0]
    assert reason.startswith(BAD[name][1])
    assert not (tmp_path / "e" / "train").exists()


def test_strict_takes_what_is_whole(pictures: Path, tmp_path: Path) -> None:
    assert prepare(sources.folder(pictures), tmp_path / "d", strict=True).rejected == 0
