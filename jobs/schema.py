"""A job file: YAML to a `Job`, or all its errors at once, each with file, line, column and key.

What is written becomes a tree (`jobs.document`), which is changed by the command line (`jobs.changes`), filled from the
environment (`jobs.environment`), spread out (`jobs.sweeps`) and completed (`jobs.inherit`) before it is validated.
"""

import argparse
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import yaml
from pydantic import ValidationError

from cluster.settings import StageSettings
from jobs import changes, contradictions, document, environment, inherit, problems, shape, sweeps
from jobs.contradictions import frozen_at_random
from jobs.document import Node, Place, Problem, told
from jobs.job import NAME, Data, Job, is_file, needs
from jobs.recipes import RECIPES
from pipelines.errors import SettingsError, VerydeepError

__all__ = [
    "NAME",
    "Data",
    "Job",
    "Written",
    "add_arguments",
    "frozen_at_random",
    "is_file",
    "load",
    "needs",
    "parse",
    "read",
    "resolved",
]


_SETTINGS = shape.words(StageSettings)


@dataclass(frozen=True)
class Written:
    """A job, and `tree`: all that is written of it, by the same paths, stages with what they inherit."""

    job: Job
    tree: Node

    @contextmanager
    def places(self) -> Iterator[None]:
        """Errors of the block that begin with a setting's path get the place in front where that is written."""
        try:
            yield
        except VerydeepError as error:
            raise type(error)("\n".join(map(self._placed, str(error).splitlines()))) from error

    def _placed(self, line: str) -> str:
        key, colon, rest = line.partition(": ")
        path = changes.path_of(self.tree, key)
        if not colon or path is None:
            return line
        return str(problems.located(self.tree, path, rest))


def load(path: str | os.PathLike[str], changed: Sequence[str] = ()) -> Job:
    """Reads a job file; `changed` are `key.path=value` texts that override it. Raises SettingsError."""
    return read(path, changed).job


def parse(text: str, file: str, changed: Sequence[str] = ()) -> Job:
    """`text` is that of a job file, which is named `file` in errors. Raises SettingsError."""
    return _written(text, file, changed, os.environ).job


def read(path: str | os.PathLike[str], changed: Sequence[str] = ()) -> Written:
    """Of `load`, with where everything is written. Raises SettingsError."""
    file = os.fspath(path)
    try:
        text = Path(file).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise SettingsError(f"{file}: cannot be read: {reason}") from error
    return _written(text, file, changed, os.environ)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """A job file and what is changed of it, for the command line."""
    parser.add_argument("job", metavar="JOB.yaml")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="changes",
        metavar="KEY=VALUE",
        help="override a setting, such as stages.e.epochs=10",
    )


def resolved(job: Job) -> str:
    """The job as YAML, with every setting written out."""
    content = _escaped(job.model_dump(by_alias=True, mode="json"))
    return yaml.safe_dump(content, sort_keys=False, default_flow_style=None, width=120, allow_unicode=True)


def _written(text: str, file: str, changed: Sequence[str], variables: Mapping[str, str]) -> Written:
    wanted = changes.parsed(changed)
    root = document.read(text, Place(file))
    if root is None:
        raise SettingsError(f"{file}: the job file is empty")
    if not isinstance(root.value, dict):
        raise told([Problem(root.place, (), f"a job file is a mapping of {', '.join(shape.keys(()) or ())}")])
    later = []
    for change in wanted:
        if changes.waits(root, change):
            later.append(change)
        else:
            root = changes.apply(root, change)
    found: list[Problem] = []
    tree = _complete(environment.filled(root, variables, found), later, variables, found)
    return Written(_validated(tree, found), tree)


def _complete(root: Node, later: Sequence[Node], variables: Mapping[str, str], found: list[Problem]) -> Node:
    """The tree that is validated: sweeps spread out, each stage with what it inherits. `later`: changes of members of
    sweeps. Adds to `found`."""
    root = _pruned(root, found)
    train, stages = root.child(shape.TRAIN), root.child("stages")
    if train is not None and train.value is not None:
        if not isinstance(train.value, dict):
            raise told([*found, Problem(train.place, train.path, f"expected {_SETTINGS}, not {problems.shown(train)}")])
        found += _of_train(train)
    root = replace(root, value={key: node for key, node in root.children.items() if key != shape.TRAIN})
    if stages is None or not isinstance(stages.value, dict):
        return root
    spread = sweeps.expand(stages.children, train)
    if spread.problems:  # what stages there are is not clear
        raise told([*found, *spread.problems])
    root = root.with_child("stages", replace(stages, value=spread.stages))
    for change in later:
        root = _pruned(environment.filled(changes.apply(root, change), variables, found), found)
    stages = root.children["stages"]
    for own in stages.children.values():
        found += _of_recipe(own)
    full = inherit.stages(train, stages.children)
    found += _without_net(full)
    return _with_members(root.with_child("stages", replace(stages, value=full)), spread.members)


def _pruned(root: Node, found: list[Problem]) -> Node:
    found += problems.unknown_keys(root)
    return problems.without_unknown_keys(root)


def _with_members(root: Node, members: Mapping[str, Mapping[str, str]]) -> Node:
    """Names of sweeps where stages are listed stand for all their members."""
    for part, key in (("stages", "after"), ("evaluations", "models")):
        for name, node in (root.at(part) or root).children.items() if root.at(part) else ():
            names = node.child(key)
            if names is not None and names.items:
                whole = root.children[part]
                listed = node.with_child(key, sweeps.with_members(names, members))
                root = root.with_child(part, whole.with_child(name, listed))
    return root


def _of_train(train: Node) -> Iterator[Problem]:
    """What `train` by itself has wrong, whether or not a stage takes it."""
    yield from _of_recipe(train)
    try:
        shape.Train.model_validate({key: node.plain() for key, node in train.children.items() if key != inherit.RECIPE})
    except ValidationError as error:
        yield from problems.of_validation(error, train, ("stages", ""))


def _of_recipe(level: Node) -> Iterator[Problem]:
    named = level.child(inherit.RECIPE)
    kind = shape.at(("stages", "", inherit.RECIPE))
    if named is not None and named.value is not None and named.value not in [*RECIPES]:
        yield problems.wrong(named, kind)


def _without_net(stages: Mapping[str, Node]) -> Iterator[Problem]:
    """Of those that leave it to a stage which does not exist."""
    for stage in stages.values():
        source = stage.at("init", "from")
        if stage.child("net") is not None or source is None or not isinstance(source.value, str):
            continue
        if source.value not in stages and not is_file(source.value):
            message = problems.nothing("stage", source.value, stages)
            yield Problem(source.place, source.path, message, (*stage.path, "net"))


def _validated(tree: Node, found: list[Problem]) -> Job:
    """Raises SettingsError: of what was found before, and of what is found now."""
    try:
        job = Job.model_validate(tree.plain())
    except ValidationError as error:
        known = {path for problem in found for path in (problem.path, problem.meant)}
        rest = (problem for problem in problems.of_validation(error, tree) if problem.path not in known)
        raise told([*found, *rest]) from error
    if not found:
        found = [problems.located(tree, path, message) for path, message in contradictions.of(job)]
    if found:
        raise told(found)
    return job


def _escaped(value: object) -> object:
    if isinstance(value, dict):
        return {key: _escaped(child) for key, child in value.items()}
    if isinstance(value, list):
        return [_escaped(item) for item in value]
    return environment.escaped(value) if isinstance(value, str) else value
