"""The input side over many epochs: `make soak`, on generated pictures, or `make soak PHOTOS=FOLDER` on one's own.

PHOTOS is a folder of folders of images, as for `verydeep prepare folder`.
"""

import io
import os
import statistics
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from pipelines import sources
from pipelines.augment import Recipe
from pipelines.loader import TrainingBatches
from pipelines.order import Order
from pipelines.prepare import prepare
from pipelines.seat import Seat
from pipelines.shards import DataSet
from pipelines.sources import Source
from tests.conftest import encoded

_EPOCHS = 20
_WARM_EPOCHS = 2  # buffers grow to the size of the largest batch that has come
_BATCH = 128


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    root = tmp_path_factory.mktemp("soak")
    photos = os.environ.get("PHOTOS")
    if not photos:
        photos = str(root / "source")
        rng = np.random.default_rng(0)
        for i in range(1500):
            folder = Path(photos) / f"class-{i % 10}"
            folder.mkdir(parents=True, exist_ok=True)
            width, height = (int(side) for side in rng.integers(200, 900, 2))
            (folder / f"{i}.jpg").write_bytes(encoded(width, height, i, "JPEG"))
    prepare(sources.folder(photos), root / "train")
    return DataSet.open(str(root / "train"))


def batches(data: DataSet, first: int, last: int) -> TrainingBatches:
    assert data.manifest.statistics is not None
    recipe = Recipe((256, 512), 224, True, 0.1, 1.0, data.manifest.statistics)
    seat = Seat(0, 1, torch.device("cpu"), os.cpu_count() or 1)
    return TrainingBatches(data, Order.of(data.manifest, _BATCH, 1), recipe, seat, first, last)


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_memory_stays_flat(data: DataSet) -> None:
    steps = Order.of(data.manifest, _BATCH, 1).steps_per_epoch
    loader = batches(data, 0, _EPOCHS * steps)
    most, seen = [], 0
    for step, batch in enumerate(loader):
        if step % steps == 0:
            most.append(0)
        seen += len(batch.rows)
        most[-1] = max(most[-1], resident_bytes())
    loader.close()
    assert seen == _EPOCHS * data.rows
    print(
        "peak MiB by epoch:", " ".join(f"{m >> 20}" for m in most), f"; rows read per row used {loader.read_per_used}"
    )
    usual = statistics.median(most)
    assert all(0.95 * usual <= peak <= 1.05 * usual for peak in most[_WARM_EPOCHS:])
    assert max(most[_EPOCHS // 2 :]) <= 1.02 * max(most[: _EPOCHS // 2]), "no trend"


def test_arrow_holds_no_more_than_the_bound(tmp_path: Path) -> None:
    """On a set of 1.5 GB: windows, what is read ahead, and what the batches inside DALI refer to."""
    pictures = [encoded_of(100_000, seed) for seed in range(50)]
    names = tuple(f"{i}.jpg" for i in range(20_000))
    sizes = np.array([len(pictures[i % 50]) for i in range(len(names))])
    source = Source("generated", ("a",), names, np.zeros(len(names), np.int64), sizes, lambda i: pictures[i % 50])
    prepare(source, tmp_path / "train")
    data = DataSet.open(str(tmp_path / "train"))
    order = Order.of(data.manifest, _BATCH, 1)
    assert len(data.manifest.group_rows) > 2 * order.held
    group = max(data.manifest.group_rows) * float(sizes.max())
    before, most = pa.total_allocated_bytes(), 0
    loader = batches(data, 0, order.steps_per_epoch)
    for _ in loader:
        most = max(most, pa.total_allocated_bytes() - before)
    loader.close()
    in_dali = 3 * order.held / order.streams * group  # of windows that ended in the last three batches
    being_read = 4 * group  # in the file's pages, beside what becomes of them
    bound = order.held * group + (128 << 20) + in_dali + being_read
    print(f"Arrow held {most >> 20} MiB at most, bound {int(bound) >> 20} MiB, set {int(sizes.sum()) >> 20} MiB")
    assert most <= bound


def encoded_of(size: int, seed: int) -> bytes:
    """A JPEG of about so many bytes."""
    picture = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (260, 320, 3), dtype=np.uint8))
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=90)
    assert 0.5 * size < out.tell() < 2 * size
    return out.getvalue()


def test_starting_at_any_step_costs_what_starting_at_the_first_does(data: DataSet) -> None:
    steps = Order.of(data.manifest, _BATCH, 1).steps_per_epoch
    places = {"first": 0, "middle": steps // 2, "far": 1000 * steps + steps // 2}
    seconds: dict[str, list[float]] = {name: [] for name in places}
    for turn in range(8):
        for name, step in places.items():
            began = time.process_time()
            loader = batches(data, step, step + 4)
            assert sum(len(batch.rows) for batch in loader) > 0
            loader.close()
            if turn:
                seconds[name].append(time.process_time() - began)
    medians = {name: statistics.median(each) for name, each in seconds.items()}
    print("CPU seconds for four batches:", medians)
    assert medians["middle"] <= 1.2 * medians["first"]
    assert medians["far"] <= 1.2 * medians["first"]
