"""All that can be found wrong with a job before a worker starts: data sets, classes, what stages start from."""

import os
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from cluster import init, nets
from cluster.nets import Label
from cluster.settings import StageSettings
from jobs import checkpoints, fingerprint, graph, schema
from jobs.checkpoints import Model
from jobs.past import READERS
from jobs.plan import Action, Decision, State
from jobs.reasons import Past
from jobs.schema import Data, Job, frozen_at_random, is_file
from jobs.store import StageFolder, Store
from pipelines import sources
from pipelines.errors import CheckpointError, DataError, SettingsError, first_line
from pipelines.location import Location
from pipelines.prepare import prepare
from pipelines.schema import MANIFEST, VERSION
from pipelines.shards import DataSet
from pipelines.sources import Source

_DIGITS = f"digits-v1.{VERSION}"  # the first number rises when they are drawn in another way


@dataclass(frozen=True)
class Checked:
    """A job whose data sets are open and whose stages have their keys: ready to be planned and run.

    `folders`: where each stage is, another job's if it is done there alone. `files`: that tests name, beside stages.
    """

    job: Job
    store: Store
    data: Data
    training: DataSet
    validation: DataSet
    order: list[str]
    folders: dict[str, StageFolder]
    files: dict[str, Model]

    def states(self) -> dict[str, State]:
        """What the storage has of each stage. Raises CheckpointError, ClusterError or DataError: it cannot be read."""
        with ThreadPoolExecutor(READERS) as pool:
            return dict(zip(self.folders, pool.map(self._state, self.folders.values()), strict=True))

    def _state(self, folder: StageFolder) -> State:
        finished = folder.finished()
        if finished is not None:
            return State(True, len(finished.epochs), job=folder.job)
        progress = folder.progress()
        steps = -(-self.training.rows // self.job.stages[folder.name].batch)
        return State(False, len(progress.epochs), progress.step, steps)

    def begun(self, decisions: Iterable[Decision]) -> dict[str, StageFolder]:
        """Where each stage is, or will be trained; what `--fresh` takes is deleted. All of it before the first stage is
        trained: if that is broken off, a run without `--fresh` goes on with it. Raises ClusterError."""
        folders = dict(self.folders)
        for decision in decisions:
            if decision.action is Action.AGAIN:
                folders[decision.stage] = self.store.own(folders[decision.stage])
                folders[decision.stage].begin(fresh=True)
        return folders

    def now(self) -> dict[str, Past]:
        """The stages as they are now, to be compared with what they were."""
        return {name: Past(f.key, f.content or {}, f.source, "") for name, f in self.folders.items()}


def check(job: Job) -> Checked:
    """Raises DataError, SettingsError or CheckpointError, one line each."""
    if "://" not in job.storage and not os.path.isabs(os.path.expanduser(job.storage)):  # ~nobody stays as it is
        raise SettingsError(
            f"storage: {job.storage}: expected a whole path (from / or ~) of a folder that all nodes share, or a URI"
        )
    store = Store.of(_storage(job), job.name)
    store.check()
    data = data_sets(job)
    training, validation = _opened("data.train", data.train), _opened("data.val", data.val)
    if training.manifest.classes != validation.manifest.classes:
        raise DataError(
            f"data.val: {data.val} has {_classes(validation.manifest.classes)}, "
            f"the training set {_classes(training.manifest.classes)}; prepare both together, with --val"
        )
    if training.manifest.statistics is None:
        raise DataError(f"data.train: {data.train} was prepared as a validation set: it has no mean colour")
    data = Data(train=training.location.absolute, val=validation.location.absolute)
    order = graph.in_order(schema.needs(job))
    folders: dict[str, StageFolder] = {}
    for name in order:
        stage = job.stages[name]
        content = fingerprint.content(
            stage.model_dump(by_alias=True, mode="json"),
            training.manifest.fingerprint,
            validation.manifest.fingerprint,
            _start_key(name, stage, folders, training.manifest.classes),
        )
        folders[name] = store.stage(name, fingerprint.key(content), content, stage.init.source)
    with ThreadPoolExecutor(READERS) as pool:
        folders = dict(zip(folders, pool.map(store.found, folders.values()), strict=True))
    return Checked(job, store, data, training, validation, order, folders, _tested_files(job, validation))


def _opened(key: str, place: str) -> DataSet:
    """Raises DataError, with the setting's name in front."""
    try:
        return DataSet.open(place)
    except DataError as error:
        raise DataError(f"{key}: {error}") from error


def data_sets(job: Job) -> Data:
    """The digits are prepared at the first use. Raises DataError."""
    return _digits(_storage(job) / "data" / _DIGITS) if isinstance(job.data, str) else job.data


def _storage(job: Job) -> Location:
    try:
        return job.root
    except DataError as error:
        raise SettingsError(f"storage: {error}") from error


def _start_key(
    name: str, stage: StageSettings, folders: dict[str, StageFolder], classes: tuple[str, ...]
) -> str | None:
    source = stage.init.source
    if source is None:
        return None
    if not is_file(source):
        return folders[source].key
    try:
        label = nets.look(checkpoints.net_file(source))
    except CheckpointError as error:
        raise CheckpointError(f"stages.{name}.init.from: {error}") from error
    for misfit in _misfits(label, stage, classes):
        raise SettingsError(f"stages.{name}.init.from: {source} {misfit}")
    if (problem := frozen_at_random(stage, label.card.net)) is not None:
        raise SettingsError(f"stages.{name}.freeze: {problem}")
    return label.seal


def _misfits(label: Label, stage: StageSettings, classes: tuple[str, ...]) -> Iterator[str]:
    """What is wrong with a file's net for a stage that starts from it."""
    card = label.card
    for key, layer in init.to_be_equal(init.copied(card.net, stage.net, stage.left_out)):
        hint = f"; init: {{from: ..., except: [{layer}]}} draws {layer} anew" if layer else ""
        if key != "classes":
            if getattr(card, key) != getattr(stage, key):
                yield f"has {key} {getattr(card, key)}, the stage {getattr(stage, key)}{hint}"
        elif not label.named and len(card.classes) != len(classes):
            yield f"has {len(card.classes)} classes, the data set {_classes(classes)}{hint}"
        elif label.named and card.classes != classes:
            yield f"was trained on {_classes(card.classes)}, the data set has {_classes(classes)}{hint}"


def _tested_files(job: Job, data: DataSet) -> dict[str, Model]:
    """The nets out of files that the job's tests name. Raises SettingsError or CheckpointError."""
    found: dict[str, Model] = {}
    for name, test in job.evaluations.items():
        for file in filter(is_file, test.models):
            where = f"evaluations.{name}.models"
            try:
                model = checkpoints.model(file)
                checkpoints.check(model, data, test.scales)
                taken = {*job.stages, *(other.name for key, other in found.items() if key != file)}
                found[file] = replace(model, name=checkpoints.unlike(model.name, taken))
            except (CheckpointError, DataError, SettingsError) as error:
                raise type(error)(f"{where}: {error}") from error
    return found


def _classes(classes: tuple[str, ...]) -> str:
    names = ", ".join(classes[:3])
    return f"{len(classes)} class{'es' * (len(classes) != 1)} ({names}{', ...' * (len(classes) > 3)})"


def _digits(place: Location) -> Data:
    """The digits that come with the program. Raises DataError."""
    parts = [place / name for name in ("train", "val")]
    data = Data(train=parts[0].absolute, val=parts[1].absolute)
    if all((part / MANIFEST).exists() for part in parts):
        return data
    for part, source in zip(parts, sources.digits_split(seed=0), strict=True):
        if not (part / MANIFEST).exists():
            _prepare(source, part)
    return data


def _prepare(source: Source, part: Location) -> None:
    """Into an object store by way of a temporary folder."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = part.disk or Path(scratch, part.name)
        try:
            prepare(source, folder, statistics=part.name == "train")
        except DataError:
            if not folder.exists():  # otherwise another run was quicker
                raise
        if part.disk is None:
            _upload(folder, part)


def _upload(folder: Path, place: Location) -> None:
    """The manifest last: with it the data set is there."""
    try:
        for file in sorted(folder.iterdir(), key=lambda file: file.name == MANIFEST):
            (place / file.name).write(file.read_bytes())
    except OSError as error:
        raise DataError(f"{place}: cannot be written: {first_line(error)}") from error
