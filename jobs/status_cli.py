"""`verydeep status`: how a job stands that runs elsewhere, from what is in its storage."""

import argparse
import json
import sys

from jobs.status import BEAT_SECONDS

_PATIENCE_SECONDS = 2.5 * BEAT_SECONDS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Shows how a job stands, wherever it runs, from what is in its storage. Exit status: 0 it runs, or is done; "
        "1 it has failed, was stopped, or its driver is not heard of any more; 2 there is no such job."
    )
    parser.add_argument("job", metavar="JOB", help="a job file, or the folder of a run")
    parser.add_argument("--follow", action="store_true", help="go on until the run ends")
    parser.add_argument("--json", action="store_true", help="for programs; with --follow a line for each change")
    parser.set_defaults(verb=_status)


def _status(options: argparse.Namespace) -> int:
    from jobs import current_run, follow  # slow imports
    from jobs.stored import store_of

    root = store_of(options.job).root
    if options.follow:
        return follow.follow(root, _PATIENCE_SECONDS, options.json)
    found = current_run.look(root, _PATIENCE_SECONDS)
    if options.json:
        json.dump(found.plain(), sys.stdout, indent=1)
        print()
    else:
        follow.show(found)
    return found.exit_status
