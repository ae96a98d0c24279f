"""Writes checkpoints beside training.

One rule says what is kept: the newest files, `keep` of them, whole epochs or not, and that of the best epoch. So the
file before the newest stands in if that is damaged, and one from the middle of an epoch goes as others are written.
Files with a higher number than the one just written are another writer's, and stay; those that were found damaged when
the run began go.
"""

import logging
import threading
from collections.abc import Set
from dataclasses import dataclass

import torch
from torch import Tensor

from cluster import checkpoint, sealed
from cluster.checkpoint import Checkpoint
from pipelines.errors import CheckpointError, first_line
from pipelines.location import Location

log = logging.getLogger(__name__)


def kept(files: Set[tuple[int, int]], written: tuple[int, int], best: int | None, keep: int) -> Set[tuple[int, int]]:
    """Which of `files`, by epoch and step, are kept after `written` among them was written."""
    behind = sorted(file for file in files if file <= written)
    best_one = set() if best is None else {(best, 0)}
    return files & {*behind[-keep:], *best_one} | (files - set(behind))


@dataclass(frozen=True)
class _Snapshot:
    """A checkpoint of its own memory, on the device; `ready` is recorded there when it was copied."""

    at: tuple[int, int]
    best: int | None
    notes: dict[str, str]
    tensors: dict[str, Tensor]
    device: torch.device
    ready: torch.cuda.Event | None

    @classmethod
    def of(cls, saved: Checkpoint) -> "_Snapshot":
        groups = {"weights": saved.weights, "momentum": saved.momentum, "average": saved.average or {}}
        tensors = {
            f"{group}/{name}": tensor.detach().clone() for group, own in groups.items() for name, tensor in own.items()
        }
        device = next((tensor.device for tensor in tensors.values()), torch.device("cpu"))
        ready = torch.cuda.current_stream(device).record_event() if device.type == "cuda" else None
        done = saved.progress
        best = done.best if done.epochs else None
        return cls((len(done.epochs), done.step), best, checkpoint.notes(saved), tensors, device, ready)

    @property
    def replaceable(self) -> bool:
        """Whether a newer one may take its place while it waits: not that of an epoch's end."""
        return self.at[1] > 0

    def on_host(self) -> dict[str, Tensor]:
        """Its tensors on the CPU and contiguous; the device's memory is let go. Raises CheckpointError: not finite."""
        if self.ready is None:
            return self._fetch()
        # A stream of its own, so that the steps on the device's main one are not held up.
        stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        with torch.cuda.stream(stream):
            stream.wait_event(self.ready)
            return self._fetch()

    def _fetch(self) -> dict[str, Tensor]:
        fetched = {}
        while self.tensors:
            name, tensor = self.tensors.popitem()
            if not _finite(tensor):
                raise _NotFinite(name)
            fetched[name] = tensor.contiguous().cpu()  # a GPU rearranges faster
        return fetched


class _NotFinite(Exception):
    """The name of a tensor that is not to be kept."""


def _finite(tensor: Tensor) -> bool:
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    low, high = tensor.aminmax()  # both NaN if one value is; 15 times faster than isfinite on the CPU
    return bool(torch.isfinite(low) & torch.isfinite(high))


class Writer:
    """Writes checkpoints into `folder` on a thread, and deletes those that are not kept.

    Beside the one that is being written at most one waits, so at most two copies of the tensors are in memory.
    """

    def __init__(self, folder: Location, keep: int, damaged: Set[tuple[int, int]] = frozenset()) -> None:
        """`damaged`: files that are not worth keeping, by epoch and step."""
        self._folder, self._keep, self._damaged = folder, keep, damaged
        self._changed = threading.Condition()
        self._next: _Snapshot | None = None
        self._busy, self._closed = False, False
        self._failure: CheckpointError | None = None
        self._thread = threading.Thread(target=self._work, name="checkpoints", daemon=True)
        self._thread.start()

    def save(self, saved: Checkpoint) -> None:
        """Copies the tensors where they are and returns; they may be changed at once.

        One from the middle of an epoch that still waits is given up for this one; for one of an epoch's end it waits.
        One with values that are not finite is not written, with a warning; of an epoch's end it is a failure. Raises
        CheckpointError: an earlier one could not be written.
        """
        with self._changed:
            assert not self._closed
            self._changed.wait_for(lambda: self._next is None or self._next.replaceable)
            self._next = None  # its memory is free before more is taken
            self._tell()
        snapshot = _Snapshot.of(saved)
        with self._changed:
            self._next = snapshot
            self._changed.notify_all()

    def wait(self) -> None:
        """Until all is written. Raises CheckpointError: it could not be."""
        with self._changed:
            self._changed.wait_for(lambda: self._next is None and not self._busy)
            self._tell()

    def close(self) -> None:
        """Waits, and ends the thread. Raises CheckpointError like `wait`."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()
        self._tell()

    def _tell(self) -> None:
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def _work(self) -> None:
        while (snapshot := self._take()) is not None:
            failure = None
            try:
                self._write(snapshot)
            except CheckpointError as error:
                failure = CheckpointError(str(error))  # without the traceback, which would keep the tensors in memory
            except Exception as error:  # the thread's edge: whoever waits for it has to hear of it
                failure = CheckpointError(
                    f"{checkpoint.path_of(self._folder, *snapshot.at)}: not written: {first_line(error)}"
                )
            with self._changed:
                self._busy = False
                self._failure = self._failure or failure
                self._changed.notify_all()

    def _take(self) -> _Snapshot | None:
        with self._changed:
            self._changed.wait_for(lambda: self._next is not None or self._closed)
            snapshot, self._next = self._next, None
            self._busy = snapshot is not None
            self._changed.notify_all()
            return snapshot

    def _write(self, snapshot: _Snapshot) -> None:
        place = checkpoint.path_of(self._folder, *snapshot.at)
        try:
            pieces = sealed.pack(snapshot.on_host(), snapshot.notes)
        except _NotFinite as error:
            if not snapshot.replaceable:  # an epoch that ends so is none to go on from, or to deliver
                raise CheckpointError(f"{place}: not written: {error} has values that are not finite") from error
            log.warning("%s: not written: %s has values that are not finite", place, error)
            return
        try:
            place.write(*pieces)
        except OSError as error:
            raise CheckpointError(f"{place}: cannot be written: {error.strerror or first_line(error)}") from error
        self._prune(snapshot)

    def _prune(self, snapshot: _Snapshot) -> None:
        try:
            files = checkpoint.files_of(self._folder)
            damaged = (self._damaged & files.keys()) - {snapshot.at}
            good = files.keys() - damaged
            for at in damaged | (good - kept(good, snapshot.at, snapshot.best, self._keep)):
                files[at].delete()
            self._damaged = frozenset()
            self._folder.sweep()
        except (CheckpointError, OSError) as error:  # the checkpoint itself is there
            log.warning("%s: older checkpoints cannot be deleted: %s", self._folder, first_line(error))
