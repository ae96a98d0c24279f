"""A job's folder in the storage, on a disk that all nodes share or in an object store:

runs/<job>/job.yaml                  the job with every setting written out
runs/<job>/job.json                  the job's run in MLflow
runs/<job>/stages.json               the keys of its stages: which folders are the job's as it is now
runs/<job>/<stage>-<key>/            one stage: checkpoints, run.json (its run in MLflow), and last, done.json
runs/<job>/results.json              the tests; as tables, too: results.csv, results.md
runs/<job>/tests/                    the posteriors of their nets
runs/<job>/report.html               all of it as a page
"""

import errno
import json
import os
import uuid
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import TypeAdapter

from cluster import checkpoint
from cluster.checkpoint import Epoch, Progress
from pipelines.errors import CheckpointError, ClusterError, DataError, first_line
from pipelines.location import Location

JOB, STAGES, DONE = "job.yaml", "stages.json", "done.json"
RESULTS, TESTS, REPORT = "results.json", "tests", "report.html"

_LONGEST_NAME, _LONGEST_PATH = 255, 3900  # bytes, on Linux; of the path with room for what is below it

_EPOCHS = TypeAdapter(list[Epoch])


@dataclass(frozen=True)
class StageFolder:
    """The folder of the stage `name` with the key `key`; another key is another folder."""

    path: Location
    name: str
    key: str

    def finished(self) -> "Finished | None":
        content = read_json(self.path / DONE)
        if content is None or content.get("key") != self.key:
            return None
        finished = Finished(self.path / content["delivered"], epochs_of(content))
        return finished if finished.delivered.exists() else None

    def progress(self) -> Progress:
        """Where an unfinished run stands."""
        return checkpoint.progress(self.path)

    def finish(self, progress: Progress, deliver: str) -> "Finished":
        """Marks the stage as done. Raises CheckpointError: the checkpoint that it delivers is not there."""
        delivered = checkpoint.path_of(self.path, progress.best if deliver == "best" else len(progress.epochs))
        if not delivered.exists():
            raise CheckpointError(f"{delivered}: no such checkpoint, of the epoch that stage {self.name} delivers")
        epochs = [asdict(epoch) for epoch in progress.epochs]
        write_json(self.path / DONE, {"key": self.key, "delivered": delivered.name, "epochs": epochs})
        return Finished(delivered, progress.epochs)

    def clear(self) -> None:
        """Raises ClusterError."""
        try:
            self.path.delete_folder()
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

    def stage(self, name: str, key: str) -> StageFolder:
        return StageFolder(self.root / f"{name}-{key[:12]}", name, key)

    def note_stages(self, folders: dict[str, StageFolder]) -> None:
        """For those who have the folder alone. Raises ClusterError."""
        write_json(self.root / STAGES, {name: folder.key for name, folder in folders.items()})

    def noted_stages(self) -> dict[str, StageFolder]:
        """None before a run has noted them. Raises ClusterError."""
        noted = read_json(self.root / STAGES) or {}
        return {name: self.stage(name, key) for name, key in noted.items() if isinstance(key, str)}


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
