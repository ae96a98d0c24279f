"""Which stages and tests of a job are wanted: `--only`, `--until`, `--fresh`; pure."""

import argparse
import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from jobs import graph, schema
from jobs.plan import State
from jobs.schema import Job
from pipelines.errors import SettingsError


@dataclass(frozen=True)
class Choice:
    """`only`: these stages alone, without tests; `until`: these, what they wait for, and the tests of these; neither:
    all. `fresh`: though they are done."""

    only: tuple[str, ...] = ()
    until: tuple[str, ...] = ()
    fresh: bool = False

    @classmethod
    def of(cls, options: argparse.Namespace) -> "Choice":
        return cls(tuple(options.only), tuple(options.until), options.fresh)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """For a `Choice`."""
    parser.add_argument(
        "--only",
        metavar="STAGE",
        action="append",
        default=[],
        help="run this stage alone, without tests; what it starts from has to be done; may be given several times",
    )
    parser.add_argument(
        "--until",
        metavar="STAGE",
        action="append",
        default=[],
        help="run this stage, all that it needs, and the tests of these; may be given several times",
    )
    parser.add_argument("--fresh", action="store_true", help="run stages again though they are done")


def check_names(job: Job, choice: Choice) -> None:
    """Raises SettingsError."""
    for option, names in (("--only", choice.only), ("--until", choice.until)):
        for name in names:
            if name not in job.stages:
                near = difflib.get_close_matches(name, job.stages, n=1)
                hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(job.stages)}"
                raise SettingsError(f"{option} {name}: there is no such stage; {hint}")
    if choice.only and choice.until:
        raise SettingsError("--only and --until: give one of them; --until runs what a stage needs, too")


def wanted(job: Job, choice: Choice) -> set[str]:
    """The stages to run. Raises SettingsError."""
    check_names(job, choice)
    if choice.only:
        return set(choice.only)
    if choice.until:
        needs = schema.needs(job)
        return {*choice.until, *(name for stage in choice.until for name in graph.above(needs, stage))}
    return set(job.stages)


def check_starts(job: Job, stages: Iterable[str], states: Mapping[str, State]) -> None:
    """That what the `stages` start from is among them, or done. Raises SettingsError."""
    for stage in job.stages:
        source = job.stages[stage].init.source
        if stage in stages and source in job.stages and source not in stages and not states[source].finished:
            raise SettingsError(f"--only {stage}: it starts from {source}, which is not done yet")


def tests(job: Job, choice: Choice) -> list[str]:
    """Those of the job's tests that are wanted: all of whose stages are. Raises SettingsError."""
    if choice.only:
        return []
    stages = wanted(job, choice)
    return [
        name
        for name, test in job.evaluations.items()
        if all(schema.is_file(model) or model in stages for model in test.models)
    ]
