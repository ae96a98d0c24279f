"""What tests came to, for people and programs: tables in the folder of results and in MLflow, and the best net."""

import json
import re
from collections.abc import Sequence
from concurrent.futures import Future

from cluster.registry import ALIAS
from cluster.track import Tracker
from jobs import results, tables
from jobs.checkpoints import Model
from jobs.results import Result, scale_text
from jobs.store import RESULTS, write_text
from pipelines.location import Location


def publish(found: Sequence[Result], folder: Location, tracker: Tracker, run: str) -> None:
    """results.csv, .md and .json in the folder; these, a table and the errors as metrics in the MLflow run.

    Raises ClusterError.
    """
    shown = tables.tables(found)
    content = {
        "results.csv": tables.as_csv(shown),
        "results.md": tables.markdown(shown),
        RESULTS: json.dumps(results.to_json(found), indent=1) + "\n",
    }
    for file, text in content.items():
        write_text(folder / file, text)
        tracker.artifact(run, folder / file)
    tracker.table(run, tables.columns(shown), "results_table.json")
    for result in found:
        name = f"{result.test}.{_named(result.model)}"
        several = len({other.mode for other in found if other.test == result.test}) > 1
        tracker.metrics(run, {f"{name}.{key}": value for key, value in errors(result, several).items()}, 0)


def register(
    job: str, model: Model, tested: Result | None, tracker: Tracker, run: str, aliases: Sequence[str] = (ALIAS,)
) -> "Future[str]":
    """Into MLflow's model registry, under the job's name: a net, and how to use it. Its version comes when it is there.

    `tested`: the test that it was the best in.
    """
    card = model.label.card
    tags = {"job": job, "stage": model.name, "net": card.net, "S": scale_text(card.scale)}
    if tested is not None:
        told = errors(tested, with_mode=False)
        tags |= {"test": f"{tested.test}, {tested.mode}", **{k: f"{told[k]:.6g}" for k in ("top1_error", "top5_error")}}
    return tracker.register(run, job, model.file, tags, aliases)


def alias(stage: str) -> str:
    """Of the stage's net in the registry, in the characters that MLflow takes; some names are MLflow's, or ours."""
    name = re.sub(r"[^\w-]", "_", stage)
    return f"stage-{name}" if re.fullmatch(rf"latest|{ALIAS}|v\d+", name, re.IGNORECASE) else name


def errors(result: Result, with_mode: bool) -> dict[str, float]:
    """As metrics; `with_mode`: the mode is part of their names, since the test has several."""
    mode = f"{result.mode}." if with_mode else ""
    t = result.totals
    found = {"top1_error": 1 - t.accuracy, "top5_error": 1 - t.accuracy5, "unreadable_images": float(t.unreadable)}
    return {f"{mode}{key}": value for key, value in found.items()}


def _named(models: str) -> str:
    """In the characters that MLflow takes."""
    return re.sub(r"[^\w.-]", "_", models.replace("+", "_and_"))
