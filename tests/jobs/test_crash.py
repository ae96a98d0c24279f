"""A job that is killed comes to the same nets, bit by bit, as one that is left alone."""

import re
from pathlib import Path

import torch

from cluster import wire
from jobs import schema
from tests.cluster.groups import together
from tests.jobs.crash import CrashedJob, Kill, job, left_alone

EPOCHS = 4  # of 19 steps: seconds in all, of which the kills take half a one
KILLS = (Kill("worker", True, 0.05), Kill("driver", True, 0.1), Kill("stop", True, 0.15))


def test_a_job_that_is_killed_and_stopped_comes_to_the_same_nets(digits: tuple[str, str], tmp_path: Path) -> None:
    """A worker, then the driver, and a stop; all workers at once, and twenty random moments: `make soak`. The one that
    is left alone has no Ray either."""
    data = f"{{train: {digits[0]}, val: {digits[1]}}}"
    killed = CrashedJob(tmp_path, "killed", job(tmp_path, "killed", EPOCHS, data))
    for settings in schema.load(killed.file).stages.values():
        assert set(wire.ways(settings, 10, 2, bf16=False).values()) == {"ddp", "factors"}
    said = killed.run(KILLS)
    assert said.count("training goes on from its newest checkpoint") == 1
    assert re.search("goes on, after (epoch|step)", said), "by the next driver"
    expected, found = together(2, left_alone, killed.file, tmp_path / "alone")[0], killed.weights(tmp_path)
    assert set(found) == set(expected)
    assert all(torch.equal(found[key], expected[key]) for key in expected)
