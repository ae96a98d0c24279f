"""What stands where in a job file: which keys a mapping may have, and what a setting takes, in words; from the models.

A kind is a type with its limits, as in a model's annotation: `Annotated[int, Ge(1)]`.
"""

from collections.abc import Callable, Iterator
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeAlias, Union, get_args, get_origin

import annotated_types as limits
from pydantic import BaseModel, create_model
from pydantic.fields import FieldInfo

from cluster.settings import CheckpointSettings, ClusterSettings, EvaluationSettings, Settings, StageSettings, Words
from jobs.document import Path
from jobs.inherit import RECIPE
from jobs.job import Data, Job, Name
from jobs.recipes import RECIPES

Kind: TypeAlias = Any
_origin: Callable[[Kind], Any] = get_origin
TRAIN = "train"  # the key of a job file for what all stages start from
_RECIPE: Kind = Literal[tuple(RECIPES)] | None


def kind_of(field: FieldInfo) -> Kind:
    return Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation


def fields(model: type[BaseModel]) -> dict[str, FieldInfo]:
    """By their keys in a job file."""
    return {field.alias or name: field for name, field in model.model_fields.items()}


# What `train` says by itself: any of a stage's settings. Where it says nothing, it is the stage that has a default.
Train: type[Settings] = create_model(
    "Train",
    __base__=Settings,
    **{name: (kind_of(field), None) for name, field in fields(StageSettings).items()},  # type: ignore[call-overload]
)


def keys(path: Path) -> list[str] | None:
    """Those that the mapping at `path` may have; None if that is no mapping, or one with names of the user's."""
    model = next((kind for kind in _members(at(path)) if _is_model(kind)), None)
    if model is None:
        return None
    beside = {Job: [TRAIN], StageSettings: [RECIPE]}
    return [*fields(model), *beside.get(model, [])]


def at(path: Path) -> Kind | None:
    """The kind of what stands there; None if nothing may. In a stage, the items of a list that is swept are of the
    setting's kind."""
    found: Kind | None = Job
    for i, part in enumerate(path):
        found = _below(found, part, swept=path[0] == "stages" and i > 2)
    return found


def _below(kind: Kind, part: str | int, swept: bool) -> Kind | None:
    for member in _members(kind):
        if _is_model(member):
            if part == RECIPE and member is StageSettings:
                return _RECIPE
            if part == TRAIN and member is Job:
                return StageSettings
            if (field := fields(member).get(str(part))) is not None:
                return kind_of(field)
        elif _origin(member) is dict and isinstance(part, str):
            return get_args(member)[1]
        elif _origin(member) in (list, tuple) and isinstance(part, int):
            return get_args(member)[0]
    return kind if swept and isinstance(part, int) else None


def _members(kind: Kind) -> Iterator[Kind]:
    """Of a union, and of what has limits the type itself."""
    if _origin(kind) is Annotated:
        yield from _members(get_args(kind)[0])
    elif _origin(kind) in (Union, UnionType):
        for member in get_args(kind):
            yield from _members(member)
    elif kind is not None:
        yield kind


def _is_model(kind: Kind) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def is_model(kind: Kind) -> bool:
    return any(map(_is_model, _members(kind)))


def choices(kind: Kind) -> list[str]:
    """The words that it takes, beside what else it takes."""
    return [word for member in _members(kind) if _origin(member) is Literal for word in map(str, get_args(member))]


def is_text(kind: Kind) -> bool:
    """Whether any text may stand there, and not just certain words."""
    return str in _members(kind)


def takes_one_value(kind: Kind) -> bool:
    """Whether a list in its place can only be meant as several of them."""
    return not any(_is_model(member) or _origin(member) in (list, dict) for member in _members(kind))


def is_range(kind: Kind) -> bool:
    return any(_origin(member) is tuple for member in _members(kind))


def homes(key: str) -> list[str]:
    """Where else in a job file a key may stand, in words: `cluster`, `train or a stage`, `plateau of ...`."""
    places: list[tuple[str, Path]] = [
        ("data", ("data",)),
        ("cluster", ("cluster",)),
        ("checkpoints", ("checkpoints",)),
        ("train or a stage", ("stages", "")),
        ("a test of evaluations", ("evaluations", "")),
    ]
    places += [
        (f"{name} of train or a stage", ("stages", "", name))
        for name, field in fields(StageSettings).items()
        if any(map(_is_model, _members(kind_of(field))))
    ]
    places += [("the top of the file", ())]
    return [words for words, path in places if key in (keys(path) or ())]


def words(kind: Kind) -> str:
    """What it takes, as after `expected`."""
    if _origin(kind) is Annotated:
        inner, *more = get_args(kind)
        own = next((one.text for one in more if isinstance(one, Words)), None)
        return own or _limited(inner, more)
    if _origin(kind) in (Union, UnionType):
        return _union(get_args(kind))
    return _plain(kind)


def _union(members: tuple[Kind, ...]) -> str:
    each = [words(member) for member in members if member is not NoneType]
    told = ", or ".join(each) if any(map(_is_model, members)) else _listed(each, "or")
    return f"{told}, or null" if NoneType in members else told


def _listed(told: list[str], last: str) -> str:
    return f" {last} ".join(filter(None, [", ".join(told[:-1]), told[-1]]))


def _plain(kind: Kind) -> str:
    if _is_model(kind):
        names = list(fields(kind))
        return f"a mapping of {_listed(names, 'and') if len(names) < 6 else 'settings'}"
    origin, arguments = _origin(kind), get_args(kind)
    if origin is Literal:
        return _listed([str(value) for value in arguments], "or")
    if origin is list:
        return "a list of texts" if arguments[0] is str else f"a list, of {words(arguments[0])} each"
    if origin is dict:
        return f"a mapping of names, each with {words(arguments[1])}"
    return {str: "text", bool: "true or false", int: "a whole number", float: "a number"}[kind]


def _limited(inner: Kind, more: list[Any]) -> str:
    if NoneType in get_args(inner):
        own = next(member for member in get_args(inner) if member is not NoneType)
        return f"{_limited(own, more)}, or null"
    if inner not in (int, float):
        return words(inner)
    what = words(inner)
    for one in _flat(more):
        match one:
            case limits.Ge(ge=low):
                what += f" of {_number(low)} or more"
            case limits.Gt(gt=low):
                what += f" above {_number(low)}"
            case limits.Le(le=high):
                what = what.replace(" or more", "").replace(" of ", " from ") + f" to {_number(high)}"
            case limits.Lt(lt=high):
                what = what.replace(" or more", "").replace(" of ", " from ") + f" to below {_number(high)}"
    return what


def _flat(more: list[Any]) -> Iterator[Any]:
    for one in more:
        yield from one.metadata if isinstance(one, FieldInfo) else (one,)


def _number(value: Any) -> str:
    return "2^64" if value == 2**64 else f"{value:g}" if isinstance(value, float) else str(value)


def name_kind() -> Kind:
    """Of names of stages and tests."""
    return Name


def all_keys() -> list[str]:
    """That any mapping of a job file may have."""
    found = [*fields(Job), *fields(StageSettings), *fields(EvaluationSettings), *fields(ClusterSettings)]
    found += [*fields(CheckpointSettings), *fields(Data)]
    for field in fields(StageSettings).values():
        found += [key for member in _members(kind_of(field)) if _is_model(member) for key in fields(member)]
    return list(dict.fromkeys(found))
