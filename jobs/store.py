"""A job's folder in the storage:

runs/<job>/job.yaml                  the job with every setting written out
runs/<job>/job.json                  the job's run in MLflow
runs/<job>/<stage>-<key>/            one stage: checkpoints, run.json (its run in MLflow), and last, done.json
runs/<job>/results.csv, results.md   the tests
"""

import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cluster import checkpoint
from cluster.checkpoint import Epoch, Progress
from pipelines.errors import ClusterError


@dataclass(frozen=True)
class StageFolder:
    """The folder of the stage `name` with the key `key`; another key is another folder."""

    path: Path
    name: str
    key: str

    def create(self) -> None:
        self.path.mkdir(parents=True, exist_ok=True)

    def finished(self) -> "Finished | None":
        content = read_json(self.path / "done.json")
        if content is None or content.get("key") != self.key:
            return None
        finished = Finished(self.path / content["delivered"], [Epoch(**epoch) for epoch in content["epochs"]])
        return finished if finished.delivered.exists() else None

    def epochs(self) -> int:
        """How many epochs an unfinished run has behind it."""
        saved = checkpoint.newest(self.path)
        return len(saved.progress.epochs) if saved else 0

    def finish(self, progress: Progress, deliver: str) -> "Finished":
        """Marks the stage as done; what was needed only to go on is deleted."""
        delivered = checkpoint.path_of(self.path, progress.best if deliver == "best" else len(progress.epochs))
        epochs = [asdict(epoch) for epoch in progress.epochs]
        write_json(self.path / "done.json", {"key": self.key, "delivered": delivered.name, "epochs": epochs})
        shutil.rmtree(self.path / "ray", ignore_errors=True)
        return Finished(delivered, progress.epochs)

    def clear(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)


@dataclass(frozen=True)
class Finished:
    """What a finished stage left: the checkpoint for later stages and tests, and its epochs."""

    delivered: Path
    epochs: list[Epoch]


@dataclass(frozen=True)
class Store:
    root: Path

    @classmethod
    def of(cls, storage: Path, job: str) -> "Store":
        return cls(storage / "runs" / job)

    def check(self) -> None:
        """Raises ClusterError if the folder could not be made; makes nothing."""
        there = next(place for place in (self.root, *self.root.parents) if place.exists())
        if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
            raise ClusterError(
                f"storage: {self.root} cannot be written: {there} is not a folder that may be written to"
            )

    def create(self) -> None:
        """Raises ClusterError if the storage cannot be written."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            probe = self.root / f".probe-{os.getpid()}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise ClusterError(f"storage: {self.root} cannot be written: {error.strerror}") from error

    def stage(self, name: str, key: str) -> StageFolder:
        return StageFolder(self.root / f"{name}-{key[:12]}", name, key)


def write_json(path: Path, content: dict[str, Any]) -> None:
    write_text(path, json.dumps(content, indent=1) + "\n")


def write_text(path: Path, content: str) -> None:
    """There whole or not at all."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    aside.write_text(content)
    aside.rename(path)


def read_json(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None
