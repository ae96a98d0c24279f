"""A job's report: one page, report.html, that needs nothing beside itself, made from what is stored of the job."""

import platform
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from cluster.posteriors import Posteriors
from jobs import curves, diagnosis, mistakes, pictures, stored, summary, tables
from jobs.diagnosis import ClassScore, Ints, Verdicts
from jobs.mistakes import Mistake
from jobs.pictures import Picture
from jobs.store import REPORT, write_text
from jobs.stored import Stored
from jobs.summary import Lines
from pipelines.errors import DataError, first_line
from pipelines.location import Location
from pipelines.shards import DataSet

_PAIRS, _CLASSES, _MISTAKES = 20, 10, 24  # that are shown
_PACKAGES = ("verydeep", "torch", "ray", "nvidia-dali-cuda130", "mlflow", "numpy", "pyarrow", "pillow", "matplotlib")
_WORDS = {"stage", "starts from", "epochs", "learning rates", "class", "right class", "taken for"}


@dataclass
class Look:
    """One test's posteriors seen closely. `remarks`: what could not be shown, and why."""

    title: str = ""
    matrix: Picture | None = None
    pairs: Lines = field(default_factory=list)
    classes: list[tuple[str, Lines]] = field(default_factory=list)
    reliability: Picture | None = None
    calibration_error: float = 0.0
    mistakes: list[Mistake] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


def write(job: Stored, training: DataSet | None, validation: DataSet | None, place: Location | None = None) -> Location:
    """Writes the page into `place`, or as report.html into the job's folder, and says where it is. Raises ClusterError:
    the storage cannot be read or written."""
    place = place or job.root / REPORT
    write_text(place, make(job, training, validation))
    return place


def make(job: Stored, training: DataSet | None, validation: DataSet | None) -> str:
    """The page, as HTML; the same for the same things stored. Data sets that are gone (None) leave out what needs them.

    Memory: a few times the posteriors of one test.
    """
    trained = [stage for stage in job.stages if stage.epochs]
    here = FileSystemLoader(Path(__file__).parent)
    environment = Environment(
        loader=here, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("report.html.jinja").render(
        name=job.job.name,
        when=f"{job.changed:%-d %B %Y, %H:%M} UTC" if job.changed else "",
        finished=job.finished,
        status=list(summary.status(job)),
        tiles=list(summary.tiles(job)),
        facts=summary.facts(job, training, validation),
        chain=summary.chain(job.stages),
        curves=[curves.losses(trained), curves.accuracies(trained)] if trained else [],
        tables=tables.tables(job.results),
        by_scale=curves.by_scale([*job.results, *stored.single_scales(job)]),
        look=look_at_best(job, validation) if job.results else Look(),
        settings=summary.public(job.job_text),
        versions={"Python": platform.python_version(), **{package: version(package) for package in _PACKAGES}},
        is_words=_is_words,
        share_text=tables.share_text,
    )


def _is_words(column: str) -> bool:
    """Whether a column with this head is of words, and not of numbers."""
    return column in _WORDS or tables.is_words(column)


def look_at_best(job: Stored, validation: DataSet | None) -> Look:
    """Of the tests whose posteriors are there, the one with the smallest error."""
    missing: list[str] = []
    for result, found in stored.tested_posteriors(job):
        if isinstance(found, Posteriors):
            look = look_at(found, validation)
            look.title = summary.title(result)
            look.remarks = missing[:1] + look.remarks
            return look
        missing.append(f"Of {summary.title(result)} there are no pictures: {summary.public(found)}.")
    return Look(remarks=missing[:1])


def look_at(posteriors: Posteriors, validation: DataSet | None) -> Look:
    """`validation`: the data set that they are of, or another one, or none."""
    classes = posteriors.classes
    found = diagnosis.verdicts(posteriors)
    counts = diagnosis.confusion(found, len(classes))
    calibration = diagnosis.calibration(found)
    sheet, remarks = _sheet(posteriors, found, validation)
    return Look(
        matrix=pictures.matrix(counts, classes) if len(classes) <= pictures.MATRIX_MOST else None,
        pairs=_pairs(counts, classes),
        classes=_classes(diagnosis.by_class(counts), classes),
        reliability=pictures.reliability(calibration),
        calibration_error=calibration.error,
        mistakes=sheet,
        remarks=remarks,
    )


def _pairs(counts: Ints, classes: tuple[str, ...]) -> Lines:
    pairs = diagnosis.worst_pairs(counts, _PAIRS)
    lines = [(classes[p.true], classes[p.predicted], str(p.count), tables.share_text(p.share)) for p in pairs]
    return [("right class", "taken for", "images", "of its class"), *lines] if pairs else []


def _classes(scores: list[ClassScore], classes: tuple[str, ...]) -> list[tuple[str, Lines]]:
    """All of a few classes, of many the worst and the best."""
    head = ("class", "images", "right", "accuracy")

    def lines(some: list[ClassScore]) -> Lines:
        return [head, *((classes[s.label], str(s.images), str(s.right), tables.share_text(s.accuracy)) for s in some)]

    if len(scores) <= 2 * _CLASSES:
        return [("Classes, the worst first", lines(scores))]
    best = sorted(scores, key=lambda score: (-score.accuracy, -score.images, score.label))
    return [("Worst classes", lines(scores[:_CLASSES])), ("Best classes", lines(best[:_CLASSES]))]


def _sheet(posteriors: Posteriors, found: Verdicts, validation: DataSet | None) -> tuple[list[Mistake], list[str]]:
    rows = diagnosis.confident_mistakes(found, posteriors.unreadable, _MISTAKES)
    if not len(rows):
        return [], []
    if validation is None:
        return [], ["The mistakes cannot be shown: the validation set is not there."]
    if validation.manifest.fingerprint != posteriors.data:
        return [], ["The mistakes cannot be shown: the validation set is not the one that was tested on."]
    try:
        return mistakes.of_rows(rows, posteriors, found, validation), []
    except DataError as error:
        return [], [f"The mistakes cannot be shown: {summary.public(first_line(error))}."]
