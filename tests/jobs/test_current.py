"""That a report shows the results of the job's tests and nets as they are now alone, and says what it leaves out."""

import re
from collections import Counter
from pathlib import Path

import pytest

from cluster.settings import EvaluationSettings
from jobs import current, report, schema, stored, summary
from jobs.store import DONE, JOB, write_text
from tests.jobs.finished import finished_stage
from tests.jobs.page import Page, read


def left_out(folder: Path) -> dict[str, list[str]]:
    """By the test, which results a report leaves out, and that nothing else tells of them."""
    job = read(folder)
    page = Page(report.make(job, None, None))
    assert job.finished == page.said("div")[0].startswith("Finished")
    said = [text for text in page.said("p") if text.startswith("Left out")]
    assert len(said) == len(job.old)
    lost = {summary.title(result) for result, _ in job.old}
    assert lost.isdisjoint(page.said("p"))
    assert not any(remark.endswith(title) for _, _, remark in summary.tiles(job) for title in lost)
    found: dict[str, list[str]] = {}
    for (result, why), text in zip(job.old, said, strict=True):
        assert text == f"Left out, {summary.title(result)} of the test {result.test}: {why}."
        found.setdefault(result.test, []).append(why)
    return found


def test_tests_of_a_stage_that_is_trained_anew_are_left_out(copied: Path) -> None:
    assert left_out(copied) == {}
    store = stored.store_of(str(copied))
    folders = store.noted_stages()
    (Path(folders["e"].path.path) / DONE).unlink()
    why = ["it is of an earlier net of e"]
    assert left_out(copied) == {"single": why, "several": 2 * why, "together": why}
    again = store.stage("e", "f" * 64)
    finished_stage(again, seed=1)
    store.note_stages({**folders, "e": again})
    assert left_out(copied) == {"single": why, "several": 2 * why, "together": why}
    assert "Not tested yet: single, several, together." in summary.status(read(copied))
    assert [result.model for result in read(copied).results] == ["a"]
    finished_stage(folders["e"])
    store.note_stages(folders)
    assert left_out(copied) == {}
    assert read(copied).finished


@pytest.mark.parametrize(
    ("change", "lost", "finished"),
    [
        ({"single": None}, {"single": 2}, True),
        ({"single": {"models": ["e"]}}, {"single": 1}, True),
        ({"single": {"models": ["e", "e", "a"]}}, {}, True),
        ({"single": {"models": ["a", "e"], "scales": [34]}}, {"single": 1}, False),
        ({"single": {"models": ["a", "e"], "scales": "several"}}, {"single": 2}, False),
        ({"single": {"models": ["a", "e"], "mirror": False}}, {"single": 2}, False),
        ({"single": {"models": ["a", "e"], "mirror": True}}, {}, True),
        ({"single": {"models": ["a", "e"], "precision": "float32"}}, {}, True),
        ({"single": {"models": ["a", "e"], "precision": "tf32"}}, {"single": 2}, False),
        ({"single": {"models": ["a", "e"], "fuse": True}}, {"single": 2}, False),
        ({"together": {"models": ["a", "e"], "scales": [34]}}, {"together": 1}, False),
        ({"several": {"models": ["e"], "scales": [40, 36, 32], "mode": ["both"]}}, {"several": 1}, True),
        ({"several": {"models": ["e"], "scales": "several", "mode": ["dense", "multi-crop"]}}, {"several": 1}, False),
        ({"new": {"models": ["a"]}}, {}, False),
    ],
)  # fmt: skip
def test_results_of_tests_with_other_settings_are_left_out(
    change: dict[str, dict[str, object] | None], lost: dict[str, int], finished: bool, run: Path
) -> None:
    job = read(run)
    changed = {name: raw and EvaluationSettings.model_validate(raw) for name, raw in change.items()}
    tests = {name: settings for name, settings in {**job.job.evaluations, **changed}.items() if settings}
    after = job.job.model_copy(update={"evaluations": tests})
    seals = {stage.name: stage.seal for stage in job.stages}
    whys = [(result.test, current.why_old(result, after, seals)) for result in job.results]
    assert Counter(test for test, why in whys if why) == lost
    shown = [result for result, (_, why) in zip(job.results, whys, strict=True) if not why]
    assert (not current.untested(after, shown)) == finished


def test_tests_that_the_job_has_no_more_are_left_out(copied: Path) -> None:
    job = read(copied)
    write_text(job.root / JOB, schema.resolved(job.job.model_copy(update={"evaluations": {}})))
    assert left_out(copied) == {
        test: count * ["the job has no such test any more"]
        for test, count in {"single": 2, "several": 2, "together": 1}.items()
    }
    assert read(copied).finished


def test_a_finished_stage_whose_net_is_gone_says_so(copied: Path) -> None:
    folder = stored.store_of(str(copied)).noted_stages()["a"].path
    (Path(folder.path) / "epoch-0003.safetensors").unlink()
    assert left_out(copied).keys() == {"single", "together"}
    (line,) = [line for line in summary.status(read(copied)) if line.startswith("Stage a")]
    assert re.fullmatch(r"Stage a has finished, but: \S+/epoch-0003.safetensors: .+", line)
