"""Contact sheets: what is drawn is what the loader delivers, and captions and frames tell the truth about it."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from jobs import cli
from pipelines import augment, reference, sheet, show, sources
from pipelines.augment import Recipe
from pipelines.loader import TrainingBatches
from pipelines.order import Order
from pipelines.prepare import prepare
from pipelines.schema import checksum
from pipelines.seat import Seat
from pipelines.shards import DataSet
from pipelines.show import View
from tests.conftest import kept

VIEW = View(scale=(36, 60), crop=32, flip=True, colour_shift=0.5, seed=7, epoch=2, rows=3, columns=4, origins=False)
HEADER = ["a set", "some images"]
BROKEN = b"\xff\xd8 not a picture"


def drawn_crops(cells: list[show.Cell], columns: int) -> list[NDArray[np.uint8]]:
    """Cut out of the sheet, each block of magnified pixels made one again; what is beside them is looked at too."""
    pixels = np.asarray(sheet.draw(cells, columns, HEADER))
    plan = sheet.layout(cells, columns, HEADER, len)
    found = []
    for i, cell in enumerate(cells):
        x, y = plan.crop_place(i, cell.origin is not None)
        crop = pixels[y : y + plan.side, x : x + plan.side]
        small = crop[:: plan.zoom, :: plan.zoom]
        assert np.array_equal(np.kron(small, np.ones((plan.zoom, plan.zoom, 1), np.uint8)), crop)
        found.append(small)
        if cell.origin is not None:
            left, top = plan.place(i)
            beside = pixels[top : top + plan.side, left : left + plan.side]
            assert np.array_equal(beside, np.asarray(sheet.framed(cell.origin, plan.side)))
    return found


def captions(cells: list[show.Cell]) -> list[tuple[str, ...]]:
    return list(sheet.layout(cells, 4, HEADER, lambda text: 0.0).captions)


@pytest.mark.parametrize("origins", [False, True])
def test_drawn_are_the_crops_of_the_first_steps_of_the_epoch_plus_the_mean(picture_set: DataSet, origins: bool) -> None:
    statistics = picture_set.manifest.statistics
    assert statistics is not None
    recipe = Recipe(VIEW.scale, VIEW.crop, True, 0.5, 1.0, statistics)
    order = Order.of(picture_set.manifest, 4, VIEW.seed)  # three steps are the twelve images
    first = order.steps_per_epoch
    batches = TrainingBatches(picture_set, order, recipe, Seat(0, 1, torch.device("cpu"), 1), first, first + 3)
    fed = np.concatenate([batch.images.numpy() for batch in kept(batches)]).transpose(0, 2, 3, 1)
    expected = np.clip(fed + np.array(statistics.mean_rgb), 0, 255)
    drawn = np.array(drawn_crops(show.cells(picture_set, replace(VIEW, origins=origins)), VIEW.columns), np.float64)
    assert len(drawn) == len(expected) == 12
    nearest = np.abs(drawn[:, None] - expected[None]).max(axis=(2, 3, 4)).argmin(axis=1)
    assert sorted(nearest) == list(range(12))
    assert np.abs(drawn - expected[nearest]).max() <= 0.5001


def test_captions_name_class_label_scale_corner_and_flip_as_they_are_drawn(
    picture_set: DataSet, pictures: Path
) -> None:
    assert picture_set.manifest.statistics is not None
    recipe = Recipe(VIEW.scale, VIEW.crop, True, 0.5, 1.0, picture_set.manifest.statistics)
    order = Order.of(picture_set.manifest, VIEW.images, VIEW.seed)
    rows = order.share(order.steps_per_epoch, 0, 1)
    names = [name for g in range(len(picture_set.manifest.group_rows)) for name in picture_set.read_group(g).names]
    sizes = np.array([Image.open(pictures / names[row]).size for row in rows])
    draws = augment.training_draws(recipe, VIEW.seed, 1, rows, sizes[:, 0], sizes[:, 1])
    assert 0 < draws.flips.sum() < 12
    expected = []
    for i, row in enumerate(rows):
        name = Path(names[row]).parent.name
        place = f"S {min(draws.sizes[i])}, x {draws.corners[i, 1]}, y {draws.corners[i, 0]}"
        expected.append((f"{name} ({['ant', 'bee', 'cat'].index(name)})", place + ", flipped" * int(draws.flips[i])))
    assert captions(show.cells(picture_set, VIEW)) == expected
    with_origins = captions(show.cells(picture_set, replace(VIEW, origins=True)))
    assert [lines[1].partition(", ")[0] for lines in with_origins] == [f"{w} x {h}" for w, h in sizes]


def bounds(pixels: NDArray[np.uint8], colour: tuple[int, int, int]) -> tuple[int, int, int, int]:
    """left, top, right, bottom (excluded) of all pixels of a colour."""
    y, x = np.nonzero((pixels == colour).all(axis=2))
    return int(x.min()), int(y.min()), int(x.max()) + 1, int(y.max()) + 1


def test_the_frame_of_what_is_decoded_lies_around_the_crops_and_both_where_they_belong(picture_set: DataSet) -> None:
    for cell in show.cells(picture_set, replace(VIEW, rows=15, origins=True)):
        assert cell.origin is not None
        framed = np.asarray(sheet.framed(cell.origin, 224))
        outer, inner = bounds(framed, sheet.DECODED), bounds(framed, sheet.CROP)
        assert outer[0] < inner[0]
        assert outer[1] < inner[1]
        assert outer[2] > inner[2]
        assert outer[3] > inner[3]
        pixels_per_pixel = 220 * min(cell.origin.width, cell.origin.height)
        pixels_per_pixel /= max(cell.origin.width, cell.origin.height) * cell.shorter
        y, x = cell.corner
        expected = 2 + pixels_per_pixel * np.array([x, y, x + 32, y + 32])
        assert np.abs(np.array(inner) - expected).max() <= 2.0, (inner, expected)
        whole = reference.rescale(cell.origin.encoded, round(220 * min(1.0, pixels_per_pixel * cell.shorter / 220)))
        inside = np.asarray(whole)[inner[1] + 4 : inner[3] - 8, inner[0] + 4 : inner[2] - 8].astype(int)
        seen = framed[inner[1] + 6 : inner[3] - 6, inner[0] + 6 : inner[2] - 6]
        assert np.abs(inside - seen[: len(inside), : inside.shape[1]]).mean() < 8.0


def broken_set(good: DataSet, dest: Path, row: int) -> DataSet:
    """A copy with one image that is none, checksums and all."""
    shutil.copytree(str(good.location), dest)
    manifest = json.loads((dest / "manifest.json").read_text())
    for shard in manifest["shards"]:
        file = pq.ParquetFile(dest / shard["file"])
        groups = [file.read_row_group(g) for g in range(file.num_row_groups)]
        with pq.ParquetWriter(dest / shard["file"], file.schema_arrow) as writer:
            for g, group in enumerate(groups):
                columns = group.to_pydict()
                if 0 <= row < len(group):
                    columns["image"][row] = BROKEN
                row -= len(group)
                writer.write_table(type(group).from_pydict(columns, group.schema), len(group))
                shard["group_xxh3"][g] = checksum(*columns.values())
        shard["bytes"] = (dest / shard["file"]).stat().st_size
    (dest / "manifest.json").write_text(json.dumps(manifest))
    return DataSet.open(str(dest))


def test_an_image_that_cannot_be_decoded_is_shown_as_its_stand_in_with_the_reason(
    picture_set: DataSet, tmp_path: Path
) -> None:
    order = Order.of(picture_set.manifest, VIEW.images, VIEW.seed)
    row = int(order.share(order.steps_per_epoch, 0, 1)[5])
    plain = replace(VIEW, colour_shift=0.0, origins=True)
    good = show.cells(picture_set, plain)
    cells = show.cells(broken_set(picture_set, tmp_path / "broken", row), plain)
    before, after = drawn_crops(good, 4), drawn_crops(cells, 4)
    assert [i for i in range(12) if not np.array_equal(before[i], after[i])] == [5]
    assert picture_set.manifest.statistics is not None
    assert np.abs(after[5] - np.array(picture_set.manifest.statistics.mean_rgb)).max() <= 1.0
    assert cells[5].reason
    told = " ".join(captions(cells)[5][1:])
    assert told == f"cannot be decoded: {' '.join(cells[5].reason.split())}"
    assert [i for i in range(12) if captions(cells)[i] != captions(good)[i]] == [5]


def test_a_set_without_a_mean_colour_is_shown_as_validation_sees_it(pictures: Path, tmp_path: Path) -> None:
    prepare(sources.folder(pictures), tmp_path / "val", statistics=False)
    data = DataSet.open(str(tmp_path / "val"))
    cells = show.cells(data, replace(VIEW, rows=20, origins=True))
    assert len(cells) == 60
    for cell, drawn in zip(cells, drawn_crops(cells, 4), strict=True):
        assert cell.origin is not None
        whole = reference.rescale(cell.origin.encoded, 48)
        y, x = (whole.height - 32) // 2, (whole.width - 32) // 2
        assert (cell.shorter, cell.corner, cell.flipped) == (48, (y, x), False)
        expected = np.asarray(whole)[y : y + 32, x : x + 32].astype(int)
        assert np.quantile(np.abs(drawn - expected), 0.99) <= 2.0
    assert "middle crops" in " ".join(show.header(data, VIEW, 60))


@pytest.mark.parametrize("columns", [1, 5])
@pytest.mark.parametrize("origins", [False, True])
def test_nothing_is_cut_and_nothing_reaches_from_one_cell_into_another(
    picture_set: DataSet, columns: int, origins: bool
) -> None:
    names = ("ß", "a long class name " * 9, "W" * 90, "of\ntwo lines")
    cells = [
        replace(cell, class_name=names[i % 4], reason="no reason at all, " * 6 if i == 3 else None)
        for i, cell in enumerate(show.cells(picture_set, replace(VIEW, origins=origins)))
    ]
    header = ["/a/long/path" * 30, *[f"part {i}" for i in range(9)]]
    pixels = np.asarray(sheet.draw(cells, columns, header))
    measure = sheet.font().getlength
    plan = sheet.layout(cells, columns, header, measure)
    assert pixels.shape[:2] == plan.size[::-1]
    assert all(measure(line) <= plan.cell[0] for lines in plan.captions for line in lines)
    assert any("…" in lines[0] for lines in plan.captions)
    assert all(lines[0].endswith(f" ({cell.label})") for lines, cell in zip(plan.captions, cells, strict=True))
    assert "".join(plan.header).count("part") == 9
    paper = (pixels == 255).all(axis=2)
    width, height = pixels.shape[1], pixels.shape[0]
    assert paper[:, :10].all()
    assert paper[:, width - 10 :].all()
    assert paper[:8].all()
    assert paper[height - 10 :].all()
    for i in range(1, columns):
        left = plan.place(i)[0]
        assert paper[plan.top - 8 :, left - 12 : left - 8].all()
    for i in range(columns, 12, columns):
        top = plan.place(i)[1]
        assert paper[top - 12 : top - 8].all()


def test_fewer_images_than_places_make_a_smaller_sheet(picture_set: DataSet) -> None:
    cells = show.cells(picture_set, replace(VIEW, rows=8, columns=9))
    assert len(cells) == picture_set.rows
    assert sheet.layout(cells, 9, HEADER, len).rows == 7
    assert sheet.layout(cells[:3], 9, HEADER, len).columns == 3


def test_a_place_is_shown_without_the_key_in_it(picture_set: DataSet) -> None:
    secret = replace(picture_set.location, text="s3://me:secret@bucket/sets/train?endpoint_override=host")
    assert show.header(replace(picture_set, location=secret), VIEW, 12)[0] == "s3://bucket/sets/train"


def test_a_jobs_stage_is_shown_with_its_settings_and_flags_come_before_them(
    digits: tuple[str, str], tmp_path: Path
) -> None:
    job = tmp_path / "job.yaml"
    job.write_text(
        f"name: j\ndata: {{train: {digits[0]}, val: {digits[1]}}}\nstorage: {tmp_path}\n"
        "train: {input_size: 32, flip: false}\n"
        "stages: {a: {net: A, scale: 34}, b: {net: A, scale: [36, 44], seed: 3, colour_shift: 0.4}}\n"
    )

    def sheet_of(*arguments: str) -> NDArray[np.uint8]:
        output = tmp_path / "sheet.PNG"
        assert cli.main(["show", *arguments, "--rows", "1", "--columns", "6", "--output", str(output)]) == 0
        pixels = np.asarray(Image.open(output))
        return pixels[-290:]  # the cells, without the header

    given = ["--crop", "32", "--no-flip", "--scale"]
    first, b = sheet_of(str(job)), sheet_of(str(job), "--stage", "b")
    assert np.array_equal(first, sheet_of(digits[0], *given, "34"))
    assert np.array_equal(b, sheet_of(digits[0], *given, "36", "44", "--seed", "3", "--colour-shift", "0.4"))
    assert not np.array_equal(first, b)
    other = sheet_of(str(job), "--stage", "b", "--scale", "40", "--flip", "--seed", "0", "--colour-shift", "0.1")
    assert np.array_equal(other, sheet_of(digits[0], "--crop", "32", "--scale", "40"))


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("nowhere --scale 40", "nowhere: no such data set"),
        ("SET --scale 40", "--crop 224: is larger than the smallest S, 40"),
        ("SET --scale 50 40 --crop 32", "--scale 50 40: the smallest S is above the largest"),
        ("SET --scale 40 50 60 --crop 32", "--scale 40 50 60: "),
        ("SET --crop 32", "give --scale"),
        ("SET --scale 40 --crop 0", "--crop 0: has to be 1 or more"),
        ("SET --scale 0 --crop 1", "--scale 0: has to be 1 or more"),
        ("SET --scale 40 --crop 32 --rows 0", "--rows 0: has to be 1 or more"),
        ("SET --scale 40 --crop 32 --columns -1", "--columns -1: has to be 1 or more"),
        ("SET --scale 40 --crop 32 --rows 5000", "are more than 1000 images"),
        ("SET --scale 40 --crop 32 --epoch 0", "--epoch 0: has to be 1 or more"),
        ("SET --scale 40 --crop 32 --seed -1", "--seed -1: has to be 0 or more"),
        ("SET --scale 40 --crop 32 --colour-shift nan", "--colour-shift nan: has to be 0 or more"),
        ("SET --scale 40 --crop 32 --output no/such/x.png", "no/such/x.png: there is no folder no/such"),
        ("SET --scale 40 --crop 32 --output x.jpg", "x.jpg: the name has to end in .png"),
        ("SET --scale 40 --crop 32 --stage a", "is not a job file"),
        ("nowhere.yaml", "nowhere.yaml: cannot be read"),
        ("jobs/demo.yaml --stage f", "--stage f: there is no such stage; there are a, e, "),
    ],
)
def test_a_wrong_call_gives_one_line(
    digits: tuple[str, str], capsys: pytest.CaptureFixture[str], arguments: str, told: str
) -> None:
    assert cli.main(["show", *arguments.replace("SET", digits[0]).split()]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line
