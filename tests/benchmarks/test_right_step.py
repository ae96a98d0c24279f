"""What the part `right` says of steps and layers that are wrong."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from benchmarks import gpu_right, gpu_step, made, report, right_step
from benchmarks.loops import Case
from benchmarks.report import Findings
from benchmarks.setting import Setting
from cluster import exchange
from cluster.vgg import VGG


def found(setting: Setting) -> Findings:
    return report.read(setting.folder / "report.jsonl")


def compiled_by(monkeypatch: pytest.MonkeyPatch, change: Callable[[Tensor], Tensor]) -> list[int]:
    """As if there were a GPU's compilers. A compiled net is traced, and its scores are changed. Its calls."""
    monkeypatch.setattr(made, "lacking_to_compile", lambda setting: None)
    compile_plainly, calls = nn.Module.compile, []

    def compiled(net: VGG, *, mode: str) -> None:
        compile_plainly(net, backend="eager")
        forward = net.forward

        def changed(images: Tensor, keys: Tensor | None = None) -> Tensor:
            calls.append(len(images))
            return change(forward(images, keys))

        net.forward = torch.compiler.disable(changed)  # type: ignore[method-assign, no-untyped-call]

    monkeypatch.setattr(VGG, "compile", compiled)
    return calls


@pytest.mark.parametrize("check", [right_step._compiled, right_step._compiled_exact])
def test_a_compiled_net_is_compared(
    setting: Setting, monkeypatch: pytest.MonkeyPatch, check: Callable[[Setting], None]
) -> None:
    calls = compiled_by(monkeypatch, lambda scores: scores)
    check(setting)
    (compared,) = found(setting).checks
    assert compared.value == 0
    assert len(calls) > 3, "it is the compiled net"
    assert len(set(calls)) == (2 if check is right_step._compiled else 1)


@pytest.mark.parametrize("factor", [1.5, 1.06])
def test_wrong_gradients_of_a_compiled_net_fail_a_check(
    setting: Setting, monkeypatch: pytest.MonkeyPatch, factor: float
) -> None:
    """Those that a step itself refuses, and smaller mistakes."""
    compiled_by(monkeypatch, lambda scores: scores * factor)
    right_step._compiled(setting)
    (compared,) = found(setting).checks
    assert not compared.passed
    assert not compared.goal
    refused = [note for note in found(setting).notes if "leave compile off" in note]
    assert len(refused) == (factor == 1.5)


def test_a_compiled_step_in_bf16_that_is_refused_is_a_row(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled_by(monkeypatch, lambda scores: scores * 0)
    bench = gpu_step._Bench(setting)
    setting.each([bench.own_piece(Case(net="A", how="CUDA graphs"))])
    ((row,),) = found(setting).tables.values()
    assert row["precision"] == "bf16"
    assert "gets the gradient of" in str(row["why"])
    assert found(setting).error is None


def test_hashes_that_overlook_a_bit_or_differ_are_told_of(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    right_step._hashes(setting)
    assert [check.value for check in found(setting).checks] == [0, 0]
    monkeypatch.setattr(exchange, "hashed_on_device", lambda tensor: (tensor.view(torch.int32) >> 8).long().sum())
    right_step._hashes(setting)
    assert [check.value for check in found(setting).checks[2:]] == [0, 8], "the lowest ones"
    strides = {True: 1, False: 2}
    monkeypatch.setattr(exchange, "hashed_on_device", lambda tensor: strides[tensor.is_contiguous()])
    right_step._hashes(setting)
    assert not found(setting).checks[4].passed


def rounded_to_tf32(x: Tensor) -> Tensor:
    """To 10 bits behind the point, to the nearest."""
    bits = x.detach().clone().view(torch.int32)
    return (bits + 0x1000 & ~0x1FFF).view(torch.float32)


def test_layers_in_tf32_are_told_from_those_in_float32(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    passed = gpu_right._passed

    def rounded(layer: nn.Module, x: Tensor, bf16: bool) -> dict[str, Tensor]:
        if x.dtype == torch.float32 and not bf16:
            x = rounded_to_tf32(x)
            for parameter in layer.parameters():
                parameter.data = rounded_to_tf32(parameter)
        return passed(layer, x, bf16)

    monkeypatch.setattr(gpu_right, "_passed", rounded)
    gpu_right._layers(setting)
    single, half = found(setting).checks
    assert not single.passed
    assert single.value < 1e-3, "it is rounding"
    assert half.passed
