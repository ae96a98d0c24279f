"""A job's nodes as the first lines of its board: its stages in their order, then a test of each net that tests want."""

from collections.abc import Mapping

from cluster.settings import EvaluationSettings, StageSettings
from cluster.views import scales_of
from jobs import graph, schema
from jobs.line import Line
from jobs.results import scale_text
from jobs.schema import Job


def test_of(model: str) -> str:
    """The node's name."""
    return f"test of {model}"


def lines(job: Job, files: Mapping[str, str] | None = None) -> list[Line]:
    """All that the job consists of; nothing of it has begun. `files`: how nets out of files that tests name are
    called, by their names in the job file."""
    needs = schema.needs(job)
    stages = [Line(name, stage_title(job.stages[name]), tuple(needs[name])) for name in graph.in_order(needs)]
    wanted: dict[str, list[EvaluationSettings]] = {}
    for test in job.evaluations.values():
        for model in dict.fromkeys(test.models):
            wanted.setdefault(model, []).append(test)
    called = {model: (files or {}).get(model, model) for model in wanted}
    tests = [
        Line(test_of(called[model]), test_title(each, job.stages.get(model)), (model,) if model in job.stages else ())
        for model, each in wanted.items()
    ]
    return [*stages, *tests]


def stage_title(stage: StageSettings) -> str:
    """`net E, S 256 to 512`"""
    return f"net {stage.net}{'-BN' * stage.batch_norm}, S {scale_text(stage.scale)}"


def test_title(tests: list[EvaluationSettings], stage: StageSettings | None) -> str:
    """`dense and multi-crop, Q 256 384 512`: all that these tests look at. Without Q where the net is a file's, which
    says what it was trained with."""
    modes = {mode for test in tests for mode in test.mode}
    told = [mode for mode in ("dense", "multi-crop") if mode in modes or "both" in modes]
    found = {scale for test in tests for scale in _scales(test, stage)}
    return " and ".join(told) + (f", Q {' '.join(map(str, sorted(found)))}" if found else "")


def _scales(test: EvaluationSettings, stage: StageSettings | None) -> tuple[int, ...]:
    if stage is not None:
        return scales_of(test.scales, stage.scale, stage.input_size)
    return tuple(test.scales) if isinstance(test.scales, list) else ()
