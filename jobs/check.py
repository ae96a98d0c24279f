"""All that can be found wrong with a job before a worker starts: data sets, classes, what stages start from."""

from dataclasses import dataclass
from pathlib import Path

from cluster import checkpoint
from cluster.settings import StageSettings
from jobs import fingerprint, graph
from jobs.plan import State
from jobs.schema import Data, Job, start_file
from jobs.store import StageFolder, Store
from pipelines import sources
from pipelines.errors import DataError, SettingsError
from pipelines.prepare import prepare
from pipelines.schema import VERSION
from pipelines.shards import DataSet

_DIGITS = f"digits-v1.{VERSION}"  # the first number rises when they are drawn in another way


@dataclass(frozen=True)
class Checked:
    """A job whose data sets are open and whose stages have their keys: ready to be planned and run."""

    job: Job
    store: Store
    data: Data
    training: DataSet
    validation: DataSet
    order: list[str]
    folders: dict[str, StageFolder]

    def states(self) -> dict[str, State]:
        states = {}
        for name, folder in self.folders.items():
            finished = folder.finished()
            states[name] = State(finished is not None, len(finished.epochs) if finished else folder.epochs())
        return states


def check(job: Job) -> Checked:
    """Raises DataError, SettingsError or CheckpointError, one line each."""
    if not job.storage.startswith(("/", "~")):
        raise SettingsError(
            f"storage: {job.storage}: expected a whole path (from / or ~) of a folder that all nodes share"
        )
    store = Store.of(job.root, job.name)
    store.check()
    data = data_sets(job)
    training, validation = DataSet.open(data.train), DataSet.open(data.val)
    if training.manifest.classes != validation.manifest.classes:
        raise DataError(
            f"data.val: {data.val} has {_classes(validation.manifest.classes)}, "
            f"the training set {_classes(training.manifest.classes)}; prepare both together, with --val"
        )
    if training.manifest.statistics is None:
        raise DataError(f"data.train: {data.train} was prepared as a validation set: it has no mean colour")
    data = Data(train=training.location.absolute, val=validation.location.absolute)
    order = graph.in_order({name: stage.init.source for name, stage in job.stages.items()})
    folders: dict[str, StageFolder] = {}
    for name in order:
        stage = job.stages[name]
        key = fingerprint.stage_key(
            stage.model_dump(by_alias=True, mode="json"),
            training.manifest.fingerprint,
            validation.manifest.fingerprint,
            _start_key(name, stage, folders, training.manifest.classes),
        )
        folders[name] = store.stage(name, key)
    return Checked(job, store, data, training, validation, order, folders)


def data_sets(job: Job) -> Data:
    """The digits are prepared at the first use. Raises DataError."""
    return _digits(job.root / "data" / _DIGITS) if isinstance(job.data, str) else job.data


def _start_key(
    name: str, stage: StageSettings, folders: dict[str, StageFolder], classes: tuple[str, ...]
) -> str | None:
    source = stage.init.source
    if source is None:
        return None
    path = start_file(source)
    if path is None:
        return folders[source].key
    card = checkpoint.load(path).card
    where = f"stages.{name}.init.from: {source}"
    if card.classes != classes:
        raise SettingsError(f"{where} was trained on {_classes(card.classes)}, the data set has {_classes(classes)}")
    for key in ("input_size", "width", "batch_norm"):
        if getattr(card, key) != getattr(stage, key):
            raise SettingsError(f"{where} has {key} {getattr(card, key)}, the stage {getattr(stage, key)}")
    return fingerprint.file_hash(path)


def _classes(classes: tuple[str, ...]) -> str:
    names = ", ".join(classes[:3])
    return f"{len(classes)} class{'es' * (len(classes) != 1)} ({names}{', ...' * (len(classes) > 3)})"


def _digits(folder: Path) -> Data:
    """The digits that come with the program."""
    data = Data(train=str(folder / "train"), val=str(folder / "val"))
    if Path(data.train).exists() and Path(data.val).exists():
        return data
    for name, source in zip(("train", "val"), sources.digits_split(seed=0), strict=True):
        if (folder / name).exists():
            continue
        try:
            prepare(source, folder / name, statistics=name == "train")
        except DataError:
            if not (folder / name).exists():  # otherwise another run was quicker
                raise
    return data
