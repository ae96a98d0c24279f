"""Which of a job's stored results are of the job as it is now: of its tests with their settings, and of the nets that
its stages deliver. Pure. Of nets out of files the stored results tell nothing that could be compared."""

from collections.abc import Mapping, Sequence

from cluster.settings import EvaluationSettings
from cluster.views import scales_of
from jobs.results import Result, Subject
from jobs.schema import Job, is_file


def why_old(result: Result, job: Job, seals: Mapping[str, str | None]) -> str | None:
    """None if it is not. `seals`: of the net that each stage delivers, None before there is one."""
    settings = job.evaluations.get(result.test)
    if settings is None:
        return "the job has no such test any more"
    if result.mode not in settings.mode or not any(_is_of(result, group, job, settings) for group in _groups(settings)):
        return "the settings of the test have changed since"
    tested = {subject.model: subject.seal for subject in result.subjects if subject.model in job.stages}
    other = [stage for stage, seal in tested.items() if seals.get(stage) != seal]
    return f"it is of an earlier net of {' and '.join(other)}" if other else None


def untested(job: Job, results: Sequence[Result]) -> list[str]:
    """The tests of the job that have not come to all of their results. `results`: those that are not old."""
    return [
        name
        for name, settings in job.evaluations.items()
        for own in [[result for result in results if result.test == name]]
        if not all(
            any(result.mode == mode and _is_of(result, group, job, settings) for result in own)
            for group in _groups(settings)
            for mode in settings.mode
        )
    ]


def _groups(settings: EvaluationSettings) -> list[tuple[str, ...]]:
    """The models of each line of the test's table."""
    models = tuple(dict.fromkeys(settings.models))
    return [models] if settings.fuse else [(model,) for model in models]


def _is_of(result: Result, group: tuple[str, ...], job: Job, settings: EvaluationSettings) -> bool:
    return len(group) == len(result.subjects) and all(
        _is_as_set(subject, model, job, settings) for subject, model in zip(result.subjects, group, strict=True)
    )


def _is_as_set(subject: Subject, model: str, job: Job, settings: EvaluationSettings) -> bool:
    if is_file(model):
        return subject.model not in job.stages and subject.precision == settings.precision
    stage = job.stages[model]
    mirror = stage.flip if settings.mirror is None else settings.mirror
    scales = scales_of(settings.scales, stage.scale, stage.input_size)
    wanted = (model, scales, mirror, settings.precision)
    return (subject.model, subject.scales, subject.mirror, subject.precision) == wanted
