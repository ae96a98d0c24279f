"""The measurement of a step: through Ray and torchrun as users start it, and the bare loop against ours."""

import json
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cluster import bare, checkpoint, turns
from cluster.attempt import Stage
from cluster.bare import Answer, Task
from cluster.bench_step import Comparison, Interval, Round
from cluster.checkpoint_cost import Cost
from cluster.place import Shape
from cluster.step_figures import figures, table
from cluster.stopwatch import PARTS
from cluster.train import train
from cluster.vgg import VGG
from cluster.world import World
from jobs.cli import main
from pipelines.location import Location
from pipelines.shards import DataSet
from tests.cluster.test_train import settings


@pytest.mark.usefixtures("cluster")
def test_a_step_is_measured_by_part_and_beside_the_bare_loop(
    digits: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = {"scale": 32, "input-size": 32, "width": 0.1, "batch": 8, "workers": 2, "steps": 20, "rounds": 1}
    options = [text for name, value in small.items() for text in (f"--{name}", str(value))]
    assert main(["bench", "step", digits[0], *options, "--json", str(tmp_path / "step.json")]) == 0
    printed = capsys.readouterr().out
    found = json.loads((tmp_path / "step.json").read_text())
    steps = found["points"][-1] - found["points"][0]
    assert steps >= 20
    (measured,) = found["rounds"]
    assert sum(interval["steps"] for interval in measured["intervals"]) == steps
    assert len(measured["bare"]["seconds"]) == len(measured["intervals"])
    for interval in measured["intervals"]:
        assert interval["parts"].keys() == set(PARTS)
        assert all(interval["parts"][part] > 0 for part in ("input", "forward", "backward", "optimiser", "report"))
        assert 0.5 * interval["seconds"] < sum(interval["parts"].values()) <= interval["seconds"]
    shown = found["figures"]
    assert all(milliseconds > 0 for part, milliseconds in shown["parts"].items() if part != "exchange")
    assert shown["ratio"][1] <= shown["ratio"][0] <= shown["ratio"][2]
    assert [line.split()[0] for line in printed.splitlines()[1:12]] == [
        *PARTS, "other", "whole", "bare", "ratio", "checkpoint",
    ]  # fmt: skip
    assert 0 < found["saving"]["normal"] <= found["saving"]["written"]
    assert found["versions"].keys() >= {"torch", "ray"}


def test_the_bare_loop_trains_the_same_net_as_ours(digits: tuple[str, str], tmp_path: Path) -> None:
    torch.set_num_threads(1)
    s = settings(epochs=1, dropout=0.0)
    train(Stage("a", s, *digits, str(tmp_path)), World.single(), lambda record: None)
    ours = checkpoint.load(checkpoint.path_of(Location.of(tmp_path), 1)).weights
    data, world = DataSet.open(digits[0]), World.single()
    task = Task(settings=s, data=digits[0], cuda=False, threads=1, points=(1, 6), pairs=1)
    net = bare.random_net(s, data, world)
    first = {name: weight.clone() for name, weight in net.state_dict().items()}
    with closing(bare.batches_of(task, data, world)) as batches:
        bare.train(net, iter(batches), task, world)
    for name, weight in net.state_dict().items():
        torch.testing.assert_close(weight, ours[name], rtol=1e-5, atol=1e-7)
    assert not all(torch.equal(weight, first[name]) for name, weight in net.state_dict().items())


def comparison() -> Comparison:
    """Steps of 10 ms, of which 6 ms are backward and what is waited for after it, a third of that exchange; the bare
    loop's take 8 ms."""
    parts = dict.fromkeys(PARTS, 0.0) | {"forward": 0.03, "backward": 0.05, "exchange": 0.01}
    turn = Round(
        (Interval(10, parts, 0.1, 0.05), Interval(10, parts, 0.1, 0.05)), Answer((0.08, 0.08), (0.1, 0.1), 0.002, 0.003)
    )
    return Comparison(
        settings(batch=50), Shape(2, 1, 0, 2), (5, 15, 25), (turn,), 1_000_000, 5e9, Cost(0.1, 0.11, 0.1, 0.3)
    )


def test_figures_are_medians_over_intervals_and_ratios_of_whole_rounds() -> None:
    f = figures(comparison())
    assert f.parts == pytest.approx(
        {"input": 0, "forward": 3, "backward": 4, "exchange": 2, "optimiser": 0, "report": 0, "other": 1}
    )
    assert (f.whole, f.bare) == pytest.approx((10, 8))
    assert f.ratio == pytest.approx((1.25,) * 3)
    assert f.fastest == pytest.approx(1.25)
    assert f.cpu_ratio == pytest.approx((0.5,) * 3)
    assert f.flops_per_second == pytest.approx(1_000_000 * 25 / 0.01)
    assert f.share_of_peak == pytest.approx(0.5)
    slow = replace(comparison().rounds[0], bare=Answer((0.06, 0.04), (0.1, 0.1), 0.002, 0.003))
    both = figures(replace(comparison(), rounds=(comparison().rounds[0], slow)))
    assert both.ratio == pytest.approx((1.625, 1.25, 2.0))
    assert both.fastest == pytest.approx(2.5)
    assert "50% of what its device can do" in table(comparison())
    assert "device" not in table(replace(comparison(), peak_flops=None))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"exchange": "ddp"},
        {"reproducible": "exact"},
        {"batch_norm": True},
        {"init": {"from": "x"}, "freeze": ["fc1"]},
    ],
)
def test_with_an_exchange_and_without_a_step_is_the_same_but_for_it(
    digits: tuple[str, str], changes: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both are Step's own, on one worker with the same gradients, and leave the weights alone."""
    torch.set_num_threads(1)
    nets: list[VGG] = []
    sharing = turns.sharing

    def noted(net: VGG) -> VGG:
        nets.append(sharing(net))
        return nets[-1]

    monkeypatch.setattr(turns, "sharing", noted)
    s, world = settings(**changes), World.single()
    data = DataSet.open(digits[0])
    task = Task(settings=s, data=digits[0], cuda=False, threads=1, points=(1, 2), pairs=2)
    net = bare.random_net(s, data, world)
    before = {name: weight.clone() for name, weight in net.state_dict().items()}
    assert min(bare._exchange(net, task, world)) > 0
    alone, together = ({name: p.grad for name, p in each.named_parameters()} for each in nets)
    assert {name for name, gradient in alone.items() if gradient is None} == {
        name for name in alone if name.rpartition(".")[0] in s.frozen
    }
    torch.testing.assert_close(together, alone, rtol=0, atol=0)
    assert all(torch.equal(weight, before[name]) for name, weight in net.named_parameters())


def test_an_exchange_that_was_measured_shorter_than_none_is_none() -> None:
    turn = replace(comparison().rounds[0], bare=Answer((0.08, 0.08), (0.1, 0.1), 0.003, 0.002))
    f = figures(replace(comparison(), rounds=(turn,)))
    assert (f.parts["backward"], f.parts["exchange"]) == pytest.approx((6, 0))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ("--scale 64 --input-size 50", "input_size: 50 is not a multiple of 32"),
        ("--scale 32 --net F", "net: Input should be 'A', 'A-LRN', 'B', 'C', 'D' or 'E'"),
        ("--scale 32 --input-size 32 --steps 0", "--steps 0: at least 1"),
        ("--scale 32 --input-size 32 --json /nowhere/a.json", "/nowhere/a.json: there is no folder /nowhere"),
        ("", "give --scale, the shorter side S in pixels, or its smallest and largest value"),
        ("--scale 32 --stage a", "has no stages"),
    ],
)
def test_what_cannot_be_measured_is_told_in_one_line(
    digits: tuple[str, str], options: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "step", digits[0], *options.split()]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert told in lines[0]


def test_a_set_without_statistics_cannot_be_trained_on(
    digits: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "step", digits[1], "--scale", "32", "--input-size", "32"]) == 2
    assert "take a training set" in capsys.readouterr().err
