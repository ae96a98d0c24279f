"""What all parts of a run share."""

from collections.abc import Mapping
from dataclasses import dataclass

from cluster.interrupt import Stop
from cluster.track import Tracker
from jobs.check import Checked
from jobs.lease import Lease
from jobs.store import StageFolder, read_json, write_json
from jobs.watch import Watch
from pipelines.location import Location


@dataclass(frozen=True)
class Site:
    """`folders`: where each stage is, or will be. `parent`: the job's run in MLflow. `origins`: tags of all runs."""

    checked: Checked
    folders: dict[str, StageFolder]
    tracker: Tracker
    parent: str
    origins: Mapping[str, str]
    watch: Watch
    stop: Stop
    lease: Lease


def open_run(tracker: Tracker, note: Location, name: str, parent: str | None, tags: Mapping[str, str]) -> str:
    """A run whose id is kept in the file `note`, so that a later attempt goes on in it."""
    known = (read_json(note) or {}).get("run")
    run = tracker.open_run(name, parent, tags, known if isinstance(known, str) else None)
    write_json(note, {"run": run})
    return run
