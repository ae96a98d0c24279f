"""What the exchange sends, against sums by hand."""

from typing import Any

import pytest

from cluster import wire
from cluster.settings import StageSettings
from cluster.vgg import VGG


def settings(**changes: Any) -> StageSettings:
    return StageSettings.model_validate({"net": "D", "scale": 256, **changes})


def names(s: StageSettings, workers: int = 2, bf16: bool = False) -> list[str]:
    return [name for name, way in wire.ways(s, 1000, workers, bf16).items() if way == "factors"]


@pytest.mark.parametrize(("inputs", "outputs", "batch"), [(25088, 4096, 7042), (4096, 4096, 4096), (4096, 1000, 1608)])
def test_break_even_batches_are_those_of_the_design(inputs: int, outputs: int, batch: int) -> None:
    assert round(wire.break_even(inputs, outputs)) == batch
    assert wire.break_even(inputs, outputs, factor_bytes=2) == 2 * wire.break_even(inputs, outputs)
    assert wire.break_even(inputs, outputs, ddp_bytes=2) == wire.break_even(inputs, outputs) / 2


@pytest.mark.parametrize(
    ("batch", "expected"),
    [(256, ["fc1", "fc2", "fc3"]), (1600, ["fc1", "fc2", "fc3"]), (1620, ["fc1", "fc2"]), (4200, ["fc1"]), (7050, [])],
)
def test_the_cheaper_way_is_taken_layer_by_layer(batch: int, expected: list[str]) -> None:
    assert names(settings(batch=batch)) == expected
    assert names(settings(batch=batch), workers=512) == expected, "whatever the number of workers"
    assert names(settings(batch=2 * batch), bf16=True) == expected, "numbers of half the size"


def test_a_choice_that_is_made_is_kept_and_frozen_layers_send_nothing() -> None:
    assert names(settings(exchange="ddp")) == []
    assert names(settings(exchange="factors", batch=9000)) == ["fc1", "fc2", "fc3"]
    start = {"init": {"from": "x"}}
    frozen = settings(freeze=["fc1", "block1"], **start)
    assert names(frozen) == ["fc2", "fc3"]
    assert {"fc1", "conv1_1"}.isdisjoint(each.layer for each in wire.sent(frozen, 1000, 2, False))


def test_one_worker_sends_nothing_and_multiplies_factors_only_for_the_sake_of_bits() -> None:
    assert names(settings(), workers=1) == []
    assert names(settings(reproducible="exact"), workers=1) == ["fc1", "fc2", "fc3"]
    assert all(each.bytes == 0 for each in wire.sent(settings(), 1000, 1, False))


@pytest.mark.parametrize("workers", [2, 4, 7])
@pytest.mark.parametrize("net", ["A", "C", "E"])
def test_bytes_are_those_of_the_nets_own_parameters(net: str, workers: int) -> None:
    s = settings(net=net, width=0.1, batch=64)
    shapes = {name: p.shape for name, p in VGG(net, 1000, 224, 0.1).named_parameters()}
    for each in wire.sent(s, 1000, workers, bf16=True):
        weight = shapes[f"{each.layer}.weight"]
        assert each.ddp_bytes == pytest.approx(2 * (workers - 1) / workers * 4 * (weight.numel() + weight[0]))
        if each.way == "factors":
            assert each.bytes == pytest.approx((workers - 1) / workers * 64 * (weight[0] + weight[1]) * 2)
        else:
            assert each.bytes == each.ddp_bytes


def test_vgg_d_at_batch_256_sends_a_seventh() -> None:
    found = wire.sent(settings(), 1000, 2, bf16=False)
    assert sum(each.ddp_bytes for each in found) == pytest.approx(4 * 138_357_544)
    ratio = sum(each.ddp_bytes for each in found) / sum(each.bytes for each in found)
    assert ratio == pytest.approx(6.9, abs=0.1)


def test_sums_in_bf16_take_half_and_exact_ones_go_along_a_tree() -> None:
    ddp = sum(each.bytes for each in wire.sent(settings(exchange="ddp"), 1000, 4, False))
    half = sum(each.bytes for each in wire.sent(settings(exchange="ddp", exchange_precision="bf16"), 1000, 4, False))
    assert half == ddp / 2
    exact = settings(exchange="ddp", reproducible="exact")
    assert sum(each.bytes for each in wire.sent(exact, 1000, 4, False)) == 2 * 4 * 138_357_544
