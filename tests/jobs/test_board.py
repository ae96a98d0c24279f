"""The board against what is counted anew from records of a real training, in any order and from several threads."""

import json
import math
import random
import threading
from pathlib import Path

import pytest

from jobs import told
from jobs.board import Board, Snapshot
from jobs.line import Line, Phase
from tests.jobs.boards import NOW, Record, epoch, point, random_board, recorded, small


@pytest.fixture(scope="module")
def records(digits: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Record, ...]:
    return recorded(*digits, Path(tmp_path_factory.mktemp("stage")))


def counted(records: list[Record]) -> dict[str, object]:
    """What a board should know after these, each number looked for by itself."""
    places = [r for r in records if r["kind"] in ("tick", "point", "epoch")]
    told = [r for r in records if r["kind"] in ("point", "epoch")]
    epochs = [r for r in records if r["kind"] == "epoch"]
    best = max(epochs, key=lambda r: (r["validation_accuracy"], -r["epoch"]), default=None)
    return {
        "epoch": places[-1]["epoch"] if places else 0,
        "step": places[-1]["step"] if places else 0,
        "loss": told[-1]["loss"] if told else None,
        "accuracy": told[-1]["accuracy"] if told else None,
        "images_per_second": told[-1]["images_per_second"] if told else None,
        "learning_rate": told[-1]["learning_rate"] if told else None,
        "validation_accuracy": best and best["validation_accuracy"],
        "best_epoch": best["epoch"] if best else 0,
        "workers": 1,
    }


def test_after_every_record_of_a_training_a_line_has_what_is_counted_from_all_of_them(
    records: tuple[Record, ...],
) -> None:
    board = Board("job", [Line("a")])
    board.set("a", Phase.RUNNING, now=0.0)
    share, validating = 0.0, 0
    for i, record in enumerate(records):
        board.hear("a", record, now=float(i))
        line = board.line("a")
        assert line is not None
        assert {name: getattr(line, name) for name in counted(list(records[: i + 1]))} == counted(
            list(records[: i + 1])
        )
        assert line.share >= share
        share = line.share
        validating += line.validating
    assert share == 1
    assert len([r for r in records if r["kind"] == "epoch"]) == 3
    ticks = [r for r in records if r["kind"] == "tick" and r["step"] == r["steps"]]
    assert 3 <= validating <= len(ticks) + 3, "in each epoch, and only at its end"


def test_stages_side_by_side_come_to_what_each_comes_to_alone(records: tuple[Record, ...]) -> None:
    alone, together, names = Board(), Board(), [f"stage-{i}" for i in range(8)]
    for name in names:
        for i, record in enumerate(records):
            alone.hear(name, record, now=float(i))

    def hear(name: str) -> None:
        for i, record in enumerate(records):
            together.hear(name, record, now=float(i))

    threads = [threading.Thread(target=hear, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {line.name: line for line in together.snapshot().lines} == {x.name: x for x in alone.snapshot().lines}
    assert together.changes == len(names) * len(records)


def test_a_board_comes_back_from_json_as_it_was() -> None:
    for seed in range(50):
        before = random_board(random.Random(seed))
        text = json.dumps(before.plain(), allow_nan=False)
        assert Snapshot.of(json.loads(text)) == before
        assert Board.of(json.loads(text)).snapshot(before.now) == before


def test_what_a_later_version_knows_beside_it_is_left_out_and_other_things_are_refused() -> None:
    plain = small().plain()
    more = {**plain, "colour": 1, "lines": [{**line, "mood": "good"} for line in plain["lines"]]}
    assert Snapshot.of(more) == small()
    for wrong in ({}, {**plain, "version": 2}, {**plain, "lines": 3}, {**plain, "lines": [{"title": "no name"}]}, []):
        with pytest.raises(ValueError, match=r"."):
            Snapshot.of(wrong)  # type: ignore[arg-type]


def test_time_left_is_that_of_the_steps_and_then_of_the_epochs() -> None:
    board = Board("job", [Line("a")])
    board.set("a", Phase.RUNNING, now=NOW)

    def left() -> float | None:
        line = board.line("a")
        assert line is not None
        return line.left

    board.hear("a", {"kind": "tick", "epoch": 1, "epochs": 4, "step": 10, "steps": 50}, NOW + 30)
    assert left() is None, "how long the workers took to start tells nothing"
    board.hear("a", {"kind": "tick", "epoch": 1, "epochs": 4, "step": 20, "steps": 50}, NOW + 40)
    assert left() == pytest.approx(180), "a second for each of the steps that are left"
    board.hear("a", epoch(1, 4, 0.5, seconds=80), NOW + 120)
    assert left() == pytest.approx(240)
    board.hear("a", {"kind": "workers", "count": 1, "attempt": 2}, NOW + 500)
    board.hear("a", point(2, 4, 25), NOW + 520)
    assert left() == pytest.approx(200), "what was lost on the way tells nothing either"
    board.set("a", Phase.DONE, now=NOW + 600)
    assert left() is None


def test_seconds_count_while_it_runs_and_add_up() -> None:
    board = Board("job", [Line("a")])
    for begun in (0.0, 100.0):
        board.set("a", Phase.RUNNING, now=NOW + begun)
        board.set("a", Phase.RUNNING, "with a worker less", now=NOW + begun + 5)
        board.set("a", Phase.STOPPED, now=NOW + begun + 30)
    line = board.line("a")
    assert line is not None
    assert line.spent(NOW + 1e6) == 60


def test_a_loss_that_is_not_finite_is_none() -> None:
    board = Board()
    board.hear("a", {**point(1, 2, 3), "loss": math.nan, "accuracy": math.inf})
    line = board.line("a")
    assert line is not None
    assert (line.loss, line.accuracy, line.images_per_second) == (None, None, 2310.4)


def test_images_of_several_pieces_of_a_test_add_up() -> None:
    board = Board("job", [Line("test of a")])
    for began in (0.0, 100.0):
        board.begin("test of a", 500, NOW + began)
        for i in range(5):
            board.hear("test of a", {"kind": "tested", "images": 100}, NOW + began + 10 * i)
    line = board.line("test of a")
    assert line is not None
    assert (line.phase, line.images, line.of_images, line.share) == (Phase.RUNNING, 1000, 1000, 1.0)
    assert line.images_per_second == pytest.approx(10)


def test_the_load_of_gpus_is_the_mean_over_nodes_until_other_workers_come() -> None:
    board = Board("job", [Line("a", phase=Phase.RUNNING)])
    for node, loads in (("one", (10.0, 20.0)), ("two", (80.0, 100.0)), ("one", (100.0, 90.0))):
        values = {f"gpu_{i}_utilization_percentage": load for i, load in enumerate(loads)}
        board.hear("a", {"kind": "system", "node": node, "values": {**values, "gpu_0_power_usage_watts": 1e3}})
    board.hear("a", {"kind": "system", "node": "three", "values": {"cpu_utilization_percentage": 3.0}})
    line = board.line("a")
    assert line is not None
    assert list(told.parts(line)) == ["GPUs 92 % busy"]
    board.hear("a", {"kind": "workers", "count": 1, "attempt": 2})
    line = board.line("a")
    assert line is not None
    assert list(told.parts(line)) == ["1 worker, attempt 2"]
