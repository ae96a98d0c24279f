"""Work in pieces on a real Ray: in order, on any number of workers, through their loss; and tests of nets as such."""

import gc
import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster import launch
from cluster.evaluate import Evaluation
from cluster.interrupt import Stop
from cluster.pieces import cut, idle, over_pieces, rest
from cluster.place import Shape
from cluster.records import Log
from cluster.views import views
from cluster.world import World
from pipelines.errors import DataError
from pipelines.shards import DataSet
from tests.cluster.test_evaluate import CLASSES, on, written

ON = Shape(1, 1, 0, 1)
CPUS = 3  # of the tests' Ray


@given(st.integers(1, 5000), st.integers(1, 80), st.integers(1, 3000))
def test_pieces_are_all_rows_in_order_and_spread_evenly(rows: int, workers: int, most: int) -> None:
    pieces = cut(rows, workers, most)
    assert [row for piece in pieces for row in piece] == list(range(rows))
    lengths = {len(piece) for piece in pieces}
    assert max(lengths) - min(lengths) <= 1
    assert 1 <= min(lengths) <= max(lengths) <= most
    assert len(pieces) == rows or len(pieces) % workers == 0


def falls_at(folder: Path, fatal: int, world: World, log: Log) -> Callable[[range], list[int]]:
    """The process dies in the first piece that has row `fatal`; the next one does not. Notes what it begins."""

    def do(rows: range) -> list[int]:
        with (folder / f"{rows.start}").open("a") as note:
            note.write("x")
        if fatal in rows and not (folder / "fallen").exists():
            (folder / "fallen").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        log({"kind": "tested", "images": len(rows)})
        return list(rows)

    return do


def ignored(record: dict[str, Any]) -> None:
    del record


def refuses(error: Exception, world: World, log: Log) -> Callable[[range], Any]:
    raise error


@pytest.mark.usefixtures("cluster")
def test_a_worker_that_is_lost_costs_the_piece_that_it_was_at(tmp_path: Path) -> None:
    records: list[dict[str, Any]] = []
    pieces = over_pieces(partial(falls_at, tmp_path, 17), 30, 5, Shape(2, 1, 0, 1), records.append, "it", Stop())
    assert [row for piece in pieces for row in piece] == list(range(30))
    begun = Counter({int(note.name): len(note.read_text()) for note in tmp_path.iterdir() if note.name != "fallen"})
    (told,) = [record["text"] for record in records if record["kind"] == "warning"]
    assert told.startswith("a worker was lost and started again")
    assert begun == {start: 1 + (start == 15) for start in range(0, 30, 5)}


@pytest.mark.usefixtures("cluster")
def test_what_a_worker_raises_for_the_user_comes_out_as_it_is() -> None:
    with pytest.raises(DataError, match=r"^one line$"):
        list(over_pieces(partial(refuses, DataError("one line")), 3, 3, Shape(1, 1, 0, 1), ignored, "it", Stop()))


def names(word: str, world: World, log: Log) -> Callable[[range], tuple[int, str, int]]:
    """In which process, what it was begun with, and how often this process has begun something."""
    gc.collect()
    begun = len([each for each in gc.get_objects() if isinstance(each, Begun)])
    return Begun(word, begun)


class Begun:
    def __init__(self, word: str, others: int) -> None:
        self._word, self._others = word, others

    def __call__(self, rows: range) -> tuple[int, str, int]:
        return os.getpid(), self._word, self._others


@pytest.mark.usefixtures("cluster")
def test_workers_are_kept_for_the_next_test_but_not_what_they_had_of_the_last_one() -> None:
    rest()

    def found(word: str) -> tuple[int, str, int]:
        (one,) = over_pieces(partial(names, word), 1, 1, ON, ignored, "it", Stop())
        return one

    first, second = found("first"), found("second")
    assert second == (first[0], "second", 0)
    assert (idle(ON), launch.room(ON, test=True)) == (1, CPUS)
    launch.room(ON)
    deadline = time.monotonic() + 60
    while launch.room(ON) < CPUS and time.monotonic() < deadline:
        time.sleep(0.05)
    assert (idle(ON), launch.room(ON)) == (0, CPUS), "a stage may have its place"
    assert found("third")[0] != first[0]


@pytest.mark.usefixtures("cluster")
def test_work_that_is_interrupted_ends_at_once(tmp_path: Path) -> None:
    stop = Stop()
    pieces = over_pieces(
        partial(falls_at, tmp_path, -1), 9, 3, Shape(1, 1, 0, 1), lambda record: stop.ask("enough"), "", stop
    )
    with pytest.raises(KeyboardInterrupt, match=r"^enough$"):
        list(pieces)


@pytest.mark.usefixtures("cluster")
def test_a_test_on_three_workers_is_that_on_one(picture_set: DataSet, tmp_path: Path) -> None:
    """And is not held up by the third, who finds no place."""
    file = written(tmp_path / "net.safetensors")
    test = Evaluation(file, picture_set.location.absolute, views("both", (40, 56), mirror=True))
    records: list[dict[str, Any]] = []
    found = launch.run_evaluation(test, Shape(3, 1, 0, 3), records.append, Stop())
    assert list(found) == list(test.views)
    for view, alone in on(test).items():
        assert np.allclose(found[view].scores, alone.scores, rtol=0, atol=1e-6)
        assert (found[view].names, found[view].labels.tolist()) == (alone.names, alone.labels.tolist())
        timed = [record for record in records if record["kind"] == "timed" and record["scale"] == view.scale]
        assert sum(record["images"] for record in timed if record["mode"] == view.mode) == 60
        assert all(0 < record["net_seconds"] < record["seconds"] for record in timed)
    assert sum(record["images"] for record in records if record["kind"] == "tested") == 4 * 60


def test_what_can_be_refused_is_before_a_worker_starts(picture_set: DataSet, tmp_path: Path) -> None:
    file = written(tmp_path / "net.safetensors", (*CLASSES, "dog"))
    test = Evaluation(file, picture_set.location.absolute, views("dense", (40,), mirror=True))
    with pytest.raises(DataError, match="was trained on 4"):
        launch.run_evaluation(test, Shape(3, 1, 0, 3), ignored, Stop())
