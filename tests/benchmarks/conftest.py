"""What a part of a benchmark is given."""

import time
from pathlib import Path

import pytest
import torch

from benchmarks.report import Report
from benchmarks.setting import Setting


@pytest.fixture
def setting(tmp_path: Path) -> Setting:
    until = time.monotonic() + 600
    return Setting(torch.device("cpu"), True, tmp_path, None, until, Report(tmp_path / "report.jsonl"))
