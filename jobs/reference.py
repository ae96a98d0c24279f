"""The page of the documentation that lists every setting of a job file, docs/settings.md; pure."""

from collections.abc import Iterator

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from cluster.settings import (
    CheckpointSettings,
    ClusterSettings,
    Cosine,
    EvaluationSettings,
    Init,
    Plateau,
    StageSettings,
    StepSchedule,
)
from jobs import shape
from jobs.document import in_line
from jobs.job import Data, Job
from jobs.recipes import MEANINGS, RECIPES

RECIPE_MEANING = "named settings that this one's own come over; null: none"

_HEAD = """# Settings

<!-- Made by `make docs` from the models in cluster/settings.py and jobs/job.py, where a setting is documented. -->

A job file is YAML 1.1, but that `1e-3` is a number and a date is text. Whatever is wrong with it is told of before
anything starts, a line for each mistake: `job.yaml:7:12: train.epochs: expected a whole number of 1 or more, not
'many'`. Editors that know the YAML language server complete and check job files by `jobs/job.schema.json`; a line of
the file says so: `# yaml-language-server: $schema=job.schema.json`.

**Where a setting comes from.** A stage has, the later ones over the earlier: the defaults below, a recipe's settings,
those of `train`, its own. Mappings inside (`plateau: {patience: 3}`) are merged likewise. A stage that starts from
another one, and says no `net`, nor does `train`, has that stage's. `verydeep plan JOB.yaml --resolved` prints every
setting with its value and its origin, as YAML that can be pasted.

**Changes on the command line.** `--set stages.e.epochs=10` changes what the file says, and is checked as the file is;
the value is YAML, and may be a list or a mapping. Items of lists are numbered from 0: `--set
evaluations.t.models.0=a`. A new stage comes whole: `--set 'stages.x={net: A, scale: 256}'`. `train` can be set, too:
stages that say otherwise stay as they are.

**Sweeps.** A list in the place of one value makes a stage for each item: `deep: {net: [B, C, D, E]}` makes `deep-B`,
`deep-C`, `deep-D` and `deep-E`, two lists all pairs (`deep-B-0.01`). Of `scale`, whose own list is a range, it is a
list with lists in it: `[[256, 512], 384]`. A stage that starts from a sweep, `jitter: {init: {from: deep}}`, is made
for each of its members: `jitter-B` from `deep-B`. In `after` and in a test's `models` a sweep's name stands for all
of its members; `deep-B` names one. Changes reach one, too: `--set stages.deep-B.epochs=3`. What is in `train` is not
swept.

**Variables of the environment.** `${env:NAME}` in a value stands for what the environment of the command has, such as
a bucket's name: `storage: s3://${env:BUCKET}/runs`. Where a setting takes text, text is what it gets; elsewhere what
results is read as YAML reads a word: `workers: ${env:WORKERS}` is a number. Inside `{...}` and `[...]` YAML wants
quotes around it. `$${` stands for `${`; there is no other templating, and none in keys.
"""


def page() -> str:
    return "\n".join(_lines())


def _lines() -> Iterator[str]:
    yield from _HEAD.splitlines()
    yield from _part("The job", Job, "", extra={"train": ("a mapping of settings", "", "settings of all stages")})
    yield from _part("`data`", Data, "Or `data: digits`, for scikit-learn's, which come with the program.")
    yield from _part("`cluster`", ClusterSettings)
    yield from _part("`checkpoints`", CheckpointSettings)
    recipe = (shape.words(shape.at(("stages", "", "recipe"))), "", RECIPE_MEANING)
    yield from _part("`train`, and each of `stages`", StageSettings, extra={"recipe": recipe})
    for name, model in (("init", Init), ("plateau", Plateau), ("step", StepSchedule), ("cosine", Cosine)):
        yield from _part(f"`{name}` of a stage", model)
    yield from _part("Each of `evaluations`", EvaluationSettings)
    yield from _recipes()


def _part(
    title: str, model: type[BaseModel], about: str = "", extra: dict[str, tuple[str, str, str]] | None = None
) -> Iterator[str]:
    text = about or " ".join((model.__doc__ or "").split("\n\n")[0].split())
    yield from ("", f"## {title}", "", text, "", "| key | takes | default | meaning |", "|---|---|---|---|")
    for key, field in shape.fields(model).items():
        yield _row(key, shape.words(shape.kind_of(field)), _default(field), field.description or "")
    for key, cells in (extra or {}).items():
        yield _row(key, *cells)


def _row(key: str, takes: str, default: str, meaning: str) -> str:
    cells = (takes, default, meaning)
    return f"| `{key}` | " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _default(field: FieldInfo) -> str:
    """As in a job file; nothing of a mapping, whose settings have their own."""
    if field.is_required():
        return "none: has to be said"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return ""
    if isinstance(value, tuple) and len(set(value)) == 1:
        value = value[0]
    return f"`{in_line(list(value) if isinstance(value, tuple) else value)}`"


def _recipes() -> Iterator[str]:
    yield from ("", "## Recipes", "")
    for name, settings in RECIPES.items():
        yield from (f"`recipe: {name}`: {MEANINGS[name]}.", "")
        if settings:
            yield from ("| setting | value |", "|---|---|")
            yield from (f"| `{key}` | `{in_line(value)}` |" for key, value in settings.items())
            yield ""
