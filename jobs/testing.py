"""The paper's tests of nets: posteriors that are known are read, the others computed and kept; then averaged.

Posteriors lie in one folder, a file for each net, mode and Q: `e-jitter-dense-384-<key>.parquet`. The key stands for
all that determines them, so that another test, of other scales or nets fused, takes what is there.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from cluster import launch, posteriors
from cluster.evaluate import Evaluation
from cluster.interrupt import Stop
from cluster.mailbox import Listen
from cluster.metrics import Totals
from cluster.place import Shape
from cluster.posteriors import Posteriors
from cluster.views import Precision, Scales, TestMode, View, scales_of, views
from jobs import estimate, looks, outline, rates
from jobs.checkpoints import Model
from jobs.estimate import Images
from jobs.results import Result, Subject, averaged
from jobs.store import reason
from jobs.watch import Watch
from pipelines.errors import ClusterError, DataError, TrainingError
from pipelines.location import Location
from pipelines.shards import DataSet

_HELD_BYTES = 4 << 30  # posteriors at a time: all of ImageNet's validation set in twenty views


@dataclass(frozen=True)
class Trial:
    """Each of the models in each of the modes, or with `fuse` the mean of all of them.

    `mirror`: average with the mirror image; None: as in training.
    """

    name: str
    models: tuple[Model, ...]
    modes: tuple[TestMode, ...]
    scales: Scales = "single"
    mirror: bool | None = None
    fuse: bool = False
    precision: Precision = "float32"

    def views(self, model: Model, mode: TestMode) -> tuple[View, ...]:
        return views(mode, self.scales_of(model), self.mirrors(model), self.precision)

    def mirrors(self, model: Model) -> bool:
        return model.label.card.flip if self.mirror is None else self.mirror

    def scales_of(self, model: Model) -> tuple[int, ...]:
        card = model.label.card
        return scales_of(self.scales, card.scale, card.input_size)

    @property
    def groups(self) -> list[tuple[Model, ...]]:
        """The models whose posteriors are averaged, for each line of the table."""
        return [self.models] if self.fuse else [(model,) for model in self.models]


def carry_out(
    tests: Sequence[Trial], data: DataSet, folder: Location, on: Shape, watch: Watch, most_unreadable: float, stop: Stop
) -> list[Result]:
    """A result for each line of the tests' tables. Raises VerydeepError, and KeyboardInterrupt at a stop.

    `most_unreadable`: the share of images that may turn out not to be decodable.
    """
    for model in {model.label.seal: model for test in tests for model in test.models}.values():
        complete(model, tests, data, folder, on, watch, stop)
    return [result for test in tests for result in results_of(test, data, folder, most_unreadable)]


def complete(
    model: Model,
    tests: Iterable[Trial],
    data: DataSet,
    folder: Location,
    on: Shape,
    watch: Watch,
    stop: Stop,
    hear: Listen = lambda _: None,
) -> None:
    """Computes what the folder lacks of all that the `tests` look at with this model, and keeps it.

    `hear` gets the workers' records. Raises as `carry_out`.
    """
    there = looks.there(folder)
    missing = [view for view in wanted(model, tests) if not _whole(folder, there.get(_key(model, view, data)), watch)]
    most = max(1, _HELD_BYTES // (4 * data.rows * len(data.manifest.classes)))
    for first in range(0, len(missing), most):
        _compute(model, tuple(missing[first : first + most]), data, folder, on, watch, stop, hear)


def wanted(model: Model, tests: Iterable[Trial]) -> list[View]:
    """All that the tests look at with this model, once."""
    views = (view for test in tests if model in test.models for mode in test.modes for view in test.views(model, mode))
    return list(dict.fromkeys(views))


def results_of(test: Trial, data: DataSet, folder: Location, most_unreadable: float) -> list[Result]:
    """A result for each line of the test's table, of posteriors that are there. Raises DataError or TrainingError."""
    return [_result(test, group, mode, data, folder, most_unreadable) for group in test.groups for mode in test.modes]


def _compute(
    model: Model,
    missing: tuple[View, ...],
    data: DataSet,
    folder: Location,
    on: Shape,
    watch: Watch,
    stop: Stop,
    hear: Listen,
) -> None:
    """Holds the posteriors of all these views."""
    name = outline.test_of(model.name)
    spent: dict[View, Counter[str]] = {}

    def listen(record: dict[str, Any]) -> None:
        hear(record)
        watch.hear(name, record)
        if record["kind"] == "timed":
            view = View(record["mode"], record["scale"], record["mirror"], record["precision"])
            spent.setdefault(view, Counter()).update({key: record[key] for key in ("images", "seconds", "net_seconds")})

    watch.begin(name, data.rows * len(missing))
    test = Evaluation(model.file.absolute, data.location.absolute, missing, model.label.seal)
    found = launch.run_evaluation(test, on, listen, stop)
    watch.done()
    for view, scores in found.items():
        place = folder / f"{model.name}-{view.mode}-{view.scale}-{_key(model, view, data)}.parquet"
        _keep(place, replace(scores, origin=_origin(model, view)))
        watch.say(f"{name}: {view.mode}, Q = {view.scale}: {_in_words(scores.totals, spent[view])}")
    if any(view.precision != "float32" for view in missing):
        return  # what others are expected to take goes by float32
    seconds = sum(each["seconds"] for each in spent.values())
    try:
        rates.note_test(folder, _work(model, missing, data).flops, seconds, rates.device(on.gpus, on.cpus))
    except ClusterError as error:  # all is there whether that can be written or not
        watch.say(f"{name}: warning: {error}")


def _work(model: Model, views: Sequence[View], data: DataSet) -> estimate.Work:
    card = model.label.card
    shape = estimate.Shape(card.net, len(card.classes), card.input_size, card.width)
    return estimate.testing(shape, views, looks.sizes(data, views), Images(data.rows, data.manifest.total_bytes))


def _whole(folder: Location, name: str | None, watch: Watch) -> bool:
    """Whether a file is there, and can be read as far as it can be told cheaply."""
    if name is None:
        return False
    try:
        posteriors.look(folder / name)
    except DataError as error:
        watch.say(f"warning: {error}; made again")
        return False
    return True


def _in_words(totals: Totals, spent: Mapping[str, float]) -> str:
    unreadable = f", {totals.unreadable} cannot be decoded" if totals.unreadable else ""
    speed = spent["images"] / spent["seconds"]
    net = f"{100 * spent['net_seconds'] / spent['seconds']:.0f} % of the time in the net"
    return f"{totals.top1} of {totals.images} right{unreadable}; {speed:.1f} images/s a worker, {net}"


def _result(
    test: Trial, group: tuple[Model, ...], mode: TestMode, data: DataSet, folder: Location, most: float
) -> Result:
    there = looks.there(folder)
    subjects = []
    for model in group:
        card = model.label.card
        files = tuple(there[_key(model, view, data)] for view in test.views(model, mode))
        kind = (card.input_size, card.width, card.batch_norm)
        how = (test.mirrors(model), model.label.seal, test.precision)
        subjects.append(Subject(model.name, card.net, card.scale, test.scales_of(model), files, *kind, *how))
    result = Result(test.name, tuple(subjects), mode, len(data.manifest.classes), Totals(0, 0.0, 0, 0))
    try:
        found = averaged(folder, result)
    except DataError as error:
        raise DataError(f"{error}; delete it, and the test is made again") from error
    _check_readable(found, most)
    return replace(result, totals=found.totals)


def _check_readable(found: Posteriors, most: float) -> None:
    """Raises TrainingError."""
    if len(found.unreadable) > most * len(found.labels):
        some = ", ".join(found.names[row] for row in found.unreadable[:3])
        raise TrainingError(
            f"{len(found.unreadable)} of {len(found.labels)} images cannot be decoded, such as {some}: more than the "
            f"share max_unreadable ({most:g}); prepare the data set again, or allow more"
        )


def _keep(place: Location, scores: Posteriors) -> None:
    """Raises ClusterError."""
    try:
        posteriors.write(place, scores)
    except OSError as error:
        raise ClusterError(f"storage: {place} cannot be written: {reason(error)}") from error


def _origin(model: Model, view: View) -> dict[str, Any]:
    card = model.label.card
    net = {"model": model.name, "seal": model.label.seal, "net": card.net, "trained": card.scale}
    return {**net, **asdict(view)}


def _key(model: Model, view: View, data: DataSet) -> str:
    return looks.key(model.label.seal, view, data.manifest.fingerprint)
