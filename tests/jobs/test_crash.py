"""A job that is killed comes to the same nets, bit by bit, as one that is left alone."""

from pathlib import Path

import pytest
import torch

from tests.jobs.crash import CrashedJob, Kill

pytestmark = pytest.mark.cluster

KILLS = (Kill("worker", True, 0.2), Kill("driver", True, 0.4), Kill("workers", True, 0.6))


def test_a_job_whose_workers_and_driver_are_killed_comes_to_the_same_nets(tmp_path: Path) -> None:
    alone = CrashedJob(tmp_path, "alone", epochs=3)
    alone.run()
    killed = CrashedJob(tmp_path, "killed", epochs=3)
    said = killed.run(KILLS)
    assert said.count("training goes on from its newest checkpoint") == 2
    expected, found = alone.weights(tmp_path), killed.weights(tmp_path)
    assert set(found) == set(expected)
    assert all(torch.equal(found[key], expected[key]) for key in expected)
