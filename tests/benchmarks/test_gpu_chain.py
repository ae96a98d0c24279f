"""What the chain of the GPU benchmark is, by the time there is."""

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import gpu_chain
from benchmarks.setting import Setting
from jobs import schema


@pytest.mark.parametrize(
    ("seconds", "stages"),
    [
        (400, {"a": None, "d": "a", "d-384": "d", "d-jitter": "d-384"}),
        (120, {"a": None, "d": "a", "d-jitter": "d"}),
        (80, {"a": None, "d-jitter": "a"}),
    ],
)
def test_with_little_time_the_chain_is_shorter_and_its_tests_are_all_there(
    setting: Setting, tmp_path: Path, seconds: float, stages: dict[str, str | None]
) -> None:
    chosen = replace(setting, small=False, until=time.monotonic() + seconds)
    file = tmp_path / "chain.yaml"
    file.write_text(json.dumps(gpu_chain._job(chosen, "train", "val", tmp_path)))
    job = schema.load(file)
    assert {name: stage.init.source for name, stage in job.stages.items()} == stages
    assert [stage.net for stage in job.stages.values()] == ["A", *["D"] * (len(stages) - 1)]
    assert job.evaluations.keys() == {"single", "several", "modes", "rounded", "fused"}
    assert set(job.evaluations["single"].models) == set(stages)
