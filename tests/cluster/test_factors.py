"""Gradients out of factors: those of the whole batch on one worker, in float64, however shares and pieces are cut."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cluster import checkpoint, exchange, optimise, wire
from cluster import factors as cluster_factors
from cluster import step as cluster_step
from cluster.attempt import Stage
from cluster.factors import Factors
from cluster.step import Step
from cluster.train import train
from cluster.vgg import VGG
from cluster.world import World
from pipelines.errors import TrainingError
from pipelines.location import Location
from tests.cluster.groups import together
from tests.cluster.test_step import IMAGES, LABELS, ORDER, net, settings, share
from tests.cluster.test_train import settings as stage_settings

FC = ("fc1", "fc2", "fc3")
CASES: dict[str, dict[str, Any]] = {
    "whole": {},
    "pieces": {"micro_batch": 3},
    "single": {"micro_batch": 1},
    "frozen": {"freeze": ["features", "fc2"], "init": {"from": "x"}},
    "one layer": {"freeze": ["features", "fc1", "fc3"], "init": {"from": "x"}},
    "exact": {"reproducible": "exact"},
    "exact, frozen": {"reproducible": "exact", "freeze": ["features"], "init": {"from": "x"}},
    "norm": {"batch_norm": True},
    "bf16": {"precision": "bf16"},
    "bf16 sums": {"exchange_precision": "bf16"},
    "bf16 sums by ddp": {"exchange": "ddp", "exchange_precision": "bf16"},
}  # fmt: skip
POWERS = "takes a power of two of workers"
FLOAT32 = [name for name in CASES if not name.startswith("bf16")]


def gradients(world: World, s: Any, step: int) -> dict[str, Tensor]:
    model = net(s)
    optimise.freeze(model, s)
    Step(model, world, s, ORDER).gradients(share(step, world), step)
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def found(world: World) -> dict[str, Any]:
    """A batch of 22, and the epoch's last one, of 3, which leaves some of four workers without images."""
    by_case: dict[str, Any] = {}
    for name, changes in CASES.items():
        ways = ("factors", "ddp") if "exchange" not in changes else ("ddp",)
        if world.size == 3 and ("reproducible" in changes or "batch_norm" in changes):
            continue
        by_case[name] = {
            (way, step): gradients(world, settings(**{"dropout": 0.5, "exchange": way, **changes}), step)
            for way in ways
            for step in (1, 6)
        }
    return by_case


@pytest.fixture(scope="module")
def worlds() -> dict[int, list[dict[str, Any]]]:
    torch.set_num_threads(1)
    return {1: [found(World.single())], **{size: together(size, found) for size in (2, 3, 4)}}


def relative(a: Tensor, b: Tensor) -> float:
    return float(((a - b).norm() / b.norm()).detach())


@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize("case", FLOAT32)
def test_both_ways_give_the_same_gradients(worlds: dict[int, list[dict[str, Any]]], size: int, case: str) -> None:
    if case not in worlds[size][0]:
        pytest.skip(POWERS)
    trained = {p for p, _ in net(settings(**CASES[case])).named_parameters()}
    for step in (1, 6):
        both = worlds[size][0][case]["factors", step], worlds[size][0][case]["ddp", step]
        assert both[0].keys() == both[1].keys() <= trained
        for name in both[0]:
            assert relative(both[0][name], both[1][name]) < (1e-6 if name.startswith("fc") else 1e-5), name


@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize("case", CASES)
def test_all_workers_come_to_the_same_bits(worlds: dict[int, list[dict[str, Any]]], size: int, case: str) -> None:
    if case not in worlds[size][0]:
        pytest.skip(POWERS)
    first, *others = (worker[case] for worker in worlds[size])
    for other in others:
        for key, expected in first.items():
            assert all(torch.equal(other[key][name], expected[name]) for name in expected), key


@pytest.mark.parametrize("size", [2, 4])
def test_bits_of_exact_factors_do_not_depend_on_the_workers(worlds: dict[int, list[dict[str, Any]]], size: int) -> None:
    alone = worlds[1][0]["exact"]
    for worker in worlds[size]:
        for key, expected in alone.items():
            assert all(torch.equal(worker["exact"][key][name], expected[name]) for name in expected), key


@pytest.mark.parametrize("size", [2, 3, 4])
def test_precisions_round_what_they_say_and_no_more(worlds: dict[int, list[dict[str, Any]]], size: int) -> None:
    """bf16 has 8 bits: a rounding is 2**-9 of a number at most, and a sum over workers has a few of them."""
    by_case, expected = worlds[size][0], worlds[size][0]["whole"]["ddp", 1]
    rounded = by_case["bf16 sums"]["factors", 1]
    for name in rounded:
        off = relative(rounded[name], expected[name])
        assert off < 1e-5 if name.startswith("fc") else 1e-4 < off < 0.02, name
    everything = by_case["bf16 sums by ddp"]["ddp", 1]
    assert all(1e-4 < relative(everything[name], expected[name]) < 0.02 for name in everything)


def test_factors_in_bf16_are_multiplied_in_float32() -> None:
    """The product that plain autocast rounds to bf16."""
    model, world = net(settings(dropout=0.0)), World.single()
    factors = Factors(model, FC, world)
    seen: list[Tensor] = []

    def look(_: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        seen.append(inputs[0])
        output.register_hook(seen.append)

    model.fc2.register_forward_hook(look)
    factors.begin([22])
    with torch.autocast("cpu", torch.bfloat16):
        scores = model(IMAGES[:22])
    factors.last()
    F.cross_entropy(scores.float(), LABELS[:22]).backward()
    factors.settle(1)
    x, gradient = seen
    assert x.dtype == gradient.dtype == torch.bfloat16
    expected = gradient.double().t() @ x.double()
    assert model.fc2.weight.grad.dtype == torch.float32
    assert relative(model.fc2.weight.grad, expected) < 1e-6
    assert relative(expected.bfloat16(), expected) > 1e-4
    assert relative(model.fc2.bias.grad, gradient.double().sum(0)) < 1e-6


class Traced(VGG):
    """Is compiled as far as torch.compile traces it, without the compilers that come after it, which take minutes."""

    def compile(self, *args: Any, **kwargs: Any) -> None:
        super().compile(backend="eager")


@pytest.mark.parametrize("way", [{"micro_batch": 11}, {"reproducible": "exact", "virtual_shards": 2}])
def test_a_compiled_net_has_the_same_gradients_and_is_compiled_but_once(
    way: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of fully-connected layers by factors, even of a single worker."""
    monkeypatch.setattr(wire, "ways", lambda s, *_: dict.fromkeys(FC, "factors"))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    found, graphs = [], []
    for compiled in (False, True):
        s = settings(compile=compiled, **way)
        model = Traced("A", 4, 32, 0.05) if compiled else net(s)
        model.load_state_dict(net(s).state_dict())
        step = Step(model, World.single(), s, ORDER)
        for t in range(2):
            step.gradients(share(t, World.single()), t)
            graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
        found.append({name: p.grad for name, p in model.named_parameters()})
    assert graphs[1] == 0 < graphs[2] == graphs[3]
    for name, expected in found[0].items():
        assert relative(found[1][name], expected) < 1e-5, name


def test_names_of_parameters_and_scores_stay_as_they_were() -> None:
    s = settings(dropout=0.0)
    plain, model = net(s), net(s)
    factors = Factors(model, FC, World.single())
    assert list(model.state_dict()) == list(plain.state_dict())
    assert [p.shape for p in model.parameters()] == [p.shape for p in plain.parameters()]
    for grown in (IMAGES[:2], torch.randn(1, 3, 64, 96)):
        assert torch.equal(model.dense()(grown), plain.dense()(grown))
    F.cross_entropy(model(IMAGES[:5]), LABELS[:5]).backward()
    assert model.fc1.weight.grad is not None, "outside of a step it is a layer like others"
    assert not factors.active


def spoil(model: VGG, kind: int) -> None:
    """Not at all; one bit; two that make up for one another in a sum; two rows in each other's place."""
    bits = model.fc2.weight.detach().view(torch.int32)
    if kind == 3:
        bits[[0, 1]] = bits[[1, 0]].clone()
    elif kind:
        bits[0, 0] += 1
        bits[0, 1] -= kind - 1


def spoilt(world: World) -> list[str | None]:
    answers = []
    for kind in range(4):
        torch.manual_seed(3)
        model = VGG("A", 4, 32, 0.05)
        if world.rank == world.size - 1:
            spoil(model, kind)
        answers.append(exchange.differing(model, world))
    return answers


def test_weights_that_differ_are_found_and_named() -> None:
    for answers in together(2, spoilt):
        assert answers == [None, "fc2.weight", "fc2.weight", "fc2.weight"]


def test_so_they_are_by_the_sums_that_a_gpu_makes() -> None:
    found = []
    for kind in range(4):
        torch.manual_seed(3)
        model = VGG("A", 4, 32, 0.05)
        spoil(model, kind)
        found.append(int(exchange._hashed_on_device(model.fc2.weight.detach())))
    assert len(set(found)) == 4
    counts = torch.tensor(5)
    assert int(exchange._hashed_on_device(counts)) != int(exchange._hashed_on_device(counts + 1))


def mixed(world: World) -> dict[str, Any]:
    """Worker 1 has another kind of device, and cannot compute in bf16."""
    kind, bf16 = exchange._kind, cluster_step.uses_bf16
    exchange._kind = lambda world: f"{kind(world)} {world.rank}"
    cluster_step.uses_bf16 = lambda *_: world.rank == 0
    found = {}
    for way in ("auto", "factors"):
        model, s = net(settings()), settings(exchange=way)
        step = Step(model, world, s, ORDER)
        step.gradients(share(0, world), 0)
        found[way] = (step.unlike, step.bf16, {name: p.grad for name, p in model.named_parameters()})
    exchange._kind, cluster_step.uses_bf16 = kind, bf16
    model = net(settings())
    Step(model, world, settings(exchange="ddp"), ORDER).gradients(share(0, world), 0)
    return {**found, "ddp": {name: p.grad for name, p in model.named_parameters()}}


def test_workers_of_two_kinds_go_one_way_in_one_precision() -> None:
    for found in together(2, mixed):
        assert found["auto"][:2] == (True, False)
        assert found["factors"][:2] == (False, False), "since they are asked for"
        for name, expected in found["ddp"].items():
            assert torch.equal(found["auto"][2][name], expected)
            assert relative(found["factors"][2][name], expected) < 1e-5


def unlike(world: World, stage: Stage) -> str:
    """Worker 1 multiplies as another kind of GPU might."""
    if world.rank == 1:
        multiply = cluster_factors._product
        cluster_factors._product = lambda gradients, x: multiply(gradients, x) * (1 + 1e-6)
    with pytest.raises(TrainingError) as caught:
        train(stage, world, lambda record: None)
    return str(caught.value)


def test_workers_that_come_apart_end_training_with_the_layer_and_the_place(
    digits: tuple[str, str], tmp_path: Path
) -> None:
    stage = Stage("a", stage_settings(epochs=1), *digits, str(tmp_path))
    for line in together(2, unlike, stage):
        assert line == (
            "the workers' weights differ (fc2.weight) in epoch 1 before step 3: their devices, libraries or "
            "numbers of threads may not be alike, without which `exchange: ddp` can do. Checkpoints of before are kept"
        )
    assert checkpoint.newest(Location.of(tmp_path)) is None
