"""The main job as it is shipped, with all its epochs, reaches its accuracy: some minutes."""

import pytest

from tests.jobs.ray_job import ROOT, check_the_demo, ray_head

pytestmark = pytest.mark.timeout(1800)


def test_the_demo_reaches_its_accuracy() -> None:
    with ray_head() as ray:
        said = ray.submit(ROOT, "jobs/demo.yaml")
        check_the_demo(ray.home, said, single_error=0.2, multi_error=0.05)
