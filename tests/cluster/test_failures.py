"""Training on a real Ray whose workers are ended, stopped or fail: what was lost, and what is told."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import ray

from cluster import launch
from cluster.place import Shape
from cluster.settings import ClusterSettings
from pipelines.errors import TrainingError
from pipelines.schema import MANIFEST
from pipelines.shards import DataSet
from tests.cluster.runs import Listener, stage

ON = Shape(2, 1, 0, 2)
CLUSTER = ClusterSettings(workers=(2, 2))
EPOCHS = 4


@pytest.fixture(scope="module", autouse=True)
def own_cluster() -> Iterator[None]:
    """A Ray that ends with these tests. Runs that are ended from outside leave the places of their workers to a helper
    of Ray's, which does not find its Ray where several are on one machine, as when tests run side by side."""
    quick = {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1", "RAY_TRAIN_METRICS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**quick, "PYTHONPATH": str(Path(__file__).parent.parent.parent)}.items():
            patch.setenv(name, value)
        ray.init(address="local", num_cpus=2, include_dashboard=True, log_to_driver=False)
        yield
        ray.shutdown()


def test_data_that_one_worker_cannot_read_ends_the_run_with_one_line(picture_set: DataSet, tmp_path: Path) -> None:
    shutil.copytree(picture_set.location.path, tmp_path / "data")
    manifest = picture_set.manifest
    bad = manifest.shards[1]
    shards = [replace(bad, group_xxh3=(*bad.group_xxh3[:-1], "0" * 16)) if s is bad else s for s in manifest.shards]
    (tmp_path / "data" / MANIFEST).write_text(replace(manifest, shards=tuple(shards)).to_json())
    (tmp_path / "stage").mkdir()
    data = (str(tmp_path / "data"), str(tmp_path / "data"))
    listener = Listener()
    with pytest.raises(TrainingError, match=rf"^stage a: .*{bad.file}.*$") as caught:
        launch.train_stage(stage(data, tmp_path / "stage", EPOCHS), ON, CLUSTER, listener)
    assert len(str(caught.value).splitlines()) == 1
    assert len([r for r in listener.records if r["kind"] == "workers"]) == 1, "not tried again"
