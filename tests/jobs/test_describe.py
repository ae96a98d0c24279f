"""What editors and readers are told of job files is what the program takes."""

import json
import random
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from jobs import describe, document, schema, shape
from pipelines.errors import SettingsError
from tests.jobs import test_changes, test_sweeps
from tests.jobs.wrong_jobs import ERRORS, GOOD

ROOT = Path(__file__).parent.parent.parent
VALID = jsonschema.Draft7Validator(json.loads(describe.SCHEMA.read_text()))
LINE = "# yaml-language-server: $schema=job.schema.json"


def mistakes(text: str) -> list[str]:
    """That an editor tells of."""
    root = document.read(text, document.Place("job.yaml"))
    assert root is not None
    return [f"{list(error.absolute_path)}: {error.message[:200]}" for error in VALID.iter_errors(root.plain())]


def test_the_files_are_what_the_models_say_now() -> None:
    for path, text in describe.files():
        assert path.read_text(encoding="utf-8") == text, f"{path} is old: make docs"


def test_the_schema_is_one_and_every_key_of_it_says_what_it_means() -> None:
    jsonschema.Draft7Validator.check_schema(VALID.schema)
    models = [VALID.schema, *(model for model in VALID.schema["$defs"].values() if "properties" in model)]
    assert len(models) >= 15
    for model in models:
        assert model["additionalProperties"] is False
        for key, setting in model["properties"].items():
            assert setting.get("description"), key


def test_the_page_lists_every_key() -> None:
    page = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    for key in [*shape.all_keys(), "recipe", "train"]:
        assert f"| `{key}` |" in page


def test_shipped_files_and_good_ones_are_valid() -> None:
    files = sorted((ROOT / "jobs").glob("*.yaml"))
    assert len(files) >= 5
    for file in files:
        text = file.read_text()
        assert text.splitlines()[1] == LINE
        assert mistakes(text) == []
        assert mistakes(schema.resolved(schema.load(file))) == []
    for text in (GOOD.format(storage="/s"), test_sweeps.JOB, test_changes.ALIASES):
        assert mistakes(text) == []


# ruff: noqa: E501
# Mistakes that lie between settings, or in files and places: no schema can tell them.
UNTOLD = (
    "no stage is called", "wait for each other", "is smaller than", "is above the", "does not fit", "do not fit",
    "is not a power of two", "virtual shards are", "a power of two of workers", "is not a multiple", "not YAML", "stands twice",
    "a whole path", "cannot be written", "no such", "does not apply", "is not below", "before it has risen", "are not fewer",
    "is no layer", "random weights", "these are all layers", "does not go with", "takes two models", "alias of what", "no key and no",
    "a key is one word", "expected a mapping, or a list of mappings", "net: is missing", "scale: is missing", "each once, not a list", "not .inf", "so large a number",
)  # fmt: skip


def test_what_a_schema_can_tell_to_be_wrong_is_not_valid() -> None:
    told = 0
    for old, new, lines in ERRORS:
        if not any(word in line for line in lines for word in UNTOLD):
            told += 1
            assert mistakes(GOOD.replace(old, new, 1).format(storage="/s")), lines
    assert told >= 40


ONE = [0, 1, 3, 32, 256, 0.5, 1e-3, True, False, None, "auto", "A", "E", "best", "step", "${env:N}", "paper"]
SOME = [
    [1, 2],
    [256, 512],
    [[256, 384], 300],
    ["A", "B"],
    [0.1, 0.2],
    [],
    [True, False],
    ["fc3"],
    {"fc3": 2},
    {"patience": [1, 2]},
]


def test_what_the_program_takes_is_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over random jobs, each setting with values that mostly fit another one."""
    monkeypatch.setenv("N", "3")
    draw, taken = random.Random(0), 0
    places = [
        ("cluster",),
        ("checkpoints",),
        ("train",),
        ("stages", "a"),
        ("stages", "a", "init"),
        ("evaluations", "t"),
    ]
    for _ in range(1200):
        job: dict[str, Any] = {
            "name": "t", "data": "digits", "cluster": {}, "checkpoints": {}, "train": {},
            "stages": {"a": {"net": "A", "scale": 256, "init": {}}}, "evaluations": {"t": {"models": ["a"]}},
        }  # fmt: skip
        for _ in range(draw.randint(1, 2)):
            path = draw.choice(places)
            at = job
            for part in path:
                at = at[part] if isinstance(at.get(part), dict) else {}
            key = draw.choice(shape.keys(("stages", "a") if path == ("train",) else path) or [""])
            at[key] = draw.choice(ONE if draw.random() < 0.6 else SOME)
        text = yaml.safe_dump(job, sort_keys=False)
        try:
            schema.parse(text, "job.yaml")
        except SettingsError:
            continue
        taken += 1
        assert mistakes(text) == []
    assert taken >= 60
