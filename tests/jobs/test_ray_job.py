"""The main job as users start it: `ray start --head`, then `ray job submit jobs/demo.yaml`; with narrower nets
and fewer epochs than it is shipped with, which has its test in tests/soak/soak_demo.py."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.jobs.ray_job import ROOT, STAGES, Submitting, check_the_demo, ray_head, runs

WIDTH, EPOCHS = 0.125, {"a": 3, "e": 3, "e-large": 1, "e-jitter": 2}
SET = (f"train.width={WIDTH}", *(f"stages.{stage}.epochs={epochs}" for stage, epochs in EPOCHS.items()))
DEMO = ("--", "jobs/demo.yaml", *(word for setting in SET for word in ("--set", setting)))


@pytest.fixture(scope="module")
def ray() -> Iterator[Submitting]:
    with ray_head() as head:
        yield head


@pytest.fixture(scope="module")
def demo(ray: Submitting) -> str:
    """What it said."""
    return ray.submit(ROOT, *DEMO)


def test_the_demo_is_tracked_and_its_nets_leave(ray: Submitting, demo: str) -> None:
    check_the_demo(ray.home, demo, single_error=0.3, multi_error=0.12)


def test_a_finished_job_that_is_submitted_again_trains_and_tests_nothing(ray: Submitting, demo: str) -> None:
    del demo
    before = posteriors_of(ray.home)
    assert len(before) >= len(STAGES)
    again = ray.submit(ROOT, *DEMO)
    assert again.count("done, finished after") == len(STAGES)
    assert posteriors_of(ray.home) == before


def posteriors_of(home: Path) -> dict[str, tuple[int, int]]:
    """Which file holds the posteriors of each, and since when."""
    files = {file.name: file.stat() for file in (home / "verydeep/runs/demo/tests").glob("*.parquet")}
    return {name: (file.st_ino, file.st_mtime_ns) for name, file in files.items()}


def test_a_copy_of_the_repository_is_submitted_from_another_folder(ray: Submitting, demo: str, tmp_path: Path) -> None:
    """Changed, so that it is certainly this copy that runs, in its workers, too; and what the other job has done is not
    done again."""
    del demo
    copy = tmp_path / "elsewhere"
    copy.mkdir()
    tracked = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in tracked.stdout.splitlines():
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name)
    job = copy / "jobs" / "demo.yaml"
    text, _, _ = job.read_text().partition("  e: ")
    text, changes = re.subn(r"epochs: \d+", f"epochs: {EPOCHS['a']}", text)
    assert changes == 1, "stage a alone is left"
    text, changes = re.subn(r"width: 0\.25", f"width: {WIDTH}", text)
    assert changes == 1
    more = "  more: {net: A, scale: 34, epochs: 1, init: {from: a}}\nevaluations: {all: {models: [more]}}\n"
    job.write_text(text.replace("name: demo", "name: copied") + more)
    output = ray.submit(copy, "--working-dir", ".", "--", "jobs/demo.yaml")
    assert "copied: 1438 images" in output
    assert output.count("in job demo (finished after") == 1
    parent, children = runs(ray.home, "copied")
    assert set(children) == {"more"}
    assert {run.info.status for run in (parent, *children.values())} == {"FINISHED"}
