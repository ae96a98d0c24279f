"""Carries a plan out: stages in order, then tests, with everything tracked."""

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from cluster import interrupt, launch, nets, place, schedule
from cluster.attempt import Stage
from cluster.place import Shape
from cluster.settings import EvaluationSettings, StageSettings
from cluster.submission import job_ids
from cluster.track import Tracker, default_uri
from jobs import origin, publish, report, results, schema, stored, tables, testing, tracked
from jobs.check import Checked
from jobs.checkpoints import Model, net_file
from jobs.plan import Action, Decision, plan
from jobs.results import Result, scale_text
from jobs.store import SPOOL, TESTS, Finished, StageFolder, read_json, read_text, write_json, write_text
from jobs.stored import StoredStage
from jobs.testing import Trial
from jobs.watch import Watch
from pipelines.errors import SettingsError, TrainingError
from pipelines.location import Location

_REGISTERING_SECONDS = 300.0  # that the end waits, to be able to say the version


def decisions(checked: Checked, only: str | None, fresh: bool) -> list[Decision]:
    """What will be done with each stage. Raises SettingsError if `only` cannot be run by itself."""
    job, states = checked.job, checked.states()
    wanted = set(checked.order)
    if only is not None:
        if only not in job.stages:
            raise SettingsError(f"--only {only}: there is no such stage; there are {', '.join(job.stages)}")
        wanted = {only}
        source = job.stages[only].init.source
        if source in states and not states[source].finished:
            raise SettingsError(f"--only {only}: it starts from {source}, which is not done yet")
    return plan(checked.order, states, wanted, fresh)


def run(checked: Checked, only: str | None = None, fresh: bool = False, file: str | None = None) -> list[Result]:
    """Runs the job, out of this file, to its end and returns the results of its tests. Raises VerydeepError."""
    todo = decisions(checked, only, fresh)
    uri = default_uri(checked.job.root)
    watch = Watch()
    watch.say(f"{checked.job.name}: {checked.training.rows} images, {len(checked.training.manifest.classes)} classes")
    cluster = launch.connect()
    try:
        shape = place.shape(checked.job.cluster)
        checked.store.create()
        checked.store.note_stages(checked.folders)
        watch.say(f"Ray: {cluster}; {shape}")
        origins = origin.tags(file) | job_ids()
        with interrupt.raised(), _tracked(checked, uri, origins) as (tracker, parent):
            chain = _Chain(checked, shape, watch, tracker, parent, origins)
            for decision in todo:
                chain.stage(decision)
            found = chain.tests() if only is None else []
            page = chain.report()
            if only is None:
                chain.register(found)
    finally:
        watch.done()
        launch.disconnect()
    if found:
        watch.say(f"\n{tables.text(tables.tables(found))}\n")
    watch.say(f"Checkpoints and results: {checked.store.root}")
    watch.say(f"Report:                  {page}")
    watch.say(f"All runs in MLflow:      {_ui(tracker.uri)}")
    return found


@contextmanager
def _tracked(checked: Checked, uri: str, origins: dict[str, str]) -> Iterator[tuple[Tracker, str]]:
    """The job's MLflow run, which an earlier attempt may have begun; closed as what the block ends as."""
    job, store = checked.job, checked.store
    warnings.showwarning = lambda message, *_: print(f"warning: {message}", file=sys.stderr, flush=True)
    tracker = Tracker(uri, job.name, store.root / SPOOL)
    try:
        parent = _open(tracker, store.root / "job.json", job.name, None, {"job": job.name, **origins})
        tracked.data_sets(tracker, parent, checked.training, checked.validation)
        write_text(store.root / "job.yaml", schema.resolved(job))
        tracker.artifact(parent, store.root / "job.yaml")
        with tracker.ending(parent):
            yield tracker, parent
    finally:
        tracker.close()


def _open(tracker: Tracker, note: Location, name: str, parent: str | None, tags: dict[str, str]) -> str:
    """A run whose id is kept in the file `note`, so that a later attempt goes on in it."""
    known = read_json(note) or {}
    run = tracker.open_run(name, parent, tags, known.get("run"))
    write_json(note, {"run": run})
    return run


class _Chain:
    """The stages and tests of one job on one cluster."""

    def __init__(
        self, checked: Checked, shape: Shape, watch: Watch, tracker: Tracker, parent: str, origins: dict[str, str]
    ) -> None:
        self._origins = origins
        self._checked, self._shape, self._watch = checked, shape, watch
        self._tracker, self._parent = tracker, parent
        self._finished: dict[str, Finished] = {}
        self._runs: dict[str, str] = {}

    def stage(self, decision: Decision) -> None:
        name = decision.stage
        folder = self._checked.folders[name]
        settings = self._checked.job.stages[name]
        self._watch.say(
            f"\n{name}: net {settings.net}, S {scale_text(settings.scale)}: {decision.action.value}, {decision.reason}"
        )
        if decision.action is Action.SKIP:
            finished = folder.finished()
            if finished:
                self._finished[name] = finished
            return
        if decision.action is Action.AGAIN:
            folder.clear()
        if decision.action is Action.REUSE:
            finished = folder.finished()
            assert finished is not None
            if run := (read_json(folder.path / "run.json") or {}).get("run"):
                self._runs[name] = run
        else:
            finished = self._train(folder, settings)
        self._finished[name] = finished
        best = f"best validation accuracy {finished.accuracy:.3f}"
        self._watch.say(f"{name}: done, {len(finished.epochs)} epochs, {best}")

    def _train(self, folder: StageFolder, settings: StageSettings) -> Finished:
        job, data = self._checked.job, self._checked.data
        source = settings.init.source
        start = None
        if source is not None:
            start = (net_file(source) if schema.is_file(source) else self._finished[source].delivered).absolute
        tags = self._origins | tracked.stage_tags(self._checked, folder.name, self._shape.workers)
        run = _open(self._tracker, folder.path / "run.json", folder.name, self._parent, tags)
        self._runs[folder.name] = run
        tracked.data_sets(self._tracker, run, self._checked.training, self._checked.validation)
        self._tracker.parameters(run, settings.model_dump(by_alias=True, mode="json"))
        place = folder.path.absolute
        stage = Stage(folder.name, settings, data.train, data.val, place, start, run, job.checkpoints)
        unreadable: dict[str, str] = {}

        def listen(record: dict[str, Any]) -> None:
            if record["kind"] == "unreadable":
                unreadable[record["name"]] = record["reason"]
            self._watch.listen(record)
            tracked.listen(self._tracker, run, record, settings, self._checked.training.rows)

        with self._tracker.ending(run):
            try:
                launch.train_stage(stage, self._shape, job.cluster, listen)
                progress = folder.progress()
                if progress.step or not schedule.finished(settings, progress.accuracies):
                    raise TrainingError(f"stage {folder.name}: its last checkpoint has vanished from {folder.path}")
            finally:
                self._list_unreadable(run, folder, unreadable)
            finished = folder.finish(progress, settings.deliver)
            self._tracker.artifact(run, finished.delivered, "checkpoints")
            tracked.stage_done(self._tracker, run, StoredStage(folder.name, settings, finished.epochs, True, None))
        return finished

    def _list_unreadable(self, run: str, folder: StageFolder, unreadable: dict[str, str]) -> None:
        """Writes the names of images that could not be decoded, and why, beside the checkpoints and to MLflow."""
        if unreadable:
            path = folder.path / "unreadable.csv"
            before = read_text(path)  # of an earlier attempt
            if before is not None:
                unreadable = {**dict(tables.csv_lines(before)), **unreadable}
            write_text(path, tables.csv_text([("image", "reason"), *sorted(unreadable.items())]))
            self._tracker.artifact(run, path)

    def tests(self) -> list[Result]:
        """Carries out the job's tests, as far as their posteriors are not known; writes and tracks their tables."""
        checked, root = self._checked, self._checked.store.root
        todo = [self._test(name, settings) for name, settings in checked.job.evaluations.items()]
        if not todo:
            return []
        self._watch.say("\ntests")
        tested = {model.name for test in todo for model in test.models} & checked.job.stages.keys()
        most = min((checked.job.stages[name].max_unreadable for name in tested), default=0.01)
        found = testing.carry_out(todo, checked.validation, root / TESTS, self._shape, self._watch, most)
        publish.publish(found, root, self._tracker, self._parent)
        for result in found:
            if result.model in self._runs:  # a stage by itself
                values = publish.errors(result, with_mode=True)
                run = self._runs[result.model]
                self._tracker.metrics(run, {f"test.{result.test}.{key}": value for key, value in values.items()}, 0)
        for name, run in self._runs.items():
            if values := tracked.errors_of(found, name):
                self._tracker.metrics(run, values, 0)
        return found

    def register(self, found: list[Result]) -> None:
        """The chain's best net: by its tests, or without any by validation; a registry that fails is warned of."""
        tested = results.best(found, self._finished)
        stage = tested.model if tested else max(self._finished, key=lambda name: self._finished[name].accuracy)
        name, run = self._checked.job.name, self._runs.get(stage) or self._parent
        answer = publish.register(name, self._model(stage), tested, self._tracker, run)
        self._tracker.settle(_REGISTERING_SECONDS, patient=False)
        if answer.done() and answer.exception() is None:
            told = f"is models:/{name}@best in MLflow, version {answer.result()}"
        else:
            told = f"is not in MLflow's registry: {answer.exception()}" if answer.done() else "is registered later"
        self._watch.say(f"The best net, of stage {stage}, {told}")

    def report(self) -> Location:
        """Makes it of all that is stored, and tracks it."""
        checked = self._checked
        there = stored.read(checked.store)
        page = report.write(there, checked.training, checked.validation)
        tracked.job_done(self._tracker, self._parent, there)
        self._tracker.artifact(self._parent, page)
        return page

    def _test(self, name: str, settings: EvaluationSettings) -> Trial:
        models = tuple(self._checked.files.get(model) or self._model(model) for model in dict.fromkeys(settings.models))
        return Trial(name, models, tuple(settings.mode), settings.scales, settings.mirror, settings.fuse)

    def _model(self, stage: str) -> Model:
        place = self._finished[stage].delivered
        return Model(stage, place, nets.look(place))


def _ui(uri: str) -> str:
    return uri if uri.startswith("http") else f"mlflow ui --backend-store-uri {uri}"
