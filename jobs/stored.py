"""A job as its folder in the storage tells of it, whether it has finished or not; see `store` for what lies where."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from typing import get_args

from cluster import checkpoint, posteriors
from cluster.checkpoint import Epoch
from cluster.posteriors import Posteriors
from cluster.settings import StageSettings
from cluster.views import Mode
from jobs import current, graph, results, schema
from jobs.results import Result, Subject
from jobs.schema import Job
from jobs.store import DONE, JOB, RESULTS, STAGES, TESTS, StageFolder, Store, epochs_of, read_json, read_text
from pipelines.errors import CheckpointError, DataError, SettingsError, first_line
from pipelines.location import Location


@dataclass(frozen=True)
class StoredStage:
    """`epochs`: those that are done. `problem`: why they, or the net, could not be read, if so. `seal`: of the net that
    it delivers, if it has finished."""

    name: str
    settings: StageSettings
    epochs: list[Epoch]
    finished: bool
    changed: datetime | None
    problem: str | None = None
    seal: str | None = None

    @property
    def delivered(self) -> int:
        """The epoch (from 1) whose net later stages and tests take, if no other follows."""
        return self.best if self.settings.deliver == "best" else len(self.epochs)

    @property
    def best(self) -> int:
        """Which epoch (from 1) has the best validation accuracy."""
        return checkpoint.Progress(self.epochs).best

    @property
    def drops(self) -> list[int]:
        """The epochs (from 1) before which the learning rate was divided; along a cosine it is not."""
        if self.settings.cosine is not None:
            return []
        rates = [epoch.learning_rate for epoch in self.epochs]
        return [i + 1 for i in range(1, len(rates)) if rates[i] < rates[i - 1]]


@dataclass(frozen=True)
class Stored:
    """`stages`: each after the one that it starts from. `results`: of the job's tests and nets as they are now; `old`:
    the others, and why they are not."""

    root: Location
    job: Job
    job_text: str
    stages: list[StoredStage]
    results: list[Result]
    old: list[tuple[Result, str]]
    tested: datetime | None

    @property
    def unfinished(self) -> list[StoredStage]:
        return [stage for stage in self.stages if not stage.finished]

    @property
    def finished(self) -> bool:
        """With all tests."""
        return not self.unfinished and not self.untested

    @property
    def untested(self) -> list[str]:
        """The names of tests that have not been carried out, or not as they are now."""
        return current.untested(self.job, self.results)

    @property
    def changed(self) -> datetime | None:
        """When the newest of it was written."""
        times = [self.tested, *(stage.changed for stage in self.stages)]
        return max((time for time in times if time is not None), default=None)

    @property
    def seconds(self) -> float:
        """Of training and validation, over all attempts, in epochs that are done."""
        return sum(epoch.seconds for stage in self.stages for epoch in stage.epochs)


def read(store: Store) -> Stored:
    """Raises SettingsError or DataError: no such run, or one of another version of the program; ClusterError: the
    storage cannot be read."""
    text = read_text(store.root / JOB)
    if text is None:
        raise DataError(f"{store.root}: holds no run of a job (it has no {JOB})")
    job = schema.parse(text, str(store.root / JOB))
    folders = store.noted_stages()
    if missing := [name for name in job.stages if name not in folders]:
        raise DataError(
            f"{store.root / STAGES}: says nothing of {', '.join(missing)}; `verydeep run` of the job writes it, "
            "and does not run again what is done"
        )
    order = graph.in_order(schema.needs(job))
    stages = [_stage(folders[name], job.stages[name]) for name in order]
    seals = {stage.name: stage.seal for stage in stages}
    judged = [(found, current.why_old(found, job, seals)) for found in _results(store.root / RESULTS)]
    shown, old = [found for found, why in judged if why is None], [(found, why) for found, why in judged if why]
    return Stored(store.root, job, text, stages, shown, old, (store.root / RESULTS).changed())


def _stage(folder: StageFolder, settings: StageSettings) -> StoredStage:
    done = folder.path / DONE
    content = read_json(done)
    finished = content is not None and content.get("key") == folder.key
    try:
        if content is not None and finished:
            stage = StoredStage(folder.name, settings, epochs_of(content), True, done.changed())
            return _with_seal(stage, folder.path / content["delivered"])
        epochs, files = folder.progress().epochs, checkpoint.files_of(folder.path)
        changed = files[max(files)].changed() if files else None
        gone = f"it was done in job {folder.job}, and {folder.path} is no more" if folder.job and not files else None
        return StoredStage(folder.name, settings, epochs, False, changed, gone)
    except CheckpointError as error:
        return StoredStage(folder.name, settings, [], finished, None, first_line(error))
    except (KeyError, TypeError, ValueError):
        return StoredStage(folder.name, settings, [], finished, None, f"{done}: damaged, or of another version")


def _with_seal(stage: StoredStage, delivered: Location) -> StoredStage:
    try:
        return replace(stage, seal=checkpoint.read_head(delivered).seal)
    except CheckpointError as error:
        return replace(stage, problem=first_line(error))


def _results(place: Location) -> list[Result]:
    content = read_json(place)
    if content is None:
        return []
    try:
        return results.from_json(content)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{place}: holds no results of this version of the program; test again") from error


def tested_posteriors(stored: Stored) -> Iterator[tuple[Result, Posteriors | str]]:
    """Results, the smallest top-1 error first, each with its posteriors, or with a line that says why these are not
    there. One result's are read at a time, when it is asked for."""
    for result in sorted(stored.results, key=lambda result: -result.totals.accuracy):
        if not all(subject.posteriors for subject in result.subjects):
            yield result, "its posteriors were not kept"
            continue
        try:
            yield result, results.averaged(stored.root / TESTS, result)
        except DataError as error:
            yield result, first_line(error)


def single_scales(stored: Stored) -> list[Result]:
    """What the nets that were tested came to at each Q by itself, as far as their posteriors are there."""
    found: dict[str, Result] = {}
    for result in stored.results:
        for subject in result.subjects:
            for name in subject.posteriors:
                if name not in found and (single := _single(stored.root / TESTS, name, subject, result)):
                    found[name] = single
    return list(found.values())


def _single(folder: Location, name: str, subject: Subject, result: Result) -> Result | None:
    try:
        origin, totals = posteriors.look(folder / name)
    except DataError:
        return None
    if origin.get("mode") not in get_args(Mode) or not isinstance(origin.get("scale"), int):
        return None
    alone = replace(subject, scales=(origin["scale"],), posteriors=(name,))
    return Result(result.test, (alone,), origin["mode"], result.classes, totals)


def store_of(job: str) -> Store:
    """Of a job file, or of a run's folder. Raises SettingsError or DataError."""
    if not job.endswith((".yaml", ".yml")):
        return Store(Location.of(job))
    loaded = schema.load(job)
    try:
        return Store.of(loaded.root, loaded.name)
    except DataError as error:
        raise SettingsError(f"storage: {error}") from error
