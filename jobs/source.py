"""What `show` and `bench step` look at: a data set by itself, or what a stage of a job is fed with."""

from dataclasses import dataclass

from cluster.settings import StageSettings
from jobs import schema
from pipelines.errors import SettingsError


@dataclass(frozen=True)
class Source:
    """`data`: the training set's place. `settings`: of the stage; without a job, the defaults. `title`: where these
    come from, if from a job. `workers`: of the job, at most."""

    data: str
    settings: StageSettings
    title: tuple[str, ...] = ()
    workers: int | None = None


def open_source(source: str, stage: str | None, scale: list[int] | None) -> Source:
    """`scale`: as given on the command line, needed without a job. Raises SettingsError or DataError."""
    if not source.endswith((".yaml", ".yml")):
        if stage is not None:
            raise SettingsError(f"--stage {stage}: {source} is not a job file (.yaml), so has no stages")
        if scale is None:
            raise SettingsError("give --scale, the shorter side S in pixels, or its smallest and largest value")
        return Source(source, StageSettings.model_construct(net="A", scale=scale_range(scale)))
    job = schema.load(source)
    from jobs import check  # slow imports

    name = next(iter(job.stages)) if stage is None else stage
    if name not in job.stages:
        raise SettingsError(f"--stage {name}: there is no such stage; there are {', '.join(job.stages)}")
    title = (f"stage {name} of {source}",)
    return Source(check.data_sets(job).train, job.stages[name], title, job.cluster.workers[1])


def scale_range(scale: list[int]) -> tuple[int, int]:
    """Raises SettingsError."""
    if len(scale) > 2:
        raise SettingsError(f"--scale {' '.join(map(str, scale))}: give S, or its smallest and largest value")
    return scale[0], scale[-1]
