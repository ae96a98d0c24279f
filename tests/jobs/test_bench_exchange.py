"""The comparison of both ways of exchange, through torchrun as users start it."""

import json
from pathlib import Path

import pytest
import torch

from cluster import bench_exchange, traffic, turns
from cluster.settings import StageSettings
from cluster.turns import ALONE
from cluster.world import World
from jobs.cli import main
from pipelines.errors import BenchError
from tests.cluster.groups import together
from tests.cluster.test_step import net, settings

SMALL = ("--net", "A", "--width", "0.1", "--input-size", "32", "--batch", "7", "--rounds", "2")


def test_both_ways_are_measured_and_give_the_same_gradients(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "exchange.json"
    assert main(["bench", "exchange", *SMALL, "--workers", "2", "--json", str(file)]) == 0
    assert "factors" in capsys.readouterr().out
    found = json.loads(file.read_text())
    assert found["settings"]["net"] == "A"
    (measured,) = found["found"]
    assert measured["workers"] == 2
    assert 0 < measured["difference"] < 1e-6, "other orders of the same sums"
    assert {name: len(each) for name, each in measured["turns"].items()} == {ALONE: 2, "ddp": 2, "factors": 2}
    for figures in measured["figures"].values():
        # The odd image is gathered as a row of nothing on the worker that has one fewer.
        assert figures["sent_bytes"] == pytest.approx(figures["reckoned_bytes"], rel=0.2)
    assert measured["figures"]["ddp"]["sent_bytes"] > 4 * measured["figures"]["factors"]["sent_bytes"]
    assert measured["faster"][1] <= measured["faster"][0] <= measured["faster"][2]


def spoilt(world: World) -> dict[str, float]:
    """Differences, if worker 1 has added a thousandth to a gradient."""
    s = settings(net="A", batch=4)
    nets = {"ddp": net(s), "factors": net(s)}

    def take(name: str) -> None:
        torch.manual_seed(3)
        for parameter in nets[name].parameters():
            parameter.grad = torch.randn_like(parameter)
        if name == "factors" and world.rank == 1:
            nets[name].fc2.weight.grad *= 1.001

    return turns._differences(nets, {name: lambda name=name: take(name) for name in nets}, world)


def test_a_difference_on_any_worker_is_every_workers() -> None:
    for found in together(2, spoilt):
        assert found == {"factors": pytest.approx(1e-3, rel=1e-2)}


def answer(difference: float) -> dict[str, object]:
    def turn(seconds: float) -> list[dict[str, float]]:
        return [{"seconds": seconds * k, "sent_bytes": 1e6} for k in (1, 2)]

    return {"turns": {ALONE: turn(1), "ddp": turn(4), "factors": turn(2)}, "differences": {"factors": difference}}


def test_what_a_step_takes_longer_than_alone_is_its_exchange() -> None:
    found = bench_exchange._found(answer(1e-7), StageSettings(net="A", scale=(256, 256)), 2, "cpu")
    assert found.alone_seconds == 1.5
    assert found.figures["ddp"].exchange_seconds == 4.5
    assert found.figures["factors"].exchange_seconds == 1.5
    assert found.faster == (2, 2, 2)
    assert "-" in bench_exchange.table(StageSettings(net="A", scale=(256, 256)), [found])


def test_gradients_that_differ_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.torchrun.run", lambda *_: answer(2e-6))
    with pytest.raises(BenchError, match=r"on 2 workers gradients by both ways differ by 2.0e-06 of their norm"):
        bench_exchange.run(StageSettings(net="A", scale=(256, 256)), 2, 1)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ("--workers 1", "--workers 1: at least 2"),
        ("--rounds 0", "--rounds 0: at least 1"),
        ("--input-size 50", "input_size: 50 is not a multiple of 32"),
        ("--net F", "net: Input should be 'A', 'A-LRN', 'B', 'C', 'D' or 'E'"),
        ("--json /nowhere/a.json", "/nowhere/a.json: there is no folder /nowhere"),
    ],
)
def test_what_cannot_be_measured_is_told_in_one_line(
    options: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "exchange", *options.split()]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].endswith(told)


def turn_of(world: World) -> dict[str, list[tuple[float, float]]]:
    task = turns.Task(
        settings=settings(exchange="ddp", width=0.05),
        classes=4,
        ways={"ddp": {"exchange": "ddp"}},
        rounds=1,
        cuda=False,
        threads=1,
    )
    found = turns.run(task, world, traffic.by_connections)
    return {name: [(turn.seconds, turn.sent_bytes) for turn in each] for name, each in found.turns.items()}


def test_all_workers_tell_of_the_slowest_ones_seconds() -> None:
    first, second = together(2, turn_of)
    assert first == second
    assert first[ALONE][0][1] < 1000 < first["ddp"][0][1], "who is alone sends nothing but what a meeting takes"


def test_nets_that_share_weights_take_their_memory_once() -> None:
    """Whatever Step does to them."""
    s = settings(batch_norm=True)
    plain = net(s)
    other = turns.sharing(plain)
    assert other.batch_norm
    for each in (plain, other):
        turns.taking(each, World.single(), s)()
    for name, parameter in plain.named_parameters():
        assert other.get_parameter(name) is not parameter
        assert other.get_parameter(name).data_ptr() == parameter.data_ptr()
