"""What a run of a job would come to: of each of its stages and tests what is left, and what that costs."""

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from typing import Protocol

from cluster import checkpoint
from cluster.flops import training_flops
from cluster.settings import EvaluationSettings, StageSettings
from cluster.views import View, scales_of, views
from jobs import decide, estimate, exchanged, looks, outline, rates, schema, selection
from jobs.check import Checked
from jobs.estimate import Files, Images, Shape, Sizes, Work
from jobs.exchanged import Exchange
from jobs.plan import Action, Decision, State
from jobs.rates import Pace
from jobs.selection import Choice
from jobs.store import TESTS
from jobs.timetable import at_once, timetable, whole
from pipelines.errors import SettingsError

_GAIN = 0.01  # of the time: what is not worth as many workers more
_MOST = 10**60  # of anything: more than there will be, less than floats can be
_NOTHING = (Action.REUSE, Action.SKIP)  # is left to be done


@dataclass(frozen=True)
class Given:
    """What is assumed of the cluster. `workers`: of each part; None: the job's most. `images_per_second`: that all of
    them together train on, of the stage `of`; None: of that with the most operations an image."""

    workers: int | None = None
    images_per_second: float | None = None
    of: str | None = None


@dataclass(frozen=True)
class Part:
    """A stage, or the test of a net in all views that tests want of it.

    `needs`: the parts that it waits for. `files`: the checkpoints, of a stage. `pace`: None if it is not known.
    """

    name: str
    net: str
    scale: tuple[int, ...]  # S, smallest and largest; of a test all Q
    action: Action
    reason: str
    needs: tuple[str, ...]
    work: Work
    files: Files | None = None
    epochs: int = 0
    pace: Pace | None = None

    @property
    def hours(self) -> float | None:
        """At most."""
        if not self.work.flops:
            return 0.0
        return None if self.pace is None else self.work.flops / self.pace.flops_per_second / 3600

    @property
    def measured(self) -> bool:
        """Whether its pace is that of its own kind of work, and not of another one."""
        return self.pace is not None and self.pace.of_tests == self.is_test

    @property
    def is_test(self) -> bool:
        return self.files is None


@dataclass(frozen=True)
class Forecast:
    """`parts`: each after those that it waits for. `places`: that work side by side, at most, if the job says so.
    `exchanges`: of gradients, in the stages of which something is left."""

    job: str
    training: Images
    validation: Images
    classes: int
    workers: int
    places: int | None
    exchanges: tuple[Exchange, ...]
    parts: tuple[Part, ...]

    @property
    def sum(self) -> Work:
        return Work.sum(part.work for part in self.parts)

    @property
    def hours(self) -> float | None:
        """One part after the other; None if that of a part is unknown."""
        each = [part.hours for part in self.parts]
        return None if None in each else sum(hours for hours in each if hours is not None)

    @property
    def costs(self) -> dict[str, float]:
        """The operations that are left of each part: what is urgent goes by them."""
        return {part.name: float(part.work.flops) for part in self.parts}

    def walls(self) -> dict[int, float]:
        """The hours from the first part's beginning to the last one's end, by the number of those that work side by
        side at most: as many as it is worth while to have room for, or as the job allows."""
        needs = {part.name: part.needs for part in self.parts}
        lengths = {part.name: part.hours or 0.0 for part in self.parts}
        most = max(1, at_once(timetable(needs, lengths, self.places, self.costs)))
        found = {n: whole(timetable(needs, lengths, n, self.costs)) for n in range(1, most + 1)}
        enough = next(n for n in found if found[n] <= (1 + _GAIN) * min(found.values()))
        return {n: found[n] for n in range(1, enough + 1)}


class Net(Protocol):
    """A stage's settings, or the card of a net in a file."""

    @property
    def net(self) -> str: ...
    @property
    def input_size(self) -> int: ...
    @property
    def width(self) -> float: ...
    @property
    def scale(self) -> tuple[int, int]: ...
    @property
    def flip(self) -> bool: ...


def forecast(checked: Checked, choice: Choice, given: Given) -> Forecast:
    """Raises SettingsError, and as `decide.decisions`."""
    decisions = {decision.stage: decision for decision in decide.decisions(checked, choice)}
    workers = _workers(checked, given)
    try:
        found = _forecast(checked, choice, decisions, given, workers)
        sizes = [*astuple(found.sum), *(n for part in found.parts if part.files for n in astuple(part.files))]
        if max(sizes) > _MOST:
            raise OverflowError
    except OverflowError as error:
        raise _beyond_measure(checked) from error
    return found


def _beyond_measure(checked: Checked) -> SettingsError:
    return SettingsError(
        f"{checked.job.name}: a width, a number of epochs or another setting is so large that the job's work can't be "
        "reckoned"
    )


def costs(checked: Checked, choice: Choice) -> dict[str, float]:
    """The operations that are left of each part, which urgency goes by; nothing is read of what was measured. Raises as
    `decide.decisions`."""
    decisions = {decision.stage: decision for decision in decide.decisions(checked, choice)}
    try:
        parts, _ = _unpaced(checked, choice, decisions, checked.job.cluster.workers[1])
        return {part.name: float(part.work.flops) for part in parts}
    except OverflowError as error:
        raise _beyond_measure(checked) from error


def _forecast(
    checked: Checked, choice: Choice, decisions: Mapping[str, Decision], given: Given, workers: int
) -> Forecast:
    """Raises OverflowError, and as `forecast`."""
    job, side_by_side = checked.job, checked.job.cluster.side_by_side
    parts, states = _unpaced(checked, choice, decisions, workers)
    paced = _paced(checked, parts, states, given, workers)
    classes, places = len(checked.training.manifest.classes), None if side_by_side == "auto" else side_by_side
    left = {part.name: job.stages[part.name] for part in parts if part.work.steps}
    sent = exchanged.exchanges(left, classes, workers, _gpus(checked))
    return Forecast(job.name, *_sets(checked), classes, workers, places, tuple(sent), tuple(paced))


def _unpaced(
    checked: Checked, choice: Choice, decisions: Mapping[str, Decision], workers: int
) -> tuple[list[Part], dict[str, State]]:
    """The job's parts, each after those that it waits for, and where each stage will begin."""
    states, sets = _states(checked, decisions), _sets(checked)
    stages = [_stage(checked, decisions[name], states[name], sets, workers) for name in checked.order]
    return [*stages, *_tests(checked, choice, decisions)], states


def _sets(checked: Checked) -> tuple[Images, Images]:
    training, validation = checked.training, checked.validation
    return (
        Images(training.rows, training.manifest.total_bytes),
        Images(validation.rows, validation.manifest.total_bytes),
    )


def _workers(checked: Checked, given: Given) -> int:
    """Raises SettingsError."""
    workers = given.workers or checked.job.cluster.workers[1]
    for name, stage in checked.job.stages.items():
        if (refusal := stage.refusal(workers)) is not None:
            raise SettingsError(f"--workers {workers}: stage {name}: {refusal}")
    return workers


def _states(checked: Checked, decisions: Mapping[str, Decision]) -> dict[str, State]:
    """Where each stage will begin."""
    goes_on = [name for name, decision in decisions.items() if decision.action is Action.RESUME]
    stored = checked.states() if goes_on else {}
    return {name: stored[name] if name in goes_on else State(False, 0) for name in decisions}


def _stage(checked: Checked, decision: Decision, state: State, sets: tuple[Images, Images], workers: int) -> Part:
    name, s = decision.stage, checked.job.stages[decision.stage]
    needs = tuple(schema.needs(checked.job)[name])
    part = Part(name, s.net, s.scale, decision.action, decision.reason, needs, Work(), Files(0, 0, 0))
    if decision.action in _NOTHING:
        return part
    bf16 = exchanged.computes_in_bf16(s, _gpus(checked))
    work = estimate.training(s, state, *sets, len(checked.training.manifest.classes), workers, bf16)
    return replace(part, work=work, epochs=max(0, s.epochs - state.epochs))


def _tests(checked: Checked, choice: Choice, decisions: Mapping[str, Decision]) -> list[Part]:
    job, data = checked.job, checked.validation
    wanted: dict[str, dict[View, None]] = {}
    for name in selection.tests(job, choice):
        for model in job.evaluations[name].models:
            wanted.setdefault(model, {}).update(dict.fromkeys(_views(job.evaluations[name], _net(checked, model))))
    sizes = looks.sizes(data, (view for found in wanted.values() for view in found))
    there = looks.there(checked.store.root / TESTS) if wanted else {}
    parts = []
    for model, all_views in wanted.items():
        seal = _seal(checked, model, decisions)
        fingerprint = data.manifest.fingerprint
        missing = [view for view in all_views if seal is None or looks.key(seal, view, fingerprint) not in there]
        parts.append(_test(checked, model, list(all_views), missing, sizes))
    return parts


def _test(checked: Checked, model: str, wanted: Sequence[View], missing: Sequence[View], sizes: Sizes) -> Part:
    net, data = _net(checked, model), checked.validation
    stage = model in checked.job.stages
    shape = Shape(net.net, len(data.manifest.classes), net.input_size, net.width)
    work = estimate.testing(shape, missing, sizes, Images(data.rows, data.manifest.total_bytes))
    name = outline.test_of(model if stage else checked.files[model].name)
    scales = tuple(sorted({view.scale for view in wanted}))
    views = f"{len(wanted)} view{'s' * (len(wanted) != 1)}"
    if not missing:
        return Part(name, net.net, scales, Action.REUSE, views, (model,) * stage, work)
    left = f"{len(missing)} of {views}" if len(missing) < len(wanted) else views
    return Part(name, net.net, scales, Action.TRAIN, left, (model,) * stage, work)


def _views(test: EvaluationSettings, net: Net) -> list[View]:
    mirror = net.flip if test.mirror is None else test.mirror
    scales = scales_of(test.scales, net.scale, net.input_size)
    return [view for mode in test.mode for view in views(mode, scales, mirror, test.precision)]


def _net(checked: Checked, model: str) -> Net:
    return checked.job.stages[model] if model in checked.job.stages else checked.files[model].label.card


def _seal(checked: Checked, model: str, decisions: Mapping[str, Decision]) -> str | None:
    """Of the file that will be tested; None if it is still to be made. Raises CheckpointError."""
    if model not in checked.job.stages:
        return checked.files[model].label.seal
    if decisions[model].action is not Action.REUSE:
        return None
    finished = checked.folders[model].finished()
    return None if finished is None else checkpoint.read_head(finished.delivered).seal


def _paced(
    checked: Checked, parts: Sequence[Part], states: Mapping[str, State], given: Given, workers: int
) -> list[Part]:
    """With their paces, and the checkpoints that are written at these."""
    job, classes = checked.job, len(checked.training.manifest.classes)
    paces, of_tests = _paces(checked, given, workers), None
    if given.images_per_second is None:
        of_tests = rates.pace_of_tests(rates.known_tests(checked.store.root.parent), workers, _gpus(checked))
    largest = max(job.stages, key=lambda name: _flops(job.stages[name], classes))
    found = []
    for part in parts:
        subject = part.needs[0] if part.is_test and part.needs else part.name
        pace = paces[subject if subject in paces else largest]
        paced = replace(part, pace=of_tests or pace if part.is_test else pace)
        if not part.is_test and part.action not in _NOTHING:
            s, state = job.stages[part.name], states[part.name]
            written = estimate.files(s, state, classes, job.checkpoints, paced.hours)
            paced = replace(paced, files=written)
        found.append(paced)
    return found


def _paces(checked: Checked, given: Given, workers: int) -> dict[str, Pace | None]:
    """Of each stage."""
    job, classes = checked.job, len(checked.training.manifest.classes)
    if given.images_per_second is not None:
        of = given.of or max(job.stages, key=lambda name: _flops(job.stages[name], classes))
        flops = given.images_per_second * _flops(job.stages[of], classes)
        told = f"{given.images_per_second:,g} images/s for {of}, as given; others by their operations"
        return dict.fromkeys(job.stages, Pace(flops, told))
    measured, gpus = rates.known(checked.store.root.parent), _gpus(checked)
    return {name: rates.pace(measured, s, classes, workers, gpus) for name, s in job.stages.items()}


def _gpus(checked: Checked) -> int | None:
    """Of a worker, if the job says so."""
    gpus = checked.job.cluster.gpus_per_worker
    return None if gpus == "auto" else gpus


def _flops(s: StageSettings, classes: int) -> int:
    """Of training on one image."""
    return training_flops(*Shape.of(s, classes), frozen=s.frozen)
