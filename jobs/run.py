"""Carries a plan out: stages and tests side by side where there is room for them, with everything tracked."""

import traceback
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

from cluster import interrupt, launch, pieces, place, registry
from cluster.interrupt import Stop
from cluster.mailbox import Listen
from cluster.place import Shape
from cluster.submission import job_ids
from cluster.track import Tracker, check_uri, default_uri
from jobs import (
    decide,
    forecast,
    graph,
    origin,
    outline,
    publish,
    report,
    results,
    schema,
    selection,
    tables,
    tracked,
)
from jobs.board import Board
from jobs.chain import Chain
from jobs.check import Checked
from jobs.claims import Claims
from jobs.crew import Crew
from jobs.holder import Holder
from jobs.lease import Lease, held
from jobs.line import Phase
from jobs.overview import failures
from jobs.plan import Action, Decision
from jobs.results import Result
from jobs.selection import Choice
from jobs.site import Site, open_run
from jobs.stages import Stages
from jobs.status import published
from jobs.store import SPOOL, write_text
from jobs.trials import Trials
from jobs.watch import Watch
from pipelines.errors import RoomError, TrainingError, VerydeepError, first_line

_POLL_SECONDS = 1.0  # between looks for room
_FAREWELL_SECONDS = 45.0  # for parts that are to end at once
_REGISTERING_SECONDS = 300.0  # that the end waits, to be able to say the version


def run(checked: Checked, choice: Choice | None = None, job_file: str | None = None) -> list[Result]:
    """Runs the job, out of this file, to its end and returns the results of its tests.

    Raises VerydeepError, before the work begins; TrainingError, if a part of it failed and all else is done; and
    KeyboardInterrupt when a stop was asked for.
    """
    choice, uri, root = choice or Choice(), default_uri(checked.job.root), checked.store.root
    check_uri(uri)
    selection.wanted(checked.job, choice)
    names = {file: model.name for file, model in checked.files.items()}
    watch, stop = Watch(Board(checked.job.name, outline.lines(checked.job, names))), Stop()
    with watch, interrupt.noted(stop), held(root, stop, Holder.here(), watch.say) as lease:
        todo = decide.decisions(checked, choice)
        with _connected(checked, watch, stop) as shape:
            checked.store.create()
            try:
                with published(watch.board, root, watch.say, lambda: lease.lost):
                    return _Run(checked, choice, shape, watch, stop, lease).carry_out(todo, uri, job_file)
            except VerydeepError as error:  # whatever it is, the work has begun
                raise error if error.exit_status == 1 else TrainingError(str(error)) from error


@contextmanager
def _connected(checked: Checked, watch: Watch, stop: Stop) -> Iterator[Shape]:
    """To Ray, while the block lasts; what each part of the job gets of it."""
    cluster = launch.connect()
    try:
        with interrupt.noted(stop), launch.environment(checked.job.cluster):  # again: Ray has handlers of its own
            shape = place.shape(checked.job.cluster, len(checked.order), stop)
            rows, classes = checked.training.rows, len(checked.training.manifest.classes)
            watch.say(f"{checked.job.name}: {rows} images, {classes} classes")
            watch.say(f"Ray: {cluster}; {shape}")
            watch.board.runs_on(str(shape))
            yield shape
    finally:
        launch.disconnect()


class _Run:
    """One run of a job on one cluster."""

    def __init__(self, checked: Checked, choice: Choice, shape: Shape, watch: Watch, stop: Stop, lease: Lease) -> None:
        self._checked, self._choice, self._shape = checked, choice, shape
        self._watch, self._stop, self._lease = watch, stop, lease

    def carry_out(self, todo: Sequence[Decision], uri: str, job_file: str | None) -> list[Result]:
        """Raises as `run`."""
        checked, watch = self._checked, self._watch
        origins, costs = origin.tags(job_file) | job_ids(), forecast.costs(checked, self._choice)
        with self._tracked(uri, origins) as (tracker, parent):
            folders = checked.begun(todo)
            checked.store.note_stages(folders)
            site = Site(checked, folders, tracker, parent, origins, watch, self._stop, self._lease)
            stages = Stages(site)
            trials = Trials(site, stages, selection.tests(checked.job, self._choice))
            chain = self._work(todo, stages, trials, costs)
            found = self._conclude(chain, stages, trials, site)
        watch.say(f"Checkpoints and results: {checked.store.root}")
        watch.say(f"All runs in MLflow:      {_ui(uri)}")
        return found

    @contextmanager
    def _tracked(self, uri: str, origins: Mapping[str, str]) -> Iterator[tuple[Tracker, str]]:
        """The job's MLflow run, which an earlier attempt may have begun; closed as what the block ends as."""
        checked, job, root = self._checked, self._checked.job, self._checked.store.root
        tracker = Tracker(uri, job.name, root / SPOOL, lambda line: self._watch.say(f"warning: {line}"))
        try:
            parent = open_run(tracker, root / "job.json", job.name, None, {"job": job.name, **origins})
            with tracker.ending(parent, lambda: self._lease.lost):
                tracked.data_sets(tracker, parent, checked.training, checked.validation)
                write_text(root / "job.yaml", schema.resolved(job))
                tracker.artifact(parent, root / "job.yaml")
                yield tracker, parent
        finally:
            tracker.close()

    def _work(self, todo: Sequence[Decision], stages: Stages, trials: Trials, costs: Mapping[str, float]) -> Chain:
        """All that is to be done, until it is, or a stop is asked for."""
        for decision in todo:
            if decision.action in (Action.REUSE, Action.SKIP):
                stages.find(decision)
        for line in self._watch.board.snapshot().lines:
            if line.name not in {*self._checked.order, *trials.needs}:
                self._watch.board.set(line.name, Phase.LEFT_OUT, "not asked for")
        begun = {decision.stage: decision for decision in todo if decision.action not in (Action.REUSE, Action.SKIP)}
        waits = schema.needs(self._checked.job)
        needs = {**{name: waits[name] for name in waits if name in begun}, **trials.needs}
        do = {
            **{name: partial(stages.train, decision) for name, decision in begun.items()},
            **{name: partial(trials.carry_out, name) for name in trials.needs},
        }
        chain = Chain(needs, {name: costs.get(name, 0.0) for name in needs})
        crew, claims = Crew(), Claims(self._shape)
        try:
            while not chain.over and (crew.busy or not self._stop.asked):
                if not self._stop.asked:
                    self._begin(chain, crew, claims, do, set(trials.needs))
                for name, error in crew.ended(_POLL_SECONDS):
                    claims.remove(name)
                    if isinstance(error, RoomError) and crew.busy:  # later, when others have ended
                        claims.lacked_room()
                        chain.stop(name)
                        self._watch.board.set(name, Phase.WAITING)
                    else:
                        self._ended(chain, name, error)
        except BaseException:  # of the main thread itself: nothing goes on without it
            self._stop.ask("the driver has failed", at_once=True)
            crew.wait(_FAREWELL_SECONDS)
            raise
        return chain

    def _begin(
        self,
        chain: Chain,
        crew: Crew,
        claims: Claims,
        do: Mapping[str, Callable[[Shape, Listen], None]],
        tests: Collection[str],
    ) -> None:
        """Whatever is ready and finds room, the most urgent first; where a stage does not, tests may."""
        most, full = self._checked.job.cluster.side_by_side, set[bool]()
        for name in chain.ready:
            if most != "auto" and len(chain.running) >= most:
                return
            kind = name in tests
            workers = 0 if kind in full else claims.workers(kind)
            if not workers:
                full.add(kind)
                continue
            on = replace(self._shape, workers=workers, least=1) if name in tests else self._shape
            hear = claims.add(name, workers)
            chain.begin(name)
            self._watch.set(name, Phase.RUNNING)
            crew.start(name, partial(do[name], on, hear))
        if not any(name in tests for name in (*chain.running, *chain.ready)):
            pieces.rest()  # so that others have the places of their workers

    def _ended(self, chain: Chain, name: str, error: BaseException | None) -> None:
        match error:
            case None:
                chain.end(name)
                return
            case KeyboardInterrupt():
                chain.stop(name)
                self._watch.set(name, Phase.STOPPED)
                return
            case VerydeepError():
                why = str(error).removeprefix(f"stage {name}: ")
            case _:  # a fault of the program's own, which is not to take the other parts with it
                why = f"{type(error).__name__}: {first_line(error)}"
                self._watch.say("".join(traceback.format_exception(error)).rstrip())
        lost = chain.fail(name, why)
        self._watch.set(name, Phase.FAILED, why)
        for other in lost:
            self._watch.set(other, Phase.LEFT_OUT, f"waits for {name}, which failed")

    def _conclude(self, chain: Chain, stages: Stages, trials: Trials, site: Site) -> list[Result]:
        """What all of it came to. Raises as `run`."""
        self._lease.check()  # who has lost it writes nothing more
        self._stop.heed()
        found, failed = trials.results(chain.done)
        trials.publish(found)
        if found:
            self._watch.say(f"\n{tables.text(tables.tables(found))}\n")
        there = trials.stored()
        page = report.write(there, self._checked.training, self._checked.validation)
        tracked.job_done(site.tracker, site.parent, there)
        site.tracker.artifact(site.parent, page)
        self._watch.say(f"Report:                  {page}")
        if lines := [*failures(chain), *(f"test {name} failed: {why}" for name, why in failed.items())]:
            raise TrainingError("\n".join(lines))
        if not self._choice.only:
            self._register(there.results, stages, site)
        return found

    def _register(self, found: Sequence[Result], stages: Stages, site: Site) -> None:
        """The chain's best net, by its tests, or without any by validation; and those that no other starts from."""
        job, tested = self._checked.job, results.best(found, stages.finished)
        best = tested.model if tested else max(stages.finished, key=lambda name: stages.finished[name].accuracy)
        answers: dict[str, Future[str]] = {}
        leaves = graph.leaves({name: [stage.init.source or ""] for name, stage in job.stages.items()})
        for name in dict.fromkeys([best, *(leaf for leaf in leaves if leaf in stages.finished)]):
            own = results.best(found, [name])
            aliases = [registry.ALIAS, publish.alias(name)] if name == best else [publish.alias(name)]
            run = stages.runs.get(name) or site.parent
            answers[name] = publish.register(job.name, stages.model(name), own, site.tracker, run, aliases)
        site.tracker.settle(_REGISTERING_SECONDS, patient=False)
        self._watch.say(f"The best net, of stage {best}, {_registered(job.name, answers[best])}")


def _registered(name: str, answer: "Future[str]") -> str:
    if not answer.done():
        return "is registered later: MLflow does not answer"
    if (error := answer.exception()) is not None:
        return f"is not in MLflow's registry: {error}"
    return f"is models:/{name}@{registry.ALIAS} in MLflow, version {answer.result()}"


def _ui(uri: str) -> str:
    return uri if uri.startswith("http") else f"mlflow ui --backend-store-uri {uri}"
