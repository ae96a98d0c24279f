"""A run that has finished, for all tests of what is made of it."""

import shutil
from pathlib import Path

import pytest

from tests.jobs.finished import finished_run


@pytest.fixture(scope="session")
def run(digits: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished_run(digits, tmp_path_factory.mktemp("run"))


@pytest.fixture
def copied(run: Path, tmp_path: Path) -> Path:
    """The same in a place of its own, to be damaged."""
    return Path(shutil.copytree(run, tmp_path / "copied"))
