"""A job's folder in the storage, on a disk that all nodes share or in an object store:

runs/<job>/job.yaml                  the job with every setting written out
runs/<job>/job.json                  the job's run in MLflow
runs/<job>/stages.json               its stages: their keys, and which folders are the job's as it is now
runs/<job>/<stage>-<key>/            one stage: first key.json (what its key is made of), then checkpoints and run.json
                                     (its run in MLflow), last done.json
runs/<job>/results.json              the tests; as tables, too: results.csv, results.md
runs/<job>/tests/                    the posteriors of their nets
runs/<job>/report.html               all of it as a page
runs/<job>/spool/                    what MLflow has not been told yet
runs/<job>/lease.json, stop.json     who runs it, and the wish that he stops (see `lease`)
stages/<key>.json                    in which jobs' folders the stage with this key is done, for other jobs

Each file is there whole or not at all. One alone makes a stage done, done.json; what is written before it (checkpoints,
an entry in stages/) counts for nothing without it, so that a driver may be killed between any two writes.
"""

import errno
import json
import os
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any

from pydantic import TypeAdapter

from cluster import checkpoint
from cluster.checkpoint import Epoch, Progress
from pipelines.errors import CheckpointError, ClusterError, DataError, first_line
from pipelines.location import Location

JOB, STAGES, DONE, KEY = "job.yaml", "stages.json", "done.json", "key.json"
RESULTS, TESTS, REPORT, SPOOL = "results.json", "tests", "report.html", "spool"
INDEX = "stages"  # beside runs/

_MOST_COPIES = 8  # folders of one stage that the index names, the newest first
_LONGEST_NAME, _LONGEST_PATH = 255, 3900  # bytes, on Linux; of the path with room for what is below it

_EPOCHS = TypeAdapter(list[Epoch])


@dataclass(frozen=True)
class StageFolder:
    """The folder of the stage `name` with the key `key`; another key is another folder.

    `path`: where it is, in another job's folder if `job` names that one. `content`: what the key is made of. `source`:
    the stage or file that it starts from, for people.
    """

    path: Location
    name: str
    key: str
    content: Mapping[str, Any] | None = None
    source: str | None = None
    job: str | None = None

    def finished(self) -> "Finished | None":
        """None, too, if what marks it as done is damaged, or the net that it delivers is gone."""
        content = read_json(self.path / DONE)
        if content is None or content.get("key") != self.key:
            return None
        try:
            finished = Finished(self.path / str(content["delivered"]), epochs_of(content))
        except (KeyError, ValueError):
            return None
        return finished if finished.epochs and finished.delivered.exists() else None

    def progress(self) -> Progress:
        """Where an unfinished run stands. Raises CheckpointError."""
        if (read_json(self.path / KEY) or {}).get("clearing"):
            return Progress()
        return checkpoint.progress(self.path)

    def begin(self, fresh: bool = False) -> None:
        """Before it is trained: notes what its key is made of. With `fresh`, what is there is deleted; then, too, if
        that was begun before, and broken off. Raises ClusterError."""
        noted = read_json(self.path / KEY) or {}
        if fresh or noted.get("clearing"):
            self._clear()
        elif noted.get("key") == self.key:
            return
        write_json(self.path / KEY, self._note(fresh or noted.get("fresh") is True))

    def finish(self, progress: Progress, deliver: str) -> "Finished":
        """Marks the stage as done. Raises CheckpointError: the checkpoint that it delivers is not there."""
        delivered = checkpoint.path_of(self.path, progress.best if deliver == "best" else len(progress.epochs))
        if not delivered.exists():
            raise CheckpointError(f"{delivered}: no such checkpoint, of the epoch that stage {self.name} delivers")
        epochs = [asdict(epoch) for epoch in progress.epochs]
        _note_copy(self)  # first: without a done.json it is of no effect
        write_json(self.path / DONE, {"key": self.key, "delivered": delivered.name, "epochs": epochs})
        return Finished(delivered, progress.epochs)

    def _note(self, fresh: bool) -> dict[str, Any]:
        begun = datetime.now(UTC).isoformat(timespec="seconds")
        return {"key": self.key, "content": self.content, "from": self.source, "begun": begun, "fresh": fresh}

    def _clear(self) -> None:
        """In such an order that a stage cleared by half is neither done nor goes on."""
        write_json(self.path / KEY, {**self._note(fresh=True), "clearing": True})
        try:
            (self.path / DONE).delete()
            for name, place in self.path.files().items():
                if name != KEY:
                    place.delete()
        except OSError as error:
            raise ClusterError(f"storage: {self.path} cannot be deleted: {reason(error)}") from error


@dataclass(frozen=True)
class Finished:
    """What a finished stage left: the checkpoint for later stages and tests, and its epochs."""

    delivered: Location
    epochs: list[Epoch]

    @property
    def accuracy(self) -> float:
        """On the validation set, of the best epoch."""
        return max(epoch.validation_accuracy for epoch in self.epochs)


def epochs_of(done: dict[str, Any]) -> list[Epoch]:
    """Out of a done.json. Raises ValueError or KeyError if it is not what `StageFolder.finish` writes."""
    return _EPOCHS.validate_python(done["epochs"])


@dataclass(frozen=True)
class Store:
    root: Location

    @classmethod
    def of(cls, storage: Location, job: str) -> "Store":
        return cls(storage / "runs" / job)

    def check(self) -> None:
        """Raises ClusterError if the folder could not be made; makes nothing."""
        disk = self.root.disk
        if disk is None:
            self._check_bucket()
            return
        if any(len(os.fsencode(part)) > _LONGEST_NAME for part in disk.parts) or len(os.fsencode(disk)) > _LONGEST_PATH:
            raise ClusterError(f"storage: {self.root} cannot be written: {os.strerror(errno.ENAMETOOLONG)}")
        there = next(place for place in (disk, *disk.parents) if place.exists())
        if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
            raise ClusterError(
                f"storage: {self.root} cannot be written: {there} is not a folder that may be written to"
            )

    def _check_bucket(self) -> None:
        bucket = Location(self.root.filesystem, self.root.path.partition("/")[0], self.root.text)
        try:
            missing = not bucket.exists()
        except DataError as error:
            raise ClusterError(f"storage: {error}") from error
        if missing:
            raise ClusterError(f"storage: {self.root} cannot be written: there is no bucket {bucket.path}")

    def create(self) -> None:
        """Raises ClusterError if the storage cannot be written."""
        probe = self.root / f"probe-{uuid.uuid4().hex[:8]}"
        try:
            probe.write(b"")
            probe.delete()
        except OSError as error:
            raise ClusterError(f"storage: {self.root} cannot be written: {reason(error)}") from error

    def stage(
        self, name: str, key: str, content: Mapping[str, Any] | None = None, source: str | None = None
    ) -> StageFolder:
        """In the job's own folder; nothing is read."""
        return StageFolder(self.root / f"{name}-{key[:12]}", name, key, content, source)

    def own(self, folder: StageFolder) -> StageFolder:
        """The same stage in the job's own folder, such as to train it there."""
        return self.stage(folder.name, folder.key, folder.content, folder.source)

    def found(self, folder: StageFolder) -> StageFolder:
        """The same stage where it is done: in the job's own folder, or another job's; the own one if it is not, or was
        begun with --fresh. Raises ClusterError or DataError."""
        own = self.own(folder)
        if own.finished() is not None or (read_json(own.path / KEY) or {}).get("fresh") is True:
            return own
        there = (replace(own, path=path, job=path.parent.name) for path in _copies(own) if path.path != own.path.path)
        return next((copy for copy in there if copy.finished() is not None), own)

    def note_stages(self, folders: Mapping[str, StageFolder]) -> None:
        """For those who have the folder alone. Raises ClusterError."""
        noted = {name: {"key": f.key, "folder": f.path.name, "job": f.job} for name, f in folders.items()}
        write_json(self.root / STAGES, noted)

    def noted_stages(self) -> dict[str, StageFolder]:
        """None before a run has noted them. Raises ClusterError."""
        noted = read_json(self.root / STAGES) or {}
        found = {name: self._noted(name, note) for name, note in noted.items()}
        return {name: folder for name, folder in found.items() if folder is not None}

    def _noted(self, name: str, note: object) -> StageFolder | None:
        match note:
            case str():  # as earlier versions wrote it
                return self.stage(name, note)
            case {"key": str(key), "folder": str(folder), "job": None}:
                return replace(self.stage(name, key), path=self.root / folder)
            case {"key": str(key), "folder": str(folder), "job": str(job)}:
                return replace(self.stage(name, key), path=self.root.parent / job / folder, job=job)
        return None


def _index(folder: StageFolder) -> Location:
    return folder.path.parent.parent.parent / INDEX / f"{folder.key}.json"


def _copies(own: StageFolder) -> list[Location]:
    """The folders in which the index says that the stage is done, the newest first."""
    noted = (read_json(_index(own)) or {}).get("copies")
    runs = own.path.parent.parent
    return [runs / job / folder for job, folder in map(_copy, noted if isinstance(noted, list) else []) if job]


def _copy(note: object) -> tuple[str, str]:
    match note:
        case {"job": str(job), "folder": str(folder)}:
            return job, folder
    return "", ""


def _note_copy(own: StageFolder) -> None:
    """Relative to the storage, so that it can be moved."""
    places = [own.path, *(place for place in _copies(own) if place.path != own.path.path)]
    copies = [{"job": place.parent.name, "folder": place.name} for place in places[:_MOST_COPIES]]
    write_json(_index(own), {"key": own.key, "copies": copies})


def write_json(place: Location, content: dict[str, Any]) -> None:
    write_text(place, json.dumps(content, indent=1) + "\n")


def write_text(place: Location, content: str) -> None:
    """There whole or not at all. Raises ClusterError."""
    try:
        place.write(content.encode())
    except OSError as error:
        raise ClusterError(f"storage: {place} cannot be written: {reason(error)}") from error


def read_text(place: Location) -> str | None:
    """None if there is no such file. Raises ClusterError: it cannot be read."""
    try:
        return bytes(place.read()).decode(errors="replace")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise ClusterError(f"storage: {place} cannot be read: {reason(error)}") from error


def read_json(place: Location) -> dict[str, Any] | None:
    """None if there is no such file, or it holds no JSON mapping."""
    text = read_text(place)
    try:
        content = json.loads(text) if text is not None else None
    except ValueError:
        return None
    return content if isinstance(content, dict) else None


def reason(error: OSError) -> str:
    """In words, for a line of ours."""
    return error.strerror or first_line(error)
