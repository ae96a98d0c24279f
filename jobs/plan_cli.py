"""`verydeep plan`: what a run would do, and why."""

import argparse

from jobs import schema, selection
from jobs.selection import Choice


def add_arguments(parser: argparse.ArgumentParser) -> None:
    schema.add_arguments(parser)
    selection.add_arguments(parser)
    parser.set_defaults(verb=_plan)


def _plan(options: argparse.Namespace) -> None:
    job, choice = schema.load(options.job, options.changes), Choice.of(options)
    selection.check_names(job, choice)
    from cluster import schedule  # slow imports: a wrong job file is told of at once
    from jobs import check, decide
    from jobs.results import scale_text

    checked = check.check(job)
    for decision in decide.decisions(checked, choice):
        stage = job.stages[decision.stage]
        steps = -(-checked.training.rows // stage.batch) * stage.epochs
        start = stage.init.source or "random weights"
        print(
            f"{decision.stage:<12} net {stage.net:<6} S {scale_text(stage.scale):<10}  "
            f"at most {stage.epochs} epochs, {steps} steps of {stage.batch}  from {start}: "
            f"{decision.action.value}, {decision.reason}"
        )
        print(f"{'':<12} {schedule.in_words(stage)}")
