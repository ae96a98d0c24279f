"""The measurement of tests, rehearsed on the CPU."""

import time
from dataclasses import replace

from benchmarks import gpu_tests, pictures, report
from benchmarks.setting import Setting
from pipelines.shards import DataSet

_WHOLE = "Tests of D at three scales, with mirror images"


def test_the_measurement_of_tests_comes_to_its_end(setting: Setting) -> None:
    gpu_tests.run(setting)
    found = report.read(setting.folder / "report.jsonl")
    assert found.passed, found
    whole = found.tables[_WHOLE]
    assert {(row["mode"], row["precision"]) for row in whole} == {
        (mode, precision) for mode in ("dense", "multi-crop") for precision in ("float32", "tf32", "bf16")
    }
    assert all(row["images/s"] > 0 and 0 < row["in the net %"] <= 100 for row in whole)  # type: ignore[operator]
    beside = {(row["mode"], row["precision"]): row for row in found.tables["Probabilities, beside those of float32"]}
    assert beside["dense", "tf32"]["farthest off"] == 0, "a CPU has no tf32"
    assert 0 < beside["dense", "bf16"]["farthest off"] < 0.05  # type: ignore[operator]
    assert all(0.15 < row["first one, mean"] < 0.999 for row in beside.values())  # type: ignore[operator]


def test_what_there_is_no_time_for_is_left_out(setting: Setting) -> None:
    data = DataSet.open(str(pictures.training_set(setting, 2)))
    subject = gpu_tests._subject(replace(setting, until=time.monotonic()), data)
    gpu_tests._passes(subject)
    gpu_tests._test(subject, "multi-crop", 1, 2)
    found = report.read(setting.folder / "report.jsonl")
    assert found.tables == {}
    assert found.left_out == [f"multi-crop in {each}" for each in gpu_tests._PRECISIONS]
