"""What is wrong between parts of a job that are each right; pure."""

from collections.abc import Iterable, Iterator
from graphlib import CycleError

from cluster import init, layers
from cluster.settings import StageSettings
from jobs import graph, problems
from jobs.document import Path
from jobs.job import Job, is_file, needs


def of(job: Job) -> Iterator[tuple[Path, str]]:
    """The path of the setting at fault, and what is wrong with it."""
    least, most = job.cluster.workers
    for name, stage in job.stages.items():
        if refusal := next(filter(None, (stage.refusal(workers) for workers in _some(least, most))), None):
            yield ("stages", name, "reproducible" if stage.reproducible == "exact" else "batch_norm"), refusal
        for path, message in (*_start(job, stage), *_after(job, stage)):
            yield ("stages", name, *path), message
    yield from _cycles(job)
    for name in job.evaluations:
        for path, message in _test(job, name):
            yield ("evaluations", name, *path), message


def frozen_at_random(stage: StageSettings, source: str) -> str | None:
    """What is wrong if layers are frozen that take no weights from a net of configuration `source`."""
    random = stage.frozen - set(init.copied(source, stage.net, stage.left_out))
    if not random:
        return None
    names = ", ".join(name for name in layers.of(stage.net) if name in random)
    if random <= stage.left_out:
        return f"{names} would keep random weights, being left out by init.except"
    return f"{names} would keep random weights: a net {stage.net} does not get them from a net {source}"


def _some(least: int, most: int) -> Iterable[int]:
    """Numbers of workers; if one of a range is refused, so is one of these: of three in a row one is no power of 2."""
    return dict.fromkeys(n for n in (least, least + 1, least + 2, most) if n <= most)


def _start(job: Job, stage: StageSettings) -> Iterator[tuple[Path, str]]:
    """Of what a stage starts from."""
    source, path = stage.init.source, ("init", "from")
    if source is None or is_file(source):
        return
    if source not in job.stages:
        yield path, problems.nothing("stage", source, job.stages)
        return
    other = job.stages[source]
    for key, layer in init.to_be_equal(init.copied(other.net, stage.net, stage.left_out)):
        if key == "classes":  # the data's
            continue
        mine, its = getattr(stage, key), getattr(other, key)
        if mine != its:
            misfit = f"{layer} does not fit" if layer else "the layers do not fit"
            yield path, f"{key} is {its} in stage {source} and {mine} in this one: {misfit}"
    if (problem := frozen_at_random(stage, other.net)) is not None:
        yield ("freeze",), problem


def _after(job: Job, stage: StageSettings) -> Iterator[tuple[Path, str]]:
    for i, other in enumerate(stage.after):
        if other not in job.stages:
            yield ("after", i), problems.nothing("stage", other, job.stages)


def _test(job: Job, name: str) -> Iterator[tuple[Path, str]]:
    test = job.evaluations[name]
    for i, model in enumerate(test.models):
        if is_file(model):
            continue
        if model not in job.stages:
            yield ("models", i), problems.nothing("stage", model, job.stages)
            continue
        crop = job.stages[model].input_size
        for k, scale in enumerate(test.scales if isinstance(test.scales, list) else ()):
            if scale < crop:
                yield ("scales", k), f"Q = {scale} is smaller than the input_size of {model}, {crop}"


def _cycles(job: Job) -> Iterator[tuple[Path, str]]:
    try:
        graph.in_order(needs(job))
    except CycleError as error:
        ring = error.args[1][:0:-1]  # each waits for the next
        at = min(range(len(ring)), key=lambda i: list(job.stages).index(ring[i]))
        ring = [*ring[at:], *ring[:at], ring[at]]
        yield ("stages", ring[0]), f"stages wait for each other: {' <- '.join(ring)}"
