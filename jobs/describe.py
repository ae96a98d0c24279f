"""What a job file can say, for editors: a JSON Schema of the models, job.schema.json; pure.

`python -m jobs.describe` writes it, and the page docs/settings.md (`jobs.reference`), anew; so does `make docs`.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cluster.settings import StageSettings
from jobs import reference, shape
from jobs.inherit import RECIPE
from jobs.job import Job
from jobs.recipes import MEANINGS

Schema = dict[str, Any]

SCHEMA = Path(__file__).parent / "job.schema.json"
PAGE = Path(__file__).parent.parent / "docs" / "settings.md"
_NESTED = ("Init", "Plateau", "StepSchedule", "Cosine")  # models in a stage
_VARIABLE = {
    "type": "string",
    "pattern": r"\$\{env:[A-Za-z_][A-Za-z0-9_]*\}",
    "description": "a variable of the environment",
}


def json_schema() -> Schema:
    """Draft 7, which editors know best. `train` has any of a stage's settings, a stage the rest, or lists of values."""
    found = Job.model_json_schema()
    models: dict[str, Schema] = found.pop("$defs")
    stage = models.pop("StageSettings")
    stage.pop("required")  # what a stage does not say may stand in `train`, in a recipe, or in what it starts from
    stage["properties"][RECIPE] = _recipe()
    models["Train"] = stage
    models["Stage"] = _swept(stage, StageSettings)
    for name in _NESTED:
        models[f"{name}Sweep"] = _swept(models[name], None)
    named = found["properties"]["stages"], found["properties"]["evaluations"]
    for names, model in zip(named, ("Stage", "EvaluationSettings"), strict=True):
        (pattern,) = names["patternProperties"]
        names |= {"patternProperties": {pattern: {"$ref": f"#/$defs/{model}"}}, "additionalProperties": False}
    description = "settings that every stage starts from"
    found["properties"]["train"] = {"anyOf": [{"$ref": "#/$defs/Train"}, {"type": "null"}], "description": description}
    for each in (found, *models.values()):
        each["properties"] = {key: _with_variables(setting) for key, setting in each["properties"].items()}
    head = {"$schema": "http://json-schema.org/draft-07/schema#", "title": "a job file of verydeep"}
    definitions = {**models, "Variable": _VARIABLE}
    return _tidy({**head, **{key: value for key, value in found.items() if key != "title"}, "$defs": definitions})


def _recipe() -> Schema:
    choices: list[Schema] = [{"const": name, "description": meaning} for name, meaning in MEANINGS.items()]
    return {"anyOf": [*choices, {"type": "null"}], "description": reference.RECIPE_MEANING}


def _swept(model: Schema, stage: type[StageSettings] | None) -> Schema:
    """A model of which single values may be lists of them. `stage`: if it is the stage's own."""
    properties = {}
    for key, setting in model["properties"].items():
        if "$ref" in json.dumps(setting):
            properties[key] = _refer_to_sweeps(setting)
        elif _takes_one(setting) or (stage is not None and shape.is_range(shape.at(("stages", "", key)))):
            properties[key] = _or_several(setting)
        else:
            properties[key] = setting
    return {**model, "properties": properties}


def _takes_one(setting: Schema) -> bool:
    return all(kind.get("type") not in ("array", "object") for kind in setting.get("anyOf", [setting]))


def _or_several(setting: Schema) -> Schema:
    """A value, or a list of values; where a value may be a list itself, one of them at least has to be."""
    about = {key: value for key, value in setting.items() if key in ("description", "default")}
    value = {key: each for key, each in setting.items() if key not in about and key != "title"}
    several: Schema = {"type": "array", "items": value, "minItems": 1, "description": "a stage for each of these"}
    if not _takes_one(setting):
        several["contains"] = {"type": "array"}
    return {**about, "anyOf": [*value.get("anyOf", [value]), several]}


def _refer_to_sweeps(setting: Schema) -> Schema:
    text = json.dumps(setting)
    for name in _NESTED:
        text = text.replace(f'"#/$defs/{name}"', f'"#/$defs/{name}Sweep"')
    changed: Schema = json.loads(text)
    return changed


def _with_variables(setting: Schema) -> Schema:
    """A variable of the environment may stand for a value that is no text, and for a text of a certain form, too."""
    if "anyOf" in setting:
        kinds = [_with_variables(kind) if "anyOf" in kind or "items" in kind else kind for kind in setting["anyOf"]]
        changed = {**setting, "anyOf": kinds}
        plain = any(_is_plain(kind) for kind in kinds)
        return {**changed, "anyOf": [*kinds, {"$ref": "#/$defs/Variable"}]} if plain else changed
    if "items" in setting:
        return {**setting, "items": _with_variables(setting["items"])}
    if not _is_plain(setting):
        return setting
    about = {key: value for key, value in setting.items() if key in ("description", "default", "title")}
    value = {key: each for key, each in setting.items() if key not in about}
    return {**about, "anyOf": [value, {"$ref": "#/$defs/Variable"}]}


def _is_plain(kind: Mapping[str, Any]) -> bool:
    """Of one value, but not any text."""
    any_text = kind.get("type") == "string" and not kind.keys() & {"enum", "const", "pattern"}
    return "$ref" not in kind and kind.get("type") not in ("array", "object", "null") and not any_text


def _tidy(value: Any, is_properties: bool = False) -> Any:
    """Without titles, which only repeat the keys; `$ref` alone, since draft 7 looks at nothing beside it."""
    if isinstance(value, list):
        return [_tidy(item) for item in value]
    if not isinstance(value, dict):
        return value
    kept = {
        key: _tidy(child, key in ("properties", "$defs"))
        for key, child in value.items()
        if is_properties or key != "title" or "$schema" in value
    }
    if "$ref" in kept and len(kept) > 1 and not is_properties:
        kept = {"allOf": [{"$ref": kept.pop("$ref")}], **kept}
    return kept


def files() -> Iterator[tuple[Path, str]]:
    """What is generated."""
    yield SCHEMA, json.dumps(json_schema(), indent=1, ensure_ascii=False) + "\n"
    yield PAGE, reference.page()


def main() -> None:
    for path, text in files():
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
