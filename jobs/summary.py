"""What a report says first of a job: how it stands, its main numbers, its data and its chain of stages."""

from collections.abc import Iterator, Sequence
from statistics import median

from cluster import schedule
from jobs import tables
from jobs.results import Result, scale_text
from jobs.stored import Stored, StoredStage
from pipelines.location import public
from pipelines.shards import DataSet

Lines = list[tuple[str, ...]]  # of a table, the head first


def status(job: Stored) -> Iterator[str]:
    """What is to be known before anything else is read."""
    for stage in job.stages:
        problem = stage.problem and public(stage.problem)
        if not stage.finished:
            yield f"Stage {stage.name} has not finished: {problem or _done(stage)}."
        elif problem:
            yield f"Stage {stage.name} has finished, but: {problem}."
    if job.untested:
        yield f"Not tested yet: {', '.join(job.untested)}."
    for result, why in job.old:
        yield f"Left out, {title(result)} of the test {result.test}: {why}."


def _done(stage: StoredStage) -> str:
    done = f"{len(stage.epochs)} of at most {stage.settings.epochs} epochs are done"
    return done if stage.epochs else "no epoch is done"


def tiles(job: Stored) -> Iterator[tuple[str, str, str]]:
    """Label, number and remark of what is asked for first."""
    if job.results:
        best = min(job.results, key=lambda result: 1 - result.totals.accuracy)
        yield "top-1 error", *_error(best.totals.top1, best.totals.images, title(best))
        if tables.has_top5(best):
            yield "top-5 error", *_error(best.totals.top5, best.totals.images, "the same test")
    trained = [stage for stage in job.stages if stage.epochs]
    if trained:
        last = trained[-1]
        accuracy = last.epochs[last.best - 1].validation_accuracy
        yield "validation accuracy", tables.share_text(accuracy), f"middle crops, stage {last.name}, epoch {last.best}"
        epochs = sum(len(stage.epochs) for stage in trained)
        yield "training time", duration(job.seconds), f"{_count(epochs, 'epoch')} in {_count(len(trained), 'stage')}"


def _error(right: int, images: int, remark: str) -> tuple[str, str]:
    low, high = (100 * end for end in tables.interval(images - right, images))
    return f"{100 * (1 - right / images):.2f}\u00a0%", f"95 %: {low:.2f} to {high:.2f}; {remark}"


def title(result: Result) -> str:
    """`e-jitter, dense, Q 256 384 512, mirrored`"""
    names = " + ".join(subject.model for subject in result.subjects)
    scales = " + ".join(dict.fromkeys(" ".join(map(str, subject.scales)) for subject in result.subjects))
    mirrored = ", mirrored" * all(subject.mirror for subject in result.subjects)
    precision = "".join(f", {p}" for p in dict.fromkeys(s.precision for s in result.subjects) if p != "float32")
    return f"{names}, {result.mode}, Q {scales}{mirrored}{precision}"


def facts(job: Stored, training: DataSet | None, validation: DataSet | None) -> list[tuple[str, str]]:
    """Label and value; what is known of data sets that are gone."""
    data, results = job.job.data, job.results
    named = {"data": data} if isinstance(data, str) else {"training set": data.train, "validation set": data.val}
    images = validation.rows if validation else max((r.totals.images for r in results), default=None)
    classes = len(validation.manifest.classes) if validation else max((r.classes for r in results), default=None)
    counts = {"training images": training and training.rows, "validation images": images, "classes": classes}
    return [
        *((label, public(place)) for label, place in named.items()),
        *((label, f"{count:,}") for label, count in counts.items() if count is not None),
    ]


def chain(stages: Sequence[StoredStage]) -> Lines:
    """The table of stages, without columns in which all are as in the paper."""
    columns = [_cells(stage) for stage in stages]
    told = [name for name in columns[0] if any(cells[name] for cells in columns)]
    return [tuple(told), *(tuple(cells[name] or "-" for name in told) for cells in columns)]


def _cells(stage: StoredStage) -> dict[str, str]:
    s, epochs = stage.settings, stage.epochs
    best = epochs[stage.best - 1] if epochs else None
    return {
        "stage": stage.name,
        "net": s.net + "-BN" * s.batch_norm,
        "width": f"{s.width:g}" if s.width != 1.0 else "",
        "input": str(s.input_size) if s.input_size != 224 else "",
        "S": scale_text(s.scale),
        "starts from": public(s.init.source) if s.init.source else f"random weights ({s.init.random})",
        "epochs": f"{len(epochs)} of {s.epochs}" + (", not finished" if not stage.finished else ""),
        "best validation accuracy": f"{tables.share_text(best.validation_accuracy)} (epoch {stage.best})"
        if best
        else "",
        "images/s": f"{median(epoch.images_per_second for epoch in epochs):.0f}" if epochs else "",
        "time": duration(sum(epoch.seconds for epoch in epochs)) if epochs else "",
        "learning rates": _rates(stage) or schedule.in_words(s),
    }


def _rates(stage: StoredStage) -> str:
    """As they were: `0.01, 0.001 (epoch 9)`; of one that changes at every step the first and the last."""
    epochs = stage.epochs
    if not epochs:
        return ""
    if stage.settings.cosine is not None:
        return f"{epochs[0].learning_rate:.3g} to {epochs[-1].learning_rate:.3g}, along a cosine"
    drops = [f"{epochs[epoch - 1].learning_rate:.3g} (epoch {epoch})" for epoch in stage.drops]
    return ", ".join([f"{stage.settings.learning_rate:g}", *drops])


def duration(seconds: float) -> str:
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} seconds"


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'s' * (number != 1)}"
