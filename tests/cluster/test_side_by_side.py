"""Several stages at once on one connection to Ray: each as if it were alone, whatever happens to the others."""

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from cluster import launch, place
from cluster.attempt import Stage
from cluster.course import LOST_CONTROLLER
from cluster.interrupt import Stop
from cluster.place import Shape
from cluster.settings import ClusterSettings
from cluster.train import Outcome, train
from cluster.world import World
from pipelines.errors import TrainingError
from pipelines.schema import MANIFEST
from pipelines.shards import DataSet
from tests.cluster.chaos import descendants, send, train_workers
from tests.cluster.groups import together
from tests.cluster.runs import Listener, in_epoch, saved, stage

ON = Shape(1, 1, 0, 1)
CPUS = 3  # of the tests' Ray
PATIENCE_SECONDS = 180
SETTINGS = ClusterSettings()


def alone(world: World, stages: list[Stage], folder: Path) -> list[dict[str, torch.Tensor]]:
    """What they come to without Ray, one after the other."""
    found = []
    for each in stages:
        own = replace(each, folder=str(folder / Path(each.folder).name))
        assert train(own, world, lambda record: None) is Outcome.FINISHED
        dist.barrier()  # it is written
        found.append(saved(Path(own.folder)).weights)
    return found


@contextmanager
def at_once(*runs: tuple[Stage, Listener, Stop]) -> Iterator[list[Future[None]]]:
    """Each of the stages in a thread of its own."""
    with launch.environment(SETTINGS), ThreadPoolExecutor(len(runs)) as pool:
        yield [pool.submit(launch.train_stage, stage, ON, SETTINGS, *heard) for stage, *heard in runs]


def wait(until: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not until():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def all_places_are_free() -> bool:
    return place.room(ON) == CPUS


def broken(data: DataSet, folder: Path) -> str:
    """A copy of which a row group is not what its manifest says."""
    shutil.copytree(data.location.path, folder)
    bad = data.manifest.shards[1]
    damaged = replace(bad, group_xxh3=(*bad.group_xxh3[:-1], "0" * 16))
    shards = tuple(damaged if shard is bad else shard for shard in data.manifest.shards)
    (folder / MANIFEST).write_text(replace(data.manifest, shards=shards).to_json())
    return str(folder)


def begun(*listeners: Listener) -> bool:
    """Whether all of them are in the middle of an epoch."""
    return all(any(in_epoch(1)(record) for record in listener.records) for listener in listeners)


def controllers() -> list[int]:
    return [pid for pid, line in descendants(os.getpid()).items() if line.startswith("ray::Controller")]


@pytest.mark.usefixtures("cluster")
def test_one_that_crashes_and_one_that_is_refused_do_not_touch_the_others(
    digits: tuple[str, str], picture_set: DataSet, tmp_path: Path
) -> None:
    bad = broken(picture_set, tmp_path / "data")
    stages = [stage(digits, tmp_path / "one", 4), stage(digits, tmp_path / "other", 4, learning_rate=0.02)]
    refused = stage((bad, bad), tmp_path / "refused", 4)
    one, other, third = Listener(), Listener(), Listener()
    with at_once((stages[0], one, Stop()), (stages[1], other, Stop()), (refused, third, Stop())) as runs:
        error = runs[2].exception()
        wait(lambda: begun(one, other))
        send(signal.SIGKILL, train_workers(os.getpid())[0])
        assert [run.exception() for run in runs[:2]] == [None, None]
    assert isinstance(error, TrainingError)
    assert str(error).startswith("stage a: ")
    assert len(str(error).splitlines()) == 1
    assert third.counts() == [1], "not tried again"
    assert sorted([one.counts(), other.counts()]) == [[1], [1, 1]]
    assert sorted(len(listener.texts()) for listener in (one, other)) == [0, 1]
    expected = together(1, alone, stages, tmp_path / "alone")[0]
    for done, weights in zip(stages, expected, strict=True):
        found = saved(Path(done.folder)).weights
        assert set(found) == set(weights)
        assert all(torch.equal(found[key], weights[key]) for key in weights)
    wait(all_places_are_free)


@pytest.mark.usefixtures("cluster")
def test_a_stop_is_with_a_checkpoint_or_at_once_and_leaves_no_place_taken(
    digits: tuple[str, str], tmp_path: Path
) -> None:
    """Nor does a controller that is killed, whose stage goes on."""
    stages = [stage(digits, tmp_path / name, 1000, plateau={"patience": 1000}) for name in ("one", "other")]
    one, other, patient, hasty = Listener(), Listener(), Stop(), Stop()
    with at_once((stages[0], one, patient), (stages[1], other, hasty)) as runs:
        wait(lambda: begun(one, other))
        send(signal.SIGKILL, controllers()[0])
        wait(lambda: sorted([one.counts(), other.counts()]) == [[1], [1, 1]])
        heard = len(one.records)
        wait(lambda: len(one.records) > heard + 3)  # it is certainly in the middle of something
        patient.ask("enough")
        assert str(runs[0].exception()) == "enough"
        hasty.ask("the lease is lost", at_once=True)
        assert str(runs[1].exception()) == "the lease is lost"
    (told,) = one.texts() + other.texts()
    assert told == f"{LOST_CONTROLLER}; training starts again from the newest checkpoint"
    progress = saved(Path(stages[0].folder)).progress
    last = [record for record in one.records if record["kind"] in ("tick", "point")][-1]
    done = len(progress.epochs) * last["steps"] + progress.step
    assert done == (last["epoch"] - 1) * last["steps"] + last["step"]
    wait(all_places_are_free)
    wait(lambda: controllers() == [])  # which end a moment after they have given back their places
