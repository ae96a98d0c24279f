"""The board of a job of which only what it left in its storage is known."""

import time
from datetime import datetime

from jobs import outline, stored
from jobs.board import Board, Snapshot
from jobs.line import Phase
from jobs.store import Store
from jobs.stored import Stored, StoredStage
from pipelines.location import Location


def read(root: Location) -> tuple[Snapshot, datetime | None]:
    """Of the job in the folder `root`; and when the newest of it was written. Raises what `stored.read` raises."""
    job = stored.read(Store(root))
    return _board(job), job.changed


def _board(job: Stored) -> Snapshot:
    now = time.time()
    board = Board(job.job.name, outline.lines(job.job), since=now)
    for stage in job.stages:
        board.recall(stage.name, stage.epochs, stage.settings.epochs)
        board.set(stage.name, _phase(stage), stage.problem or "", now)
    unfinished = {stage.name for stage in job.unfinished}
    tests = job.job.evaluations
    for model in {model for test in tests.values() for model in test.models} - unfinished:
        missing = [tests[name] for name in job.untested if model in tests[name].models]
        if not any(unfinished.isdisjoint(test.models) for test in missing):  # what is missing waits for other nets
            board.set(outline.test_of(model), Phase.DONE, now=now)
    return board.snapshot(now)


def _phase(stage: StoredStage) -> Phase:
    if stage.problem is not None:
        return Phase.FAILED
    if stage.finished:
        return Phase.DONE
    return Phase.STOPPED if stage.epochs else Phase.WAITING
