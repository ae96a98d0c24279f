"""What all parts of a run share."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cluster.interrupt import Stop
from cluster.track import Tracker
from jobs.check import Checked
from jobs.lease import Lease
from jobs.store import StageFolder, read_json, write_json
from jobs.watch import Watch
from pipelines.location import Location


@dataclass(frozen=True)
class Site:
    """`folders`: where each stage is, or will be. `parent`: the job's run in MLflow."""

    checked: Checked
    folders: Mapping[str, StageFolder]
    tracker: Tracker
    parent: str
    watch: Watch
    stop: Stop
    lease: Lease


def open_run(
    tracker: Tracker,
    note: Location,
    name: str,
    parent: str | None,
    tags: Mapping[str, str],
    inputs: Sequence[Mapping[str, Any]] = (),
) -> str:
    """A run in MLflow that is noted in the file `note`, so that a later attempt goes on in it; `inputs`: data sets."""
    known = read_json(note) or {}
    before = known.get("run")
    restarts = known.get("restarts", 0) + 1 if isinstance(before, str) else 0
    run = tracker.open_run(
        name, parent, {**tags, "restarts": str(restarts)}, before if isinstance(before, str) else None, inputs
    )
    write_json(note, {"run": run, "restarts": restarts})
    return run
