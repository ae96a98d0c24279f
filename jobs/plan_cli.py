"""`verydeep plan`: what a run would do, why, and what it costs."""

import argparse
import difflib
import json

from jobs import resolved, schema, selection
from jobs.schema import Job
from jobs.selection import Choice
from pipelines.errors import SettingsError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Shows what a run would do, why, and what it costs. Nothing is written or begun. Hours are by the speeds that "
        "were measured in the job's storage, or by --images-per-second."
    )
    schema.add_arguments(parser)
    selection.add_arguments(parser)
    parser.add_argument("--workers", type=int, metavar="N", help="of each stage (default: the job's most)")
    parser.add_argument(
        "--images-per-second",
        type=float,
        metavar="R",
        help="that all these workers together train on, of the job's largest net; that of other nets follows from "
        "their operations an image",
    )
    parser.add_argument("--of", metavar="STAGE", help="whose --images-per-second it is, if not the largest net's")
    parser.add_argument("--json", action="store_true", help="all numbers, for programs")
    parser.add_argument("--resolved", action="store_true", help="print every setting, with where it comes from")
    parser.set_defaults(verb=_plan)


def _plan(options: argparse.Namespace) -> None:
    _check(options)
    written, choice = schema.read(options.job, options.changes), Choice.of(options)
    selection.check_names(written.job, choice)
    _check_stage(written.job, options.of)
    if options.resolved:
        print("\n".join(resolved.lines(written)))
        return
    from jobs import check, forecast, plan_text  # slow imports: a wrong job file is told of at once

    given = forecast.Given(options.workers, options.images_per_second, options.of)
    with written.places():
        checked = check.check(written.job)
    found = forecast.forecast(checked, choice, given)
    print(json.dumps(plan_text.plain(found), indent=1) if options.json else plan_text.text(found, checked.job.stages))


def _check(options: argparse.Namespace) -> None:
    """Raises SettingsError."""
    if options.workers is not None and options.workers < 1:
        raise SettingsError(f"--workers {options.workers}: expected 1 or more")
    rate = options.images_per_second
    if rate is not None and not 0 < rate < float("inf"):
        raise SettingsError(f"--images-per-second {rate:g}: expected a number above 0")
    if options.of is not None and rate is None:
        raise SettingsError(f"--of {options.of}: does not go without --images-per-second")


def _check_stage(job: Job, name: str | None) -> None:
    """Raises SettingsError."""
    if name is not None and name not in job.stages:
        near = difflib.get_close_matches(name, job.stages, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(job.stages)}"
        raise SettingsError(f"--of {name}: there is no such stage; {hint}")
