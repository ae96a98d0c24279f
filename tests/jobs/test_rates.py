"""What was measured, and what is made of it for other stages."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.attempt import Stage
from cluster.flops import training_flops
from cluster.settings import StageSettings
from cluster.train import train
from cluster.world import World
from jobs import rates
from jobs.rates import Measured, device, kind_of, pace
from jobs.store import StageFolder, write_json, write_text
from pipelines.location import Location
from tests.cluster.test_train import settings

WHEN = "2026-11-24T10:00:00+00:00"


def stage(net: str, **changes: object) -> StageSettings:
    return settings(net=net, width=1.0, **changes)


def measured(
    s: StageSettings, speed: float, workers: int | None = 2, of: str | None = "GPU", **changes: Any
) -> Measured:
    kind = kind_of(s.model_dump(by_alias=True, mode="json"), 10)
    return replace(Measured("demo", s.net.lower(), kind, workers, of, speed, WHEN), **changes)


def speed(found: rates.Pace | None, s: StageSettings) -> float:
    """Images a second."""
    assert found is not None
    return found.flops_per_second / training_flops(s.net, 10, 32, 1.0, s.frozen)


def test_a_stage_that_was_measured_is_as_fast_as_it_was() -> None:
    found = pace([measured(stage("A"), 500.0), measured(stage("E"), 212.0)], stage("E"), 10, 2, None)
    assert found is not None
    assert speed(found, stage("E")) == pytest.approx(212)
    assert found.source == "212 images/s measured on 2 workers with a GPU each, 24 Nov 2026"


def test_what_speed_does_not_depend_on_makes_no_other_stage() -> None:
    other = stage("E", learning_rate=0.1, epochs=9, seed=3, scale=[36, 48])
    found = pace([measured(stage("E"), 212.0)], other, 10, 2, None)
    assert found is not None
    assert found.source == "212 images/s measured on 2 workers with a GPU each, 24 Nov 2026"


def test_other_workers_and_other_nets_are_scaled_and_it_says_so() -> None:
    more = pace([measured(stage("E"), 212.0)], stage("E"), 10, 8, None)
    assert more is not None
    assert speed(more, stage("E")) == pytest.approx(4 * 212)
    assert more.source == "212 images/s measured on 2 workers with a GPU each, 24 Nov 2026; scaled by workers"
    both = pace([measured(stage("E"), 21.2, of="2 CPUs")], stage("A"), 10, 4, None)
    assert both is not None
    ratio = training_flops("E", 10, 32) / training_flops("A", 10, 32)
    assert speed(both, stage("A")) == pytest.approx(2 * ratio * 21.2)
    assert both.source == (
        "21.2 images/s measured for e of job demo on 2 workers with 2 CPUs each, 24 Nov 2026; "
        "scaled by operations and workers"
    )
    frozen = stage("E", init={"from": "x"}, freeze=["features"])
    less = pace([measured(stage("E"), 100.0)], frozen, 10, 2, None)
    assert speed(less, frozen) > 200


def test_of_several_the_most_alike_counts_then_the_newest() -> None:
    old, new = (measured(stage("E"), s, written=f"2026-11-{day}T10:00:00+00:00") for s, day in ((1.0, 10), (2.0, 12)))
    others = [
        measured(stage("A"), 9.0),
        measured(stage("E", batch_norm=True), 8.0),
        measured(stage("E"), 7.0, workers=1),
    ]
    assert speed(pace([*others, old, new], stage("E"), 10, 2, None), stage("E")) == pytest.approx(2)
    assert speed(pace([new, *others, old], stage("E"), 10, 1, None), stage("E")) == pytest.approx(7)
    d = pace([measured(stage("A"), 9.0), measured(stage("E"), 5.0)], stage("D"), 10, 2, None)
    assert d is not None
    assert "for e of job demo" in d.source  # nearer in its operations


def test_machines_of_another_kind_say_nothing() -> None:
    gpu, cpu = measured(stage("E"), 200.0), measured(stage("E"), 2.0, of=device(0, 2))
    assert speed(pace([gpu, cpu], stage("E"), 10, 2, 1), stage("E")) == pytest.approx(200)
    assert speed(pace([gpu, cpu], stage("E"), 10, 2, 0), stage("E")) == pytest.approx(2)
    assert pace([gpu], stage("E"), 10, 2, 0) is None
    assert pace([], stage("E"), 10, 2, None) is None


def test_notes_are_found_again_and_damaged_ones_are_none(tmp_path: Path) -> None:
    runs = Location.of(tmp_path / "runs")
    assert rates.known(runs) == []
    place = runs / "demo" / "e-0123456789ab"
    rates.note(place, stage("E"), 10, 2, device(1, 4), [50.0, 210.0, 212.0, 230.0])
    (found,) = rates.known(runs)
    assert found == replace(measured(stage("E"), 212.0), written=found.written)
    rates.note_test(runs / "demo" / "tests", 6e12, 3.0, device(0, 1))
    (tested,) = rates.known_tests(runs)
    test_pace = rates.pace_of_tests([tested], 4, None)
    assert test_pace is not None
    assert test_pace.flops_per_second == 8e12
    assert rates.pace_of_tests([tested], 4, 1) is None
    for damage in ("", "[]", "{}", '{"kind": {"net": "E"}, "workers": 2, "images_per_second": 1, "written": "x"}'):
        write_text(place / "rate.json", damage)
        write_text(runs / "demo" / "tests" / "rate.json", damage)
        assert rates.known(runs) == []
        assert rates.known_tests(runs) == []


def test_of_a_stage_without_a_note_its_net_tells(digits: tuple[str, str], tmp_path: Path) -> None:
    place = Location.of(tmp_path / "runs" / "old" / "a-0123456789ab")
    Path(place.path).mkdir(parents=True)
    train(Stage("a", settings(epochs=2), *digits, place.path), World.single(), lambda _: None)
    folder = StageFolder(place, "a", "0123456789ab")
    finished = folder.finish(folder.progress(), "best")
    (found,) = rates.known(Location.of(tmp_path / "runs"))
    assert (found.job, found.stage, found.workers, found.device) == ("old", "a", None, None)
    assert found.images_per_second == finished.epochs[1].images_per_second
    assert found.kind == kind_of(settings().model_dump(by_alias=True, mode="json"), 10)
    assert "measured on an unknown number of workers" in pace([found], settings(), 10, 2, None).source  # type: ignore[union-attr]
    write_json(place / "done.json", {"key": folder.key, "delivered": "gone.safetensors", "epochs": [{}]})
    assert rates.known(Location.of(tmp_path / "runs")) == []
