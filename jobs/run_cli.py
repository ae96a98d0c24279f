"""`verydeep run`: a job's chain of stages."""

import argparse

from jobs import schema


def add_arguments(parser: argparse.ArgumentParser) -> None:
    schema.add_arguments(parser)
    add_choice(parser)
    parser.set_defaults(verb=run)


def add_choice(parser: argparse.ArgumentParser) -> None:
    """Which stages."""
    parser.add_argument("--only", metavar="STAGE", help="run this stage alone")
    parser.add_argument("--fresh", action="store_true", help="run stages again though they are done")


def run(options: argparse.Namespace) -> None:
    job = schema.load(options.job, options.changes)
    from jobs import check, run  # slow imports: a wrong job file is told of at once

    run.run(check.check(job), options.only, options.fresh, str(options.job))
