"""The measurement of tests, rehearsed on the CPU."""

import time
from pathlib import Path

import torch

from benchmarks import gpu_tests, report
from benchmarks.report import Report
from benchmarks.setting import Setting


def test_the_measurement_of_tests_comes_to_its_end(tmp_path: Path) -> None:
    file = tmp_path / "tests.jsonl"
    gpu_tests.run(Setting(torch.device("cpu"), True, tmp_path, None, time.monotonic() + 600, Report(file)))
    found = report.read(file)
    assert found.passed, found
    whole = found.tables["Tests of D at three scales, with mirror images"]
    assert {(row["mode"], row["precision"]) for row in whole} == {
        (mode, precision) for mode in ("dense", "multi-crop") for precision in ("float32", "tf32", "bf16")
    }
    assert all(row["images/s"] > 0 and 0 < row["in the net %"] <= 100 for row in whole)  # type: ignore[operator]
    beside = {(row["mode"], row["precision"]): row for row in found.tables["Probabilities, beside those of float32"]}
    assert beside["dense", "tf32"]["farthest off"] == 0, "a CPU has no tf32"
    assert 0 < beside["dense", "bf16"]["farthest off"] < 0.05  # type: ignore[operator]
    assert all(0.3 < row["first one, mean"] < 0.99 for row in beside.values())  # type: ignore[operator]


def test_what_there_is_no_time_for_is_left_out(tmp_path: Path) -> None:
    file = tmp_path / "tests.jsonl"
    gpu_tests.run(Setting(torch.device("cpu"), True, tmp_path, None, time.monotonic(), Report(file)))
    found = report.read(file)
    modes = {row["mode"] for row in found.tables["Tests of D at three scales, with mirror images"]}
    assert modes == {"dense"}
    assert len(found.notes) == 3
