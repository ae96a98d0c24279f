"""What is estimated of a stage and of a test, beside what real ones do and leave behind."""

import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from cluster import checkpoint, traffic
from cluster.attempt import Stage
from cluster.evaluate import Evaluation, Viewer
from cluster.settings import CheckpointSettings, StageSettings
from cluster.step import Step
from cluster.table import CONFIGURATIONS
from cluster.train import train
from cluster.vgg import VGG
from cluster.views import View
from cluster.world import World
from jobs import estimate, looks
from jobs.estimate import Images, Shape
from jobs.plan import State
from pipelines import loader, order, shards
from pipelines.location import Location
from pipelines.order import Order
from pipelines.shards import DataSet
from pipelines.stream import Batch
from tests.cluster.groups import together
from tests.cluster.test_flops import TABLE
from tests.cluster.test_train import settings
from tests.cluster.test_vgg import PARAMETERS

NOTHING = State(False, 0)


def images(data: DataSet) -> Images:
    return Images(data.rows, data.manifest.total_bytes)


def paper(net: str, **changes: object) -> StageSettings:
    return StageSettings.model_validate({"net": net, "scale": 256, **changes})


@pytest.mark.parametrize("net", PARAMETERS)
def test_parameters_are_those_of_the_papers_table(net: str) -> None:
    assert estimate.parameters(paper(net), 1000) == PARAMETERS[net]


@examples(max_examples=20, deadline=None)
@given(st.sampled_from(sorted(CONFIGURATIONS)), st.integers(1, 12), st.floats(0.01, 0.1), st.booleans())
def test_any_net_has_as_many_parameters_as_torch_counts(net: str, classes: int, width: float, norm: bool) -> None:
    s = settings(net=net, width=width, batch_norm=norm)
    with torch.device("meta"):
        model = VGG(net, classes, 32, width, batch_norm=norm)
    assert estimate.parameters(s, classes) == sum(p.numel() for p in model.parameters())


def test_the_papers_training_is_as_long_as_its_authors_say() -> None:
    work = estimate.training(paper("E"), NOTHING, Images(1_281_167, 0), Images(50_000, 0), 1000, 4, False)
    assert work.steps == 74 * 5005  # about 370 K, section 3.1
    forward, training = (1e9 * gflop for gflop in TABLE["E"])
    assert work.flops == pytest.approx(74 * (1_281_167 * training + 50_000 * forward), rel=1e-3)
    four_titan_blacks = 4 * 5.1e12  # FLOP/s at most; section 3.3: two to three weeks, depending on the net
    weeks = work.flops / four_titan_blacks / (7 * 86400)
    assert 0.3 < weeks / 2.5 < 0.6  # what a GPU of then did of its peak


@dataclass(frozen=True)
class Trained:
    stage: Stage
    training: DataSet
    validation: DataSet
    ticks: Counter[str]
    rows: int
    groups_read: Counter[int]

    @property
    def files(self) -> list[Path]:
        return sorted(Path(self.stage.folder).iterdir())


@pytest.fixture(scope="module")
def trained(picture_set: DataSet, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Four epochs on a set of many row groups, none of which is held for longer than it is needed."""
    ticks, groups_read, rows = Counter[str](), Counter[int](), [0]

    def listen(record: dict[str, Any]) -> None:
        ticks[record["kind"]] += 1
        if record["kind"] == "rows":
            rows[0] += len(record["rows"])

    read_group = DataSet.read_group

    def read(data: DataSet, group: int, *given_up: Any) -> shards.RowGroup:
        groups_read[group] += 1
        return read_group(data, group, *given_up)

    place = str(picture_set.location)
    s = settings(batch=7, epochs=4, width=0.1, average_decay=0.9, batch_norm=True, virtual_shards=1, deliver="last")
    stage = Stage("a", s, place, place, str(tmp_path_factory.mktemp("stage")), ledger=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "_AHEAD_BYTES", 1)
        patch.setattr(order, "_HELD_GROUPS", 2)
        patch.setattr(loader, "_VALIDATION_BATCH", 16)
        patch.setattr(DataSet, "read_group", read)
        train(stage, World.single(), listen)
    return Trained(stage, picture_set, picture_set, ticks, rows[0], groups_read)


def test_steps_and_images_are_those_of_a_real_training(trained: Trained) -> None:
    s, data = trained.stage.settings, images(trained.training)
    work = estimate.training(s, NOTHING, data, data, 3, 1, False)
    assert (work.steps, work.images) == (trained.ticks["rows"], trained.rows)
    assert work.looked_at == trained.ticks["epoch"] * trained.validation.rows
    assert work.sent_bytes == 0


def test_bytes_read_are_those_of_the_row_groups_of_a_real_training(trained: Trained) -> None:
    s, data = trained.stage.settings, images(trained.training)
    files = [pq.ParquetFile(trained.training.location.disk / shard.file) for shard in trained.training.manifest.shards]
    groups = [file.metadata.row_group(i) for file in files for i in range(file.num_row_groups)]
    sizes = [sum(group.column(c).total_compressed_size for c in range(group.num_columns)) for group in groups]
    assert len(sizes) > 8
    read = sum(times * sizes[group] for group, times in trained.groups_read.items())
    assert estimate.training(s, NOTHING, data, data, 3, 1, False).read_bytes == pytest.approx(read, rel=0.15)


def test_checkpoints_are_as_large_and_as_many_as_those_of_a_real_training(trained: Trained) -> None:
    files = estimate.files(trained.stage.settings, NOTHING, 3, CheckpointSettings(), None)
    sizes = [file.stat().st_size for file in trained.files]
    assert files.written == trained.stage.settings.epochs
    assert len(sizes) in (files.kept - 1, files.kept)  # the best may be among the newest
    for size in sizes:
        assert 0.97 * size < files.bytes < size


@pytest.mark.parametrize(
    "changes", [{}, {"momentum": 0.0}, {"init": {"from": "x"}, "freeze": ["features"]}, {"batch_norm": True}]
)
def test_a_checkpoint_holds_what_there_is_to_go_on_with(changes: dict[str, object]) -> None:
    s = settings(width=0.3, **changes)
    model = VGG(s.net, 10, s.input_size, s.width, batch_norm=s.batch_norm)
    weights = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    moving = {"features": ("fc",)} if s.freeze else {}
    names = [name for name, _ in model.named_parameters() if name.startswith(moving.get("features", ""))]
    momentum = sum(4 * model.get_parameter(name).numel() for name in names) * (s.momentum > 0)
    assert estimate.checkpoint_bytes(s, 10) == weights + momentum


def test_checkpoints_inside_epochs_follow_from_the_time_that_these_take() -> None:
    s, every = paper("A", epochs=10), CheckpointSettings(every_minutes=10, keep=3)
    assert estimate.files(s, NOTHING, 1000, every, 5.0).written == 10 * (1 + 3)  # half an hour each
    assert estimate.files(s, State(False, 8), 1000, every, 1.0).written == 2 * (1 + 3)
    assert estimate.files(s, NOTHING, 1000, every, None).kept == 4


@examples(max_examples=50, deadline=None)
@given(st.integers(1, 100), st.integers(1, 20), st.integers(1, 9), st.data())
def test_what_is_done_and_what_is_left_are_the_whole(rows: int, batch: int, epochs: int, data: st.DataObject) -> None:
    s, of, steps = paper("A", epochs=epochs, batch=batch), Images(rows, 1000 * rows), -(-rows // batch)
    done, step = data.draw(st.integers(0, epochs - 1)), data.draw(st.integers(0, steps - 1))
    left = estimate.training(s, State(False, done, step), of, Images(3, 30), 10, 4, False)
    assert left.steps == epochs * steps - done * steps - step
    assert left.images == sum(
        min(batch, rows - (k % steps) * batch) for k in range(done * steps + step, epochs * steps)
    )
    assert left.looked_at == 3 * (epochs - done)
    whole = estimate.training(s, NOTHING, of, Images(3, 30), 10, 4, False)
    assert left.sent_bytes * whole.steps == whole.sent_bytes * left.steps
    assert estimate.training(s, State(False, epochs), of, Images(3, 30), 10, 4, False) == estimate.Work()


def test_operations_of_a_test_are_those_that_torch_counts(trained: Trained) -> None:
    newest = checkpoint.path_of(Location.of(trained.stage.folder), trained.stage.settings.epochs)
    views = (View("dense", 40, mirror=True), View("dense", 64, mirror=False), View("multi-crop", 36, mirror=True))
    viewer = Viewer(Evaluation(str(newest), str(trained.validation.location), views), World.single(), lambda _: None)
    with FlopCounterMode(display=False) as counter:
        viewer(range(trained.validation.rows))
    shape = Shape.of(trained.stage.settings, 3)
    sizes = looks.sizes(trained.validation, views)
    assert len(sizes[views[1]]) > 2
    work = estimate.testing(shape, views, sizes, images(trained.validation))
    assert work.flops == counter.get_total_flops()
    assert work.looked_at == 3 * trained.validation.rows


STEPS = 3
KINDS: tuple[dict[str, object], ...] = (
    {},
    {"init": {"from": "x"}, "freeze": ["fc1", "block5"]},
    {"reproducible": "exact"},
    {"reproducible": "exact", "exchange": "ddp"},
    {"batch_norm": True},
    {"exchange": "ddp"},
    {"exchange": "factors", "exchange_precision": "bf16"},
    {"precision": "bf16"},
)


def sent_in_steps(world: World) -> list[int]:
    """Of each kind of stage, by this worker in three steps."""
    found = []
    for changes in KINDS:
        s = settings(width=0.2, batch=8, **changes)
        net = VGG(s.net, 10, 32, s.width, 0.0, s.batch_norm)
        for name, parameter in net.named_parameters():
            parameter.requires_grad_(not s.freeze or not name.startswith(("fc1", "conv5")))
        step = Step(net, world, s, Order((80,), 8, 0))
        before = traffic.by_connections()
        for i in range(STEPS):
            rows = torch.arange(2)
            step.gradients(Batch(torch.zeros(2, 3, 32, 32), rows, rows, 8), i)
        found.append(traffic.by_connections() - before)
    return found


def test_workers_send_what_a_kernel_counts_of_real_steps() -> None:
    size = 4
    by_rank = together(size, sent_in_steps)
    for k, changes in enumerate(KINDS):
        s = settings(width=0.2, batch=8, **changes)
        expected = STEPS * estimate.sent_bytes(s, 10, size, s.precision == "bf16")
        counted = sum(each[k] for each in by_rank) / size
        assert counted == pytest.approx(expected, rel=0.06), changes
    assert estimate.sent_bytes(settings(), 10, 1, False) == 0
    assert math.log2(size) * 4 * estimate.parameters(settings(), 10) == estimate.sent_bytes(
        settings(reproducible="exact", exchange="ddp"), 10, size, False
    )
