"""What a stage's settings are made of: its recipe, the job's `train`, its own; pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cluster.settings import SCHEDULES
from jobs.recipes import RECIPES

RECIPE = "recipe"  # the key that names one, in `train` and in a stage


@dataclass(frozen=True)
class Level:
    """Settings from one place; `origin` says which, for people."""

    origin: str
    settings: Mapping[str, Any]


def levels(train: Mapping[str, Any], name: str, own: Mapping[str, Any]) -> list[Level]:
    """Of the stage `name`, the strongest last. A stage's recipe takes the place of that of `train`.

    A recipe that does not exist counts as none; the job's schema refuses it.
    """
    recipe = own.get(RECIPE, train.get(RECIPE))
    named = [Level(f"recipe {recipe}", RECIPES[recipe])] if isinstance(recipe, str) and recipe in RECIPES else []
    written = [Level(origin, _without_recipe(level)) for origin, level in (("train", train), (f"stage {name}", own))]
    return [*named, *written]


def merged(stack: Sequence[Level]) -> dict[str, Any]:
    """Later levels over earlier ones; mappings inside are merged likewise.

    A level that chooses a schedule leaves the knobs of others behind.
    """
    result: dict[str, Any] = {}
    for level in stack:
        if (chosen := level.settings.get("schedule")) is not None:
            result = {key: value for key, value in result.items() if key not in SCHEDULES or key == chosen}
        result = _over(result, level.settings)
    return result


def _over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(below)
    for key, value in above.items():
        before = result.get(key)
        result[key] = _over(before, value) if isinstance(before, Mapping) and isinstance(value, Mapping) else value
    return result


def _without_recipe(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key != RECIPE}
