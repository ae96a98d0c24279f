"""A run that has finished, for all tests of what is made of it."""

import shutil
from pathlib import Path

import pytest

from tests.jobs.finished import finished_run


@pytest.fixture(scope="session")
def run(digits: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished_run(digits, tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="session")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of MLflow's that holds nothing yet: to make one takes a second, to copy it none."""
    from mlflow import MlflowClient  # seconds, of which most files here have no need

    file = tmp_path_factory.mktemp("database") / "mlflow.db"
    MlflowClient(f"sqlite:///{file}").search_experiments()
    return file


@pytest.fixture
def copied(run: Path, tmp_path: Path) -> Path:
    """The same in a place of its own, to be damaged."""
    return Path(shutil.copytree(run, tmp_path / "copied"))
