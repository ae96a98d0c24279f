"""One image prepared by NumPy and Pillow alone is what the DALI graphs make of it in a dense test."""

import ast
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipelines import graphs, sources, still
from pipelines.loader import WholeBatches
from pipelines.prepare import prepare
from pipelines.seat import Seat
from pipelines.shards import DataSet
from tests.conftest import encoded
from tests.pipelines.test_graphs import source_bytes
from tests.pipelines.test_windows import SHAPES, in_format, weights

MEAN = (100.0, 110.0, 120.0)
KINDS = ("4:2:0", "gray", "PNG")
SEAT = Seat(0, 1, torch.device("cpu"), 1)


@pytest.fixture(scope="module")
def formats(tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    """Images of many shapes and formats."""
    root = tmp_path_factory.mktemp("formats")
    (root / "all" / "one").mkdir(parents=True)
    for width, height in SHAPES:
        for kind in KINDS:
            picture = Image.open(io.BytesIO(encoded(width, height, width + height)))
            (root / "all" / "one" / f"{width}-{height}-{kind}").write_bytes(in_format(picture, kind))
    prepare(sources.folder(root / "all"), root / "set", statistics=False)
    return DataSet.open(str(root / "set"))


@pytest.mark.parametrize(("shorter", "stride"), [(75, 32), (40, 1)])
def test_it_is_what_a_dense_test_sees(formats: DataSet, shorter: int, stride: int) -> None:
    """To a hundredth of a grey level: the graphs take an image's borders as float32."""
    images, seen = source_bytes(formats), 0
    for batch in WholeBatches(formats, shorter, MEAN, 50.0, stride, SEAT):
        for row, image in zip(batch.rows.tolist(), batch.images.numpy(), strict=True):
            own = still.prepare(images[row], shorter, MEAN, 50.0, stride)
            assert own.shape == image.shape
            assert own.dtype == np.float32
            assert own.flags.c_contiguous
            assert np.abs(own - image).max() * 50.0 < 0.01, row
            seen += 1
    assert seen == formats.rows == len(KINDS) * len(SHAPES)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(4, 30), st.integers(1, 4))
def test_it_is_the_filter_as_a_matrix(width: int, height: int, shorter: int, stride: int) -> None:
    pixels = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    rows, columns = (int(side * shorter / min(width, height) + 0.5) for side in (height, width))
    expected = np.einsum("yi,ijc,xj->cyx", weights(rows, height), pixels, weights(columns, width), optimize=True)
    (y, x), (h, w) = (
        (side % stride // 2 for side in (rows, columns)),
        (rows - rows % stride, columns - columns % stride),
    )
    expected = (expected[:, y : y + h, x : x + w] - np.array(MEAN)[:, None, None]) / 58.0
    assert np.abs(still.prepare(out.getvalue(), shorter, MEAN, 58.0, stride) - expected).max() < 1e-4


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16", "P with transparency"])
@pytest.mark.filterwarnings("error")
def test_a_png_of_any_mode_is_decoded_as_training_does(mode: str) -> None:
    picture = Image.open(io.BytesIO(encoded(40, 30, 3)))
    if mode == "I;16":
        picture = Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 251 + 77)
    out = io.BytesIO()
    see_through = {"transparency": bytes(range(256))} if "with" in mode else {}
    picture.convert(mode.partition(" ")[0]).save(out, "PNG", **see_through)
    (expected,) = graphs.pixels([np.frombuffer(out.getvalue(), np.uint8)])
    assert len(np.unique(expected)) > 1
    assert np.array_equal(still.decode(out.getvalue()), expected)


def test_exif_does_not_turn_an_image() -> None:
    picture, exif, out = Image.open(io.BytesIO(encoded(64, 48, 1))), Image.Exif(), io.BytesIO()
    exif[0x0112] = 6
    picture.save(out, "JPEG", exif=exif)
    assert still.decode(out.getvalue()).shape == (48, 64, 3)


WHOLE = encoded(60, 60, 1, "JPEG")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"no picture", "not an image"),
        (WHOLE[: len(WHOLE) // 2], "cannot be decoded: image file is truncated"),
        (encoded(60, 60, 1)[:100], "cannot be decoded"),
    ],
)
def test_what_is_no_image_for_a_net_is_told_in_a_line(content: bytes, reason: str) -> None:
    with pytest.raises(still.Unreadable) as raised:
        still.prepare(content, 200, MEAN, 1.0, 32)
    assert reason in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_scale_beyond_any_memory_is_refused() -> None:
    with pytest.raises(still.Unreadable, match="an image of 60 x 30 pixels would become one of 20000 x 10000"):
        still.prepare(encoded(60, 30, 1), 10_000, MEAN, 1.0, 32)


@pytest.mark.parametrize(("width", "height"), [(900, 1), (1, 900), (400, 3)])
def test_of_an_elongated_image_a_dense_test_and_a_prediction_see_the_same_bounded_middle(
    width: int, height: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "all" / "one").mkdir(parents=True)
    content = encoded(width, height, 5)
    (tmp_path / "all" / "one" / "long").write_bytes(content)
    prepare(sources.folder(tmp_path / "all"), tmp_path / "set", statistics=False)
    whole = still.prepare(content, 64, MEAN, 50.0, 32)
    monkeypatch.setattr(still, "MOST_PIXELS", 64 * 1000)
    short = still.prepare(content, 64, MEAN, 50.0, 32)
    assert sorted(short.shape[1:]) == [64, 992]
    axis = 1 if height > width else 2
    start = (whole.shape[axis] - 992) / 2  # the whole has a middle of its own, as does the image
    assert np.abs(short - whole.take(range(int(start), int(start) + 992), axis)).max() < 1e-4
    (batch,) = WholeBatches(DataSet.open(str(tmp_path / "set")), 64, MEAN, 50.0, 32, SEAT)
    assert batch.images[0].shape == short.shape
    assert np.abs(batch.images[0].numpy() - short).max() < 0.01 / 50.0


def test_it_can_be_shipped_alone() -> None:
    found = set()
    for node in ast.walk(ast.parse(Path(still.__file__).read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").split(".")[0])
    assert found == {"io", "math", "collections", "numpy", "PIL"}
