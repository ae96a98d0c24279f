"""A job file: YAML to a `Job`, or all its errors at once, each with file, line and key."""

import argparse
import difflib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from graphlib import CycleError
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, Field, ValidationError
from pydantic_core import ErrorDetails

from cluster import init, layers
from cluster.settings import CheckpointSettings, ClusterSettings, EvaluationSettings, Settings, StageSettings
from jobs import graph, inherit
from jobs.recipes import RECIPES
from pipelines.errors import SettingsError
from pipelines.location import Location

NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*"

Path_ = tuple[str | int, ...]  # of keys, from the file's root


class Data(Settings):
    """Two prepared data sets: folders, or URIs that pyarrow knows (s3://, gs://)."""

    train: str = Field(min_length=1, description="the training set")
    val: str = Field(min_length=1, description="the validation set, of the same classes")


class Job(Settings):
    """A chain of stages and their tests. `train` are settings that every stage starts from.

    `train` and each stage may also name a `recipe` (`jobs.recipes`), whose settings come before theirs.
    """

    name: str = Field(pattern=f"^{NAME}$", description="names the run's folder and the MLflow experiment")
    data: Data | Literal["digits"] = Field(description="data sets, or `digits` for the ones that come with the program")
    storage: str = Field(
        "~/verydeep",
        min_length=1,
        description="place of all results: a folder that all nodes share, or a URI that pyarrow knows (s3://, gs://)",
    )
    cluster: ClusterSettings = Field(default_factory=ClusterSettings)
    checkpoints: CheckpointSettings = Field(default_factory=CheckpointSettings)
    stages: dict[Annotated[str, Field(pattern=f"^{NAME}$")], StageSettings] = Field(min_length=1)
    evaluations: dict[Annotated[str, Field(pattern=f"^{NAME}$")], EvaluationSettings] = Field(default_factory=dict)

    @property
    def root(self) -> Location:
        """Raises DataError: a URI of nothing that pyarrow knows."""
        return Location.of(self.storage)


_CROSS_CHECKED = {*StageSettings.model_fields, *EvaluationSettings.model_fields}
_KEYS = ("name", "data", "storage", "cluster", "checkpoints", "train", "stages", "evaluations")


def load(path: str | Path, changes: Sequence[str] = ()) -> Job:
    """Reads a job file; `changes` are `key.path=value` texts that override it. Raises SettingsError."""
    file = str(path)
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise SettingsError(f"{file}: cannot be read: {reason}") from error
    return parse(text, file, changes)


def parse(text: str, file: str, changes: Sequence[str] = ()) -> Job:
    """`text` is that of a job file, which is named `file` in errors. Raises SettingsError."""
    document = _Document.parse(text, file)
    for change in changes:
        document.change(change)
    return document.job()


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


class _Loader(yaml.SafeLoader):
    """YAML 1.1 as PyYAML reads it, but 1e-3 is a number, as in YAML 1.2."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$"),
    list("-+0123456789."),
)


@dataclass
class _Document:
    """The file's content as plain values, and where each of its keys stands."""

    file: str
    content: dict[str, Any]
    lines: dict[Path_, str]

    @classmethod
    def parse(cls, text: str, file: str) -> "_Document":
        loader = None
        try:
            loader = _Loader(text)
            node = loader.get_single_node()
            if node is None:
                raise SettingsError(f"{file}: the job file is empty")
            lines = dict(_places(node, (), file))
            content = loader.construct_document(node)
        except SettingsError:
            raise
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            mark = getattr(error, "problem_mark", None)
            where = f"{file}:{mark.line + 1}" if mark else file
            problem = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error).splitlines()[0]
            raise SettingsError(f"{where}: not YAML: {problem}") from error
        finally:
            if loader is not None:
                loader.dispose()
        if not isinstance(content, dict):
            raise SettingsError(f"{file}:1: a job file is a mapping of {', '.join(_KEYS)}")
        return cls(file, content, lines)

    def change(self, change: str) -> None:
        """Applies `key.path=value`."""
        key, equals, value = change.partition("=")
        parts = tuple(part for part in key.strip().split("."))
        if not equals or not all(parts):
            raise SettingsError(f"--set {change}: expected key.path=value, such as train.epochs=10")
        try:
            parsed = yaml.load(value, _Loader)
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise SettingsError(f"--set {change}: the value is not YAML") from error
        at: Any = self.content
        for part in parts[:-1]:
            if not isinstance(at.get(part), dict):
                at[part] = {}
            at = at[part]
        at[parts[-1]] = parsed
        for i in range(1, len(parts) + 1):
            self.lines[parts[:i]] = f"--set {change}"

    def job(self) -> Job:
        content = dict(self.content)
        problems: list[str] = []
        defaults = content.pop("train", None)
        if defaults is None:
            defaults = {}
        if not isinstance(defaults, dict):
            problems.append(self._problem(("train",), "expected a mapping of settings"))
            defaults = {}
        stages = content.get("stages")
        if isinstance(stages, dict):
            content["stages"] = {
                name: inherit.merged(inherit.levels(defaults, name, stage)) if isinstance(stage, dict) else stage
                for name, stage in stages.items()
            }
            problems += self._unknown_recipes(defaults, stages)
        try:
            job = Job.model_validate(content)
        except ValidationError as error:
            problems += self._problems(error.errors(), content)
            job = None
        if job is not None and not problems:
            problems += [self._problem(path, message) for path, message in _contradictions(job)]
        if problems or job is None:
            raise SettingsError("\n".join(dict.fromkeys(problems)))
        return job

    def _unknown_recipes(self, train: dict[str, Any], stages: dict[str, Any]) -> Iterator[str]:
        """Of `train` and of stages, as they are written."""
        for path, level in ((("train",), train), *((("stages", name), stage) for name, stage in stages.items())):
            recipe = level.get(inherit.RECIPE) if isinstance(level, dict) else None
            if recipe is not None and (not isinstance(recipe, str) or recipe not in RECIPES):
                hint = _hint(recipe, RECIPES)
                yield self._problem((*path, inherit.RECIPE), f"no recipe is called {recipe!r}; {hint}")

    def _problems(self, errors: list[ErrorDetails], content: dict[str, Any]) -> Iterator[str]:
        for error in errors:
            path = tuple(_known(error["loc"], content))
            kind, allowed = error["type"], _keys_at(path[:-1])
            if kind == "extra_forbidden":
                near = difflib.get_close_matches(str(path[-1]), allowed, n=1)
                hint = f"; did you mean {near[0]}?" if near else f"; known are {', '.join(allowed)}"
                yield self._problem(path, f"unknown key{hint}")
            elif kind == "missing":
                yield self._problem(path, "is missing")
            else:
                message = error["msg"].removeprefix("Value error, ")
                message = message[0].lower() + message[1:]
                if kind == "literal_error" and isinstance(error["input"], str):
                    near = difflib.get_close_matches(error["input"], re.findall(r"'([^']+)'", message), n=1)
                    message += f"; did you mean {near[0]}?" if near else ""
                shown = f", not {error['input']!r}" if not isinstance(error["input"], dict | list) else ""
                own, colon, rest = message.partition(": ")
                own_path = tuple(own.split("."))
                if colon and own_path[0] in _CROSS_CHECKED:  # a check across fields names the one at fault
                    path, message, shown = (*path, *own_path), rest, ""
                yield self._problem(path, message + (shown if "not " not in message else ""))

    def _problem(self, path: Path_, message: str) -> str:
        """`file:line: key.path: message`; a key that a stage has from `train` is named and placed there."""
        if len(path) > 2 and path[0] == "stages" and path not in self.lines and ("train", *path[2:]) in self.lines:
            path = ("train", *path[2:])
        key = ".".join(str(part) for part in path)
        for i in range(len(path), -1, -1):
            if path[:i] in self.lines:
                return f"{self.lines[path[:i]]}: {key}: {message}"
        return f"{self.file}: {key}: {message}"


def _places(node: yaml.Node, path: Path_, file: str) -> Iterator[tuple[Path_, str]]:
    """Every key's path and `file:line`. Raises SettingsError for a key that stands twice."""
    if isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                raise SettingsError(f"{file}:{line}: a key is one word, not a list or a mapping")
            if key.value in seen:
                name = ".".join(str(part) for part in (*path, key.value))
                raise SettingsError(f"{file}:{line}: {name}: stands twice, first in line {seen[key.value]}")
            seen[key.value] = line
            yield (*path, key.value), f"{file}:{line}"
            yield from _places(value, (*path, key.value), file)
    elif isinstance(node, yaml.SequenceNode):
        for i, item in enumerate(node.value):
            yield (*path, i), f"{file}:{item.start_mark.line + 1}"
            yield from _places(item, (*path, i), file)


def _known(loc: Sequence[str | int], content: Any) -> Iterator[str | int]:
    """A location of pydantic without what it adds to paths: names of union members, `[key]`."""
    at = content
    for i, part in enumerate(loc):
        inside = (isinstance(at, dict) and part in at) or (
            isinstance(at, list) and isinstance(part, int) and part < len(at)
        )
        if inside:
            at = at[part]
            yield part
        elif isinstance(at, dict) and i == len(loc) - 1 and part != "[key]":
            yield part  # a key that is missing


def _keys_at(path: Path_) -> list[str]:
    """The keys that a mapping at `path` may have."""
    model: type[BaseModel] | None = Job
    if path[:1] == ("stages",) and len(path) >= 2:
        model, path = StageSettings, path[2:]
    elif path[:1] == ("evaluations",) and len(path) >= 2:
        model, path = EvaluationSettings, path[2:]
    for part in path:
        field = model.model_fields.get(str(part)) if model else None
        found = field.annotation if field else None
        models = (kind for kind in (found, *get_args(found)) if isinstance(kind, type) and issubclass(kind, BaseModel))
        model = next(models, None)
    if model is None:
        return []
    keys = [field.alias or name for name, field in model.model_fields.items()]
    beside = {Job: ["train"], StageSettings: [inherit.RECIPE]}
    return [*keys, *beside.get(model, [])]


def _contradictions(job: Job) -> Iterator[tuple[Path_, str]]:
    """What is wrong between parts that are each right."""
    names = list(job.stages)
    for name, stage in job.stages.items():
        least, most = job.cluster.workers
        if refusal := next(filter(None, map(stage.refusal, range(least, most + 1))), None):
            yield ("stages", name, "reproducible" if stage.reproducible == "exact" else "batch_norm"), refusal
        source = stage.init.source
        path: Path_ = ("stages", name, "init", "from")
        if source is None or is_file(source):
            continue
        if source not in job.stages:
            yield path, f"no stage is called {source!r}; {_hint(source, names)}"
            continue
        for key, layer in init.to_be_equal(init.copied(job.stages[source].net, stage.net, stage.left_out)):
            if key == "classes":  # the data's
                continue
            mine, its = getattr(stage, key), getattr(job.stages[source], key)
            if mine != its:
                message = f"{key} is {its} in stage {source} and {mine} in this one: "
                yield path, message + (f"{layer} does not fit" if layer else "the layers do not fit")
        if (problem := frozen_at_random(stage, job.stages[source].net)) is not None:
            yield ("stages", name, "freeze"), problem
    for name, stage in job.stages.items():
        for i, other in enumerate(stage.after):
            if other not in job.stages:
                yield ("stages", name, "after", i), f"no stage is called {other!r}; {_hint(other, names)}"
    yield from _cycles(job)
    for name, test in job.evaluations.items():
        for i, model in enumerate(test.models):
            if is_file(model):
                continue
            if model not in job.stages:
                yield ("evaluations", name, "models", i), f"no stage is called {model!r}; {_hint(model, names)}"
                continue
            crop = job.stages[model].input_size
            for k, scale in enumerate(test.scales if isinstance(test.scales, list) else ()):
                if scale < crop:
                    message = f"Q = {scale} is smaller than the input_size of {model}, {crop}"
                    yield ("evaluations", name, "scales", k), message


def frozen_at_random(stage: StageSettings, source: str) -> str | None:
    """What is wrong if layers are frozen that take no weights from a net of configuration `source`."""
    random = stage.frozen - set(init.copied(source, stage.net, stage.left_out))
    if not random:
        return None
    names = ", ".join(name for name in layers.of(stage.net) if name in random)
    if random <= stage.left_out:
        return f"{names} would keep random weights, being left out by init.except"
    return f"{names} would keep random weights: a net {stage.net} does not get them from a net {source}"


def _hint(name: object, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(str(name), known, n=1)
    return f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"


def _cycles(job: Job) -> Iterator[tuple[Path_, str]]:
    try:
        graph.in_order(needs(job))
    except CycleError as error:
        ring = error.args[1][:0:-1]  # each waits for the next
        at = min(range(len(ring)), key=lambda i: list(job.stages).index(ring[i]))
        ring = [*ring[at:], *ring[:at], ring[at]]
        yield ("stages", ring[0]), f"stages wait for each other: {' <- '.join(ring)}"


def needs(job: Job) -> dict[str, list[str]]:
    """The stages that each stage waits for."""
    return {
        name: [other for other in dict.fromkeys([stage.init.source, *stage.after]) if other in job.stages]
        for name, stage in job.stages.items()
    }


def is_file(source: str) -> bool:
    """Whether `init.from` names a file or a URI, and not a stage."""
    return "/" in source or source.endswith((".safetensors", ".pth", ".pt"))


def resolved(job: Job) -> str:
    """The job as YAML, with every setting written out."""
    content = job.model_dump(by_alias=True, mode="json")
    return yaml.safe_dump(content, sort_keys=False, default_flow_style=None, width=120)
