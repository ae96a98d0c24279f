"""The pictures that are measured with."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import pictures
from benchmarks.setting import Setting
from pipelines.shards import DataSet


def test_a_set_is_made_once_and_the_same_in_each_run(setting: Setting, tmp_path: Path) -> None:
    training, again = (pictures.training_set(replace(setting, folder=tmp_path / run), 40) for run in ("a", "b"))
    written = (training / "manifest.json").stat().st_mtime_ns
    assert pictures.training_set(replace(setting, folder=tmp_path / "a"), 40) == training
    assert (training / "manifest.json").stat().st_mtime_ns == written
    a, b = (DataSet.open(str(folder)).manifest for folder in (training, again))
    assert a == b
    assert (a.rows, sum(a.class_rows), len(a.classes)) == (40, 40, 10)
    assert len(a.group_rows) == len(set(a.group_xxh3)) > 1
    assert a.statistics is not None


@pytest.mark.parametrize("photographs", [False, True])
def test_pictures_have_the_size_and_weight_of_imagenets(
    setting: Setting, pictures_of_noise: Path, photographs: bool
) -> None:
    chosen = replace(setting, small=False, photos=pictures_of_noise if photographs else None)
    folder = pictures.training_set(chosen, 24)
    data = DataSet.open(str(folder))
    widths, heights = data.read_sizes(0, data.rows)
    groups = [data.read_group(g) for g in range(len(data.manifest.group_rows))]
    sizes = [len(image) for group in groups for image in group.encoded]
    assert 170_000 < np.mean(widths * heights) < 230_000
    assert 80_000 < np.mean(sizes) < 140_000
    assert len(data.manifest.classes) == 1000


@pytest.fixture
def pictures_of_noise(tmp_path: Path) -> Path:
    """Smooth ones, as photographs."""
    for i in range(3):
        file = tmp_path / "photographs" / "ant" / f"{i}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(i).integers(0, 256, (6, 8, 3), dtype=np.uint8)
        Image.open(io.BytesIO(pictures.encoded(pixels.astype(np.float32)))).resize((600, 450)).save(file)
    return tmp_path / "photographs"
