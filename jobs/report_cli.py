"""`verydeep report`: its arguments, and its carrying out."""

import argparse
from pathlib import Path

from jobs.schema import Job
from pipelines.errors import DataError, SettingsError
from pipelines.location import Location
from pipelines.shards import DataSet


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Makes a job's report anew from what is stored of it: one page with tables, curves and pictures, that needs "
        "nothing beside itself. A job that has not finished has a report, too."
    )
    parser.add_argument("job", metavar="JOB", help="a job file, or the folder of a run")
    parser.add_argument("--output", type=Path, metavar="FILE", help="default: report.html in the run's folder")
    parser.set_defaults(verb=_report)


def _report(options: argparse.Namespace) -> None:
    output: Path | None = options.output
    if output is not None and (output.is_dir() or not output.absolute().parent.is_dir()):
        reason = "is a folder" if output.is_dir() else f"there is no folder {output.absolute().parent}"
        raise SettingsError(f"--output {output}: {reason}")
    from jobs import report, stored  # slow imports

    job = stored.read(stored.store_of(options.job))
    print(report.write(job, *_data_sets(job.job), Location.of(output) if output else None))


def _data_sets(job: Job) -> tuple[DataSet | None, DataSet | None]:
    """Those that are still there; the page says what it lacks."""
    from jobs import check

    try:
        data = check.data_sets(job)
    except DataError:
        return None, None
    return _opened(data.train), _opened(data.val)


def _opened(place: str) -> DataSet | None:
    try:
        return DataSet.open(place)
    except DataError:
        return None
