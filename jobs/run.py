"""Carries a plan out: stages in order, then tests, with everything tracked."""

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from hashlib import sha256
from typing import Any

from cluster import checkpoint, interrupt, launch, place, schedule, views
from cluster.attempt import Stage
from cluster.evaluate import Evaluation
from cluster.metrics import Totals
from cluster.place import Shape
from cluster.posteriors import average
from cluster.records import check_readable
from cluster.settings import EvaluationSettings, StageSettings
from cluster.track import Tracker, default_uri
from jobs import report, schema
from jobs.check import Checked
from jobs.plan import Action, Decision, plan
from jobs.report import Row
from jobs.store import Finished, StageFolder, read_json, read_text, write_json, write_text
from jobs.watch import Watch
from pipelines.errors import SettingsError, TrainingError
from pipelines.location import Location

# By their names in records: what a stretch of steps and an epoch both have, and an epoch alone; as they are in MLflow.
_POINT_METRICS = {
    "loss": "loss",
    "accuracy": "accuracy",
    "accuracy5": "accuracy5",
    "gradient_norm": "gradient_norm",
    "learning_rate": "learning_rate",
    "images_per_second": "images_per_second",
    "waiting": "waiting_share",
    "flops_per_second": "model_flops_per_second",
    "peak_share": "share_of_peak_flops",
    "peak_memory_bytes": "peak_memory_bytes",
}
_EPOCH_METRICS = {
    **{key: f"epoch_{name}" for key, name in _POINT_METRICS.items() if key != "learning_rate"},
    "validation_loss": "validation_loss",
    "validation_accuracy": "validation_accuracy",
    "validation_accuracy5": "validation_accuracy5",
    "seconds": "epoch_seconds",
    "unreadable": "unreadable_images",
}


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


def run(checked: Checked, only: str | None = None, fresh: bool = False) -> list[Row]:
    """Runs the job to its end and returns the rows of its tests. Raises VerydeepError."""
    todo = decisions(checked, only, fresh)
    uri = default_uri(checked.job.root)
    watch = Watch()
    watch.say(f"{checked.job.name}: {checked.training.rows} images, {len(checked.training.manifest.classes)} classes")
    cluster = launch.connect()
    try:
        shape = place.shape(checked.job.cluster)
        checked.store.create()
        watch.say(f"Ray: {cluster}; {shape}")
        with interrupt.raised(), _tracked(checked, uri) as (tracker, parent):
            chain = _Chain(checked, shape, watch, tracker, parent)
            for decision in todo:
                chain.stage(decision)
            rows = chain.tests() if only is None else []
    finally:
        watch.done()
        launch.disconnect()
    if rows:
        watch.say(f"\n{report.text(rows)}\n")
    watch.say(f"Checkpoints and results: {checked.store.root}")
    watch.say(f"All runs in MLflow:      {_ui(tracker.uri)}")
    return rows


@contextmanager
def _tracked(checked: Checked, uri: str) -> Iterator[tuple[Tracker, str]]:
    """The job's MLflow run, which an earlier attempt may have begun; closed as what the block ends as."""
    job, store = checked.job, checked.store
    warnings.showwarning = lambda message, *_: print(f"warning: {message}", file=sys.stderr, flush=True)
    tracker = Tracker(uri, job.name)
    try:
        parent = _open(tracker, store.root / "job.json", job.name, None, {"job": job.name})
        write_text(store.root / "job.yaml", schema.resolved(job))
        tracker.artifact(parent, store.root / "job.yaml")
        try:
            yield tracker, parent
        except BaseException as error:
            tracker.end_run(parent, "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
            raise
        tracker.end_run(parent, "FINISHED")
    finally:
        tracker.close()


def _open(tracker: Tracker, note: Location, name: str, parent: str | None, tags: dict[str, str]) -> str:
    """A run whose id is kept in the file `note`, so that a later attempt goes on in it."""
    known = read_json(note) or {}
    run = tracker.open_run(name, parent, tags, known.get("run") if known.get("uri") == tracker.uri else None)
    write_json(note, {"uri": tracker.uri, "run": run})
    return run


class _Chain:
    """The stages and tests of one job on one cluster."""

    def __init__(self, checked: Checked, shape: Shape, watch: Watch, tracker: Tracker, parent: str) -> None:
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
            self._runs[name] = str((read_json(folder.path / "run.json") or {}).get("run", ""))
        else:
            finished = self._train(folder, settings)
        self._finished[name] = finished
        best = max(epoch.validation_accuracy for epoch in finished.epochs)
        self._watch.say(f"{name}: done, {len(finished.epochs)} epochs, best validation accuracy {best:.3f}")

    def _train(self, folder: StageFolder, settings: StageSettings) -> Finished:
        job, data = self._checked.job, self._checked.data
        source = settings.init.source
        start = None
        if source is not None:
            start = (schema.start_file(source) or self._finished[source].delivered).absolute
        tags = {
            "job": job.name,
            "stage": folder.name,
            "net": settings.net,
            "key": folder.key,
            "workers": str(self._shape.workers),
        }
        run = _open(self._tracker, folder.path / "run.json", folder.name, self._parent, tags)
        self._runs[folder.name] = run
        self._tracker.parameters(run, settings.model_dump(by_alias=True, mode="json"))
        place = folder.path.absolute
        stage = Stage(folder.name, settings, data.train, data.val, place, start, run, job.checkpoints)
        unreadable: dict[str, str] = {}

        def listen(record: dict[str, Any]) -> None:
            if record["kind"] == "unreadable":
                unreadable[record["name"]] = record["reason"]
            self._listen(run, record)

        try:
            launch.train_stage(stage, self._shape, job.cluster, listen)
            progress = folder.progress()
            if progress.step or not schedule.finished(settings, progress.accuracies):
                raise TrainingError(f"stage {folder.name}: its last checkpoint has vanished from {folder.path}")
        except BaseException as error:
            self._list_unreadable(run, folder, unreadable)
            self._tracker.end_run(run, "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
            raise
        self._list_unreadable(run, folder, unreadable)
        finished = folder.finish(progress, settings.deliver)
        self._tracker.artifact(run, finished.delivered, "checkpoints")
        self._tracker.end_run(run, "FINISHED")
        return finished

    def _list_unreadable(self, run: str, folder: StageFolder, unreadable: dict[str, str]) -> None:
        """Writes the names of images that could not be decoded, and why, beside the checkpoints and to MLflow."""
        if unreadable:
            path = folder.path / "unreadable.csv"
            before = read_text(path)  # of an earlier attempt
            if before is not None:
                unreadable = {**dict(report.csv_lines(before)), **unreadable}
            write_text(path, report.csv_text([("image", "reason"), *sorted(unreadable.items())]))
            self._tracker.artifact(run, path)

    def _listen(self, run: str, record: dict[str, Any]) -> None:
        self._watch.listen(record)
        if record["kind"] == "point":
            step = (record["epoch"] - 1) * record["steps"] + record["step"]
            self._tracker.metrics(run, _named(record, _POINT_METRICS), step, record["time"])
        elif record["kind"] == "epoch":
            self._tracker.metrics(run, _named(record, _EPOCH_METRICS), record["epoch"], record["time"])
        elif record["kind"] == "reading":
            name = f"rows_read_per_row_used.worker_{record['rank']}"
            self._tracker.metrics(run, {name: record["read_per_used"]}, record["epoch"], record["time"])

    def tests(self) -> list[Row]:
        """Carries out the job's tests, except those whose result is known; writes and tracks their table."""
        rows = [
            self._test(name, model, settings)
            for name, settings in self._checked.job.evaluations.items()
            for model in settings.models
        ]
        if rows:
            root = self._checked.store.root
            for file, content in (("results.csv", report.as_csv(rows)), ("results.md", report.markdown(rows))):
                write_text(root / file, content)
                self._tracker.artifact(self._parent, root / file)
        return rows

    def _test(self, name: str, model: str, settings: EvaluationSettings) -> Row:
        trained = self._checked.job.stages[model]
        scales = views.scales_of(settings.scales, trained.scale, trained.input_size)
        mirror = trained.flip if settings.mirror is None else settings.mirror
        looks = tuple(view for mode in settings.mode for view in views.views(mode, scales, mirror))
        test = Evaluation(self._finished[model].delivered.absolute, self._checked.data.val, looks)
        totals = self._totals(test, f"{name}: {model}")
        check_readable(totals, totals.images, trained.max_unreadable)
        row = Row(name, model, trained.net, trained.scale, scales, totals)
        errors = {
            "top1_error": 1 - totals.accuracy,
            "top5_error": 1 - totals.accuracy5,
            "unreadable_images": totals.unreadable,
        }
        self._tracker.metrics(self._parent, {f"{name}.{model}.{key}": value for key, value in errors.items()}, 0)
        if self._runs.get(model):
            self._tracker.metrics(self._runs[model], {f"test.{name}.{key}": value for key, value in errors.items()}, 0)
        return row

    def _totals(self, test: Evaluation, what: str) -> Totals:
        """The result of a test, from the storage if the same net was tested in the same way on the same data."""
        rows, data = self._checked.validation.rows, self._checked.validation.manifest.fingerprint
        net = checkpoint.read_head(Location.of(test.checkpoint)).seal
        identity = f"{net} {data} {test.views}"
        note = self._checked.store.root / "tests" / f"{sha256(identity.encode()).hexdigest()[:16]}.json"
        known = read_json(note)
        if known is not None:
            return Totals(**known)
        self._watch.begin(what, rows * len(test.views))
        totals = average(list(launch.run_evaluation(test, self._shape, self._watch.listen).values())).totals
        self._watch.done()
        write_json(note, asdict(totals))
        unreadable = f", {totals.unreadable} cannot be decoded" if totals.unreadable else ""
        right = f"{totals.top1} of {totals.images} right{unreadable}"
        scales = sorted({view.scale for view in test.views})
        self._watch.say(f"{what}: Q {' '.join(map(str, scales))}, {right}")
        return totals


def _named(record: dict[str, Any], names: dict[str, str]) -> dict[str, float]:
    """What a record has of these, under their names in MLflow."""
    return {metric: record[key] for key, metric in names.items() if record.get(key) is not None}


def scale_text(scale: tuple[int, int]) -> str:
    return str(scale[0]) if scale[0] == scale[1] else f"{scale[0]} to {scale[1]}"


def _ui(uri: str) -> str:
    return uri if uri.startswith("http") else f"mlflow ui --backend-store-uri {uri}"
