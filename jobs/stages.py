"""The stages of a run: each is trained in a thread of its own, or was done before."""

from collections.abc import Mapping
from typing import Any

from cluster import launch, nets, schedule
from cluster.attempt import Stage
from cluster.mailbox import Listen
from cluster.place import Shape
from cluster.settings import StageSettings
from jobs import outline, rates, schema, tables, tracked
from jobs.checkpoints import Model, net_file
from jobs.line import Phase
from jobs.plan import Action, Decision
from jobs.site import Site, open_run
from jobs.store import Finished, StageFolder, read_json, read_text, write_json, write_text
from jobs.stored import StoredStage
from pipelines.errors import CheckpointError, ClusterError, TrainingError


class Stages:
    """`finished`: those that are done. `runs`: in MLflow, of those that are this job's own."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self.finished: dict[str, Finished] = {}
        self.runs: dict[str, str] = {}

    def find(self, decision: Decision) -> None:
        """A stage that was done before, if it is."""
        folder = self._site.folders[decision.stage]
        if self._found(folder, decision.reason):
            return
        if decision.action is Action.REUSE:
            raise CheckpointError(f"stage {decision.stage}: the net that it delivers has vanished from {folder.path}")
        self._site.watch.set(decision.stage, Phase.LEFT_OUT, decision.reason)

    def _found(self, folder: StageFolder, reason: str) -> bool:
        finished = folder.finished()
        if finished is None:
            return False
        site, name = self._site, folder.name
        self.finished[name] = finished
        noted = read_json(folder.path / "run.json") or {}
        if (run := noted.get("run")) and folder.job is None:  # this job's tests are no part of another job's run
            self.runs[name] = str(run)
            if not noted.get("told"):  # the driver was killed just then
                self._tell(folder, finished, str(run))
        site.watch.board.recall(name, finished.epochs, site.checked.job.stages[name].epochs)
        site.watch.set(name, Phase.DONE, reason)
        return True

    def train(self, decision: Decision, on: Shape, hear: Listen) -> None:
        """To its end. `hear` gets the workers' records first. Raises VerydeepError, and KeyboardInterrupt at a stop."""
        site, name = self._site, decision.stage
        folder, settings = site.folders[name], site.checked.job.stages[name]
        there = site.checked.store.found(folder)
        if there.job is not None and self._found(there, f"meanwhile, in job {there.job}"):
            site.folders[name] = there
            site.checked.store.note_stages(dict(site.folders))
            return
        title = outline.stage_title(settings)
        site.watch.say(f"{name}: {title}: {decision.action.value}, {decision.reason}")
        site.watch.board.recall(name, folder.progress().epochs, settings.epochs)
        folder.begin()
        self.finished[name] = finished = self._train(folder, settings, on, hear)
        site.watch.set(name, Phase.DONE, f"{len(finished.epochs)} epochs")

    def model(self, name: str) -> Model:
        """The net that a finished stage delivers."""
        place = self.finished[name].delivered
        return Model(name, place, nets.look(place))

    def _train(self, folder: StageFolder, settings: StageSettings, on: Shape, hear: Listen) -> Finished:
        site, job, data = self._site, self._site.checked.job, self._site.checked.data
        tags = {**site.origins, **tracked.stage_tags(site.checked, folder.name, on.workers)}
        run = open_run(site.tracker, folder.path / "run.json", folder.name, site.parent, tags)
        self.runs[folder.name] = run
        gathered = _Gathered(on.workers)

        def listen(record: dict[str, Any]) -> None:
            hear(record)
            gathered.hear(record)
            site.watch.hear(folder.name, record)
            tracked.listen(site.tracker, run, record, settings, site.checked.training.rows)

        with site.tracker.ending(run, lambda: site.lease.lost):
            tracked.data_sets(site.tracker, run, site.checked.training, site.checked.validation)
            site.tracker.parameters(run, settings.model_dump(by_alias=True, mode="json"))
            start, place = self._start(settings), folder.path.absolute
            stage = Stage(folder.name, settings, data.train, data.val, place, start, run, job.checkpoints)
            try:
                launch.train_stage(stage, on, job.cluster, listen, site.stop)
            finally:
                self._list_unreadable(run, folder, gathered.unreadable)
            finished = self._finish(folder, settings)
        self._note_rate(folder, settings, on, gathered)
        self._tell(folder, finished, run)
        return finished

    def _tell(self, folder: StageFolder, finished: Finished, run: str) -> None:
        """MLflow, of what the stage came to; told twice it is there once."""
        tracker, settings = self._site.tracker, self._site.checked.job.stages[folder.name]
        tracker.artifact(run, finished.delivered, "checkpoints")
        tracked.stage_done(tracker, run, StoredStage(folder.name, settings, finished.epochs, True, None))
        tracker.end_run(run, "FINISHED")
        write_json(folder.path / "run.json", {"run": run, "told": True})

    def _finish(self, folder: StageFolder, settings: StageSettings) -> Finished:
        progress = folder.progress()
        if progress.step or not schedule.finished(settings, progress.accuracies):
            raise TrainingError(f"stage {folder.name}: its last checkpoint has vanished from {folder.path}")
        self._site.lease.check()
        return folder.finish(progress, settings.deliver)

    def _start(self, settings: StageSettings) -> str | None:
        """The file of the net that a stage starts from."""
        source = settings.init.source
        if source is None:
            return None
        return (net_file(source) if schema.is_file(source) else self.finished[source].delivered).absolute

    def _note_rate(self, folder: StageFolder, settings: StageSettings, on: Shape, gathered: "_Gathered") -> None:
        """How fast it was, for later plans; the stage is done, whether that can be written or not."""
        classes, device = len(self._site.checked.training.manifest.classes), rates.device(on.gpus, on.cpus)
        if gathered.speeds:
            try:
                rates.note(folder.path, settings, classes, gathered.workers, device, gathered.speeds)
            except ClusterError as error:
                self._site.watch.say(f"{folder.name}: warning: {error}")

    def _list_unreadable(self, run: str, folder: StageFolder, unreadable: dict[str, str]) -> None:
        """Writes the names of images that could not be decoded, and why, beside the checkpoints and to MLflow."""
        if unreadable:
            path = folder.path / "unreadable.csv"
            before = read_text(path)  # of an earlier attempt
            if before is not None:
                unreadable = {**dict(tables.csv_lines(before)), **unreadable}
            write_text(path, tables.csv_text([("image", "reason"), *sorted(unreadable.items())]))
            self._site.tracker.artifact(run, path)


class _Gathered:
    """What workers told of a stage. `speeds`: images a second of epochs, all with this number of workers."""

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self.speeds: list[float] = []
        self.unreadable: dict[str, str] = {}  # images, and why

    def hear(self, record: Mapping[str, Any]) -> None:
        match record["kind"]:
            case "unreadable":
                self.unreadable[record["name"]] = record["reason"]
            case "epoch":
                self.speeds.append(record["images_per_second"])
            case "workers" if record["count"] != self.workers:
                self.workers, self.speeds = record["count"], []
