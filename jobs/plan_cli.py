"""`verydeep plan`: what a run would do, and why."""

import argparse

from jobs import resolved, run_cli, schema


def add_arguments(parser: argparse.ArgumentParser) -> None:
    schema.add_arguments(parser)
    run_cli.add_choice(parser)
    parser.add_argument("--resolved", action="store_true", help="print every setting, with where it comes from")
    parser.set_defaults(verb=_plan)


def _plan(options: argparse.Namespace) -> None:
    written = schema.read(options.job, options.changes)
    job = written.job
    if options.resolved:
        print("\n".join(resolved.lines(written)))
        return
    from cluster import schedule  # slow imports: a wrong job file is told of at once
    from jobs import check, run
    from jobs.results import scale_text

    with written.places():
        checked = check.check(job)
    for decision in run.decisions(checked, options.only, options.fresh):
        stage = job.stages[decision.stage]
        steps = -(-checked.training.rows // stage.batch) * stage.epochs
        start = stage.init.source or "random weights"
        print(
            f"{decision.stage:<12} net {stage.net:<6} S {scale_text(stage.scale):<10}  "
            f"at most {stage.epochs} epochs, {steps} steps of {stage.batch}  from {start}: "
            f"{decision.action.value}, {decision.reason}"
        )
        print(f"{'':<12} {schedule.in_words(stage)}")
