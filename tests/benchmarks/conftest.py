"""What a part of a benchmark is given."""

import time
from pathlib import Path

import pytest
import torch

from benchmarks.report import Report
from benchmarks.setting import Setting


@pytest.fixture
def setting(tmp_path: Path) -> Setting:
    torch.set_num_threads(1)  # small as all is, threads would wait for one another
    until = time.monotonic() + 600
    return Setting(torch.device("cpu"), True, tmp_path, None, until, Report(tmp_path / "report.jsonl"))
