"""The parts of the GPU benchmark, small and on the CPU: their code runs, and what they compare is equal."""

from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from benchmarks import gpu_input, gpu_right, gpu_step, report, right_exchange, right_input
from benchmarks.loops import Case
from benchmarks.report import Findings, Report
from benchmarks.setting import Setting
from cluster import torchrun, turns
from cluster.factors import Factors
from cluster.world import World


def found(setting: Setting) -> Findings:
    return report.read(setting.folder / "report.jsonl")


def test_what_is_to_be_right_is_so_on_the_cpu(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(right_input, "check", lambda setting: None)  # of a test of its own
    monkeypatch.setattr(right_exchange, "check_many", lambda setting: None)  # the same
    gpu_right.run(setting)
    findings = found(setting)
    assert findings.error is None
    assert findings.passed, [check for check in findings.checks if not check.passed]
    assert len(findings.checks) >= 25
    assert len(findings.tables[gpu_right._LAYERS]) == 16


def test_gradients_of_several_workers_are_compared(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    """All but the starting of workers, which `verydeep bench exchange` has a test of."""

    def run(program: str, task: torchrun.Task, workers: int, folder: Path) -> dict[str, object]:
        assert isinstance(task, turns.Task)
        assert (program, workers) == ("cluster.turns", 2)
        assert task.settings.batch % workers == 1
        return {"differences": asdict(turns.run(task, World.single()))["differences"]}

    monkeypatch.setattr(torchrun, "run", run)
    right_exchange.check_many(setting)
    (check,) = found(setting).checks
    assert (check.value, check.most) == (0, 1e-6)
    monkeypatch.setattr(torchrun, "run", lambda *_: {"differences": {"factors": float("nan")}})
    right_exchange.check_many(setting)
    assert [check.passed for check in found(setting).checks] == [True, False]


def test_a_wrong_factor_is_told_of(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if a gathering lost an image."""
    gathered = Factors.gathered

    def losing(self: Factors, own: torch.Tensor) -> object:
        own[-1] = 0
        return gathered(self, own)

    monkeypatch.setattr(Factors, "gathered", losing)
    right_exchange.check(setting)
    checks = found(setting).checks
    assert [check.passed for check in checks] == [False, False]


def test_a_wrong_net_is_told_of(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if float32 products were rounded to TF32."""
    outcome = gpu_right._outcome

    def rough(net: torch.nn.Module, images: torch.Tensor, *others: object, **options: bool) -> object:
        scores, gradients = outcome(net, images, *others, **options)
        return (scores * 1.001 if images.dtype == torch.float32 else scores), gradients

    monkeypatch.setattr(gpu_right, "_outcome", rough)
    gpu_right._net(setting, "A", 2)
    assert [check.name for check in found(setting).checks if not check.passed] == ["A: float32 scores"]


def test_steps_of_all_kinds_run(setting: Setting) -> None:
    Report(setting.folder / "input.jsonl").row(gpu_input._BEST, images_per_second=50.0)
    gpu_step.run(setting)
    findings = found(setting)
    assert findings.error is None
    assert findings.passed, [check for check in findings.checks if not check.passed]
    rows = findings.tables[gpu_step._STEPS]
    assert len(rows) == 21
    assert all(row["images_per_second"] for row in rows)
    assert {row["what"] for row in rows} == {"bare", "Step"}
    (step,) = (row for row in rows if (row["what"], row["net"], row["how"]) == ("Step", "D", "channels last, eager"))
    (judged,) = (check for check in findings.checks if check.name.startswith("images a second of the input alone"))
    assert judged.value == pytest.approx(50 / step["images_per_second"])  # type: ignore[operator]


def test_running_out_of_memory_is_a_row(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    def too_large(setting: Setting, case: Case) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(gpu_step, "bare_step", too_large)
    bench = gpu_step._Bench(setting)
    bench.find_peaks()
    setting.each([bench.bare_piece(Case(batch=512))])
    findings = found(setting)
    assert findings.error is None
    (row,) = findings.tables[gpu_step._STEPS]
    assert row["how"] == "channels last, eager: out of memory"
    assert row["ms"] is None
