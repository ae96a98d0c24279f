"""Large originals made smaller: against Pillow's whole decode, and still with every damaged file found."""

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from jobs import cli
from pipelines import sources
from pipelines.audit import Refusal
from pipelines.prepare import prepare
from pipelines.shards import DataSet
from pipelines.shrink import Shrink, shrunk
from tests.conftest import encoded
from tests.pipelines.test_audit import BAD, GOOD, UNTAKEN, saved, turned


def opened(content: bytes) -> Image.Image:
    return Image.open(io.BytesIO(content))


def photograph(width: int, height: int, kind: str, **options: object) -> bytes:
    """As large originals are: blobs of some 30 pixels, and noise."""
    blobs = opened(encoded(width // 4, height // 4, 5)).convert("RGB")
    smooth = np.asarray(blobs.resize((width, height), Image.Resampling.BICUBIC), np.int16)
    noise = np.random.default_rng(3).integers(-12, 13, (height, width, 1))
    return saved(Image.fromarray((smooth + noise).clip(0, 255).astype(np.uint8)), kind, **options)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 120), st.sampled_from(["JPEG", "PNG"]))
def test_the_shorter_side_is_what_was_asked_for_and_the_other_rounds_half_up(
    width: int, height: int, side: int, kind: str
) -> None:
    original = saved(Image.new("RGB", (width, height), (90, 160, 30)), kind)
    small = shrunk(original, Shrink(side))
    if min(width, height) <= side:
        assert small == original
        return
    expected = [int(np.floor(x * side / min(width, height) + 0.5)) for x in (width, height)]
    assert list(opened(small).size) == expected
    assert opened(small).format == "JPEG"
    assert np.abs(np.asarray(opened(small)).astype(int) - (90, 160, 30)).max() <= 3


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("JPEG", {"quality": 95, "subsampling": "4:2:0"}),
        ("JPEG", {"quality": 95, "progressive": True}),
        ("PNG", {}),
    ],
)
@pytest.mark.parametrize("side", [64, 100, 255])
def test_pixels_are_those_of_the_whole_image_rescaled(kind: str, options: dict[str, object], side: int) -> None:
    original = photograph(1037, 811, kind, **options)
    small = opened(shrunk(original, Shrink(side, quality=100)))
    expected = opened(original).convert("RGB").resize(small.size, Image.Resampling.LANCZOS)
    # Colours are kept at half resolution, so that a shift of one pixel would show in brightness.
    brightness = np.abs(np.asarray(small.convert("L")).astype(int) - np.asarray(expected.convert("L")).astype(int))
    assert np.quantile(brightness, 0.99) <= 4
    assert brightness.mean() < 1.0
    eighth = (small.width // 8, small.height // 8)
    colours = [np.asarray(image.resize(eighth, Image.Resampling.BOX)).astype(int) for image in (small, expected)]
    assert np.abs(colours[0] - colours[1]).mean() < 2.0


@pytest.mark.parametrize("kind", ["CMYK", "L", "LA", "P", "RGBA", "1"])
def test_what_becomes_smaller_is_rgb(kind: str) -> None:
    image = opened(photograph(200, 160, "PNG")).convert(kind)
    small = opened(shrunk(saved(image, "JPEG" if kind == "CMYK" else "PNG"), Shrink(80)))
    assert (small.mode, small.size) == ("RGB", (100, 80))
    expected = np.asarray(image.convert("RGB").resize((100, 80), Image.Resampling.LANCZOS)).astype(int)
    assert np.abs(np.asarray(small).astype(int) - expected).mean() < (12 if kind == "1" else 4)


def test_sixteen_bits_keep_their_range() -> None:
    ramp = np.tile(np.linspace(0, 65535, 200).astype(np.uint16), (160, 1))
    small = np.asarray(opened(shrunk(saved(Image.fromarray(ramp), "PNG"), Shrink(80)))).astype(int)
    assert np.abs(small[40, :, 0] - np.linspace(0, 255, 100)).max() < 4


@pytest.mark.parametrize("name", ["turned.jpg", "turned.png", "turned.tif"])
def test_orientation_tags_are_dropped_and_pixels_stay_as_they_are_stored(name: str, tmp_path: Path) -> None:
    (tmp_path / "src" / "x").mkdir(parents=True)
    (tmp_path / "src" / "x" / name).write_bytes(GOOD[name])
    prepare(sources.folder(tmp_path / "src"), tmp_path / "d", shrink=Shrink(40))
    group = DataSet.open(str(tmp_path / "d")).read_group(0)
    small = opened(bytes(group.encoded[0]))
    assert group.widths[0] > group.heights[0]
    if name == "turned.tif":  # Pillow cannot leave these as they are stored
        assert bytes(group.encoded[0]) == GOOD[name]
    else:
        assert len(small.getexif()) == 0
        assert (group.widths[0], group.heights[0]) == small.size == (57, 40)


def test_nothing_else_is_carried_over() -> None:
    original = photograph(200, 160, "JPEG", exif=turned(), comment=b"by somebody", icc_profile=b"x" * 300, dpi=(72, 72))
    small = shrunk(original, Shrink(80))
    assert set(opened(small).info) <= {"jfif", "jfif_version", "jfif_unit", "jfif_density"}


@pytest.mark.parametrize("name", [name for name in BAD if not BAD[name][1].startswith(UNTAKEN) and name != "bomb.png"])
def test_damaged_files_are_found_though_less_of_them_is_decoded(name: str, tmp_path: Path) -> None:
    with pytest.raises(Refusal, match=BAD[name][1]):
        shrunk(BAD[name][0], Shrink(8))


@pytest.mark.parametrize("progressive", [False, True])
def test_a_large_file_cut_short_anywhere_is_refused(progressive: bool) -> None:
    whole = photograph(1037, 811, "JPEG", progressive=progressive)
    for left in (len(whole) - 2, len(whole) - 300, len(whole) * 2 // 3, len(whole) // 9):
        with pytest.raises(Refusal, match="cannot be decoded: "):
            shrunk(whole[:left], Shrink(64))


def test_the_data_set_has_sizes_and_statistics_of_the_smaller_images(pictures: Path, tmp_path: Path) -> None:
    assert cli.main(["prepare", "folder", str(pictures), str(tmp_path), "--shorter-side", "50", "--quality", "80"]) == 0
    data = DataSet.open(str(tmp_path / "train"))
    means = []
    for g in range(len(data.manifest.group_rows)):
        group = data.read_group(g)
        for i, name in enumerate(group.names):
            before, now = opened((pictures / name).read_bytes()), opened(bytes(group.encoded[i]))
            assert min(now.size) == min(50, *before.size)
            assert now.size == (group.widths[i], group.heights[i])
            assert (bytes(group.encoded[i]) == (pictures / name).read_bytes()) == (min(before.size) <= 50)
            means.append(np.asarray(now.convert("RGB"), np.float64).mean(axis=(0, 1)))
    assert len(means) == 60
    assert data.manifest.statistics is not None
    np.testing.assert_allclose(data.manifest.statistics.mean_rgb, np.mean(means, axis=0), rtol=1e-9)


def test_another_size_or_quality_is_another_data_set(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["prepare", "folder", str(pictures), str(tmp_path / "d"), "--shorter-side", "50"]
    assert cli.main(command) == 0
    assert cli.main([*command, "--quality", "90"]) == 0
    assert "prepared already, 60 images" in capsys.readouterr().out
    assert cli.main([*command, "--quality", "95"]) == 2
    assert cli.main([*command[:-1], "51"]) == 2
    assert cli.main(command[:-2]) == 2
    assert capsys.readouterr().err.count("is there already; choose another place") == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--quality", "90"], "verydeep: --quality 90: is of what --shorter-side makes smaller; give that too\n"),
        (["--shorter-side", "0"], "verydeep: --shorter-side 0: has to be 1 or more\n"),
        (["--shorter-side", "9", "--quality", "101"], "verydeep: --quality 101: has to be 1 to 100\n"),
    ],
)
def test_options_that_cannot_be_are_told_of(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert cli.main(["prepare", "folder", str(pictures), str(tmp_path / "d"), *options]) == 2
    assert capsys.readouterr().err == message
