"""Data sets and images that the tests make themselves."""

import io
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import hypothesis
import numpy as np
import pytest
from PIL import Image

from pipelines import sources
from pipelines.prepare import Layout, prepare
from pipelines.shards import DataSet
from pipelines.stream import Batch
from tests.forks import forking

hypothesis.settings.register_profile("patient", deadline=None)  # a busy machine is no fault of what is tested
hypothesis.settings.load_profile("patient")


def encoded(width: int, height: int, seed: int, kind: str = "PNG") -> bytes:
    """A smooth random picture."""
    coarse = np.random.default_rng(seed).integers(0, 256, (height // 8 + 2, width // 8 + 2, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(out, kind)
    return out.getvalue()


def kept(batches: Iterable[Batch]) -> list[Batch]:
    """Batches with memory of their own: a loader's are to be used one after the other."""
    return [replace(batch, images=batch.images.clone()) for batch in batches]


@pytest.fixture(scope="session")
def cluster() -> Iterator[None]:
    """A Ray with 3 CPUs on this machine, one for all tests that ask for it; verbs that disconnect leave it alone."""
    from cluster import launch  # slow import; before Ray's own, for which it sets the environment

    quick = {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1", "RAY_TRAIN_METRICS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**quick, "PYTHONPATH": str(Path(__file__).parent.parent)}.items():
            patch.setenv(name, value)
        with forking():
            launch.ray.init(address="local", num_cpus=3, include_dashboard=False, log_to_driver=False)
            patch.setattr(launch, "disconnect", lambda: None)
            yield
            launch.ray.shutdown()


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 60 pictures in 3 classes, of many sizes, as PNG and JPEG."""
    root = tmp_path_factory.mktemp("pictures")
    for i in range(60):
        kind = ("PNG", "JPEG")[i % 2]
        folder = root / ("ant", "bee", "cat")[i % 3]
        folder.mkdir(exist_ok=True)
        width, height = 40 + 7 * (i % 11), 40 + 5 * (i % 13)
        (folder / f"{i:02d}.{kind.lower()}").write_bytes(encoded(width, height, i, kind))
    return root


@pytest.fixture(scope="session")
def picture_set(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    """The pictures as a data set of many small row groups."""
    dest = tmp_path_factory.mktemp("sets") / "train"
    prepare(sources.folder(pictures), dest, layout=Layout(group_bytes=20_000, shard_bytes=80_000))
    return DataSet.open(str(dest))


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """300 digits to train on and 97 to validate with: the folders' paths."""
    root = tmp_path_factory.mktemp("digits")
    source = sources.digits()
    prepare(source.subset(np.arange(300)), root / "train")
    prepare(source.subset(np.arange(300, 397)), root / "val", statistics=False)
    return str(root / "train"), str(root / "val")
