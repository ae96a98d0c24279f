"""`verydeep run`: a job's chain of stages."""

import argparse

from jobs import schema, selection
from jobs.selection import Choice


def add_arguments(parser: argparse.ArgumentParser) -> None:
    schema.add_arguments(parser)
    selection.add_arguments(parser)
    parser.set_defaults(verb=run)


def run(options: argparse.Namespace) -> None:
    written, choice = schema.read(options.job, options.changes), Choice.of(options)
    selection.check_names(written.job, choice)
    from jobs import check, run  # slow imports: a wrong job file is told of at once

    with written.places():
        checked = check.check(written.job)
    run.run(checked, choice, str(options.job))
