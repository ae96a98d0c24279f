"""The tests of a run. The posteriors of each net that they name are computed as soon as it is there, beside whatever
else is under way; the tests' tables are made of these at the end."""

from collections.abc import Mapping, Sequence

from cluster.mailbox import Listen
from cluster.place import Shape
from cluster.settings import EvaluationSettings
from jobs import outline, publish, schema, stored, testing, tracked
from jobs.checkpoints import Model
from jobs.line import Phase
from jobs.results import Result
from jobs.site import Site
from jobs.stages import Stages
from jobs.store import RESULTS, TESTS
from jobs.stored import Stored
from jobs.testing import Trial
from pipelines.errors import DataError, VerydeepError

_UNREADABLE = 0.01  # share of images, of nets out of files


class Trials:
    """`names`: of those of the job's tests that are wanted."""

    def __init__(self, site: Site, stages: Stages, names: Sequence[str]) -> None:
        self._site, self._stages = site, stages
        self._names = names
        self._subjects: dict[str, str] = {}  # by the part of the run that tests them: stages, or files
        for test in names:
            for subject in site.checked.job.evaluations[test].models:
                self._subjects.setdefault(self._part(subject), subject)

    @property
    def needs(self) -> dict[str, list[str]]:
        """The parts that test a net each, and the stages that they wait for."""
        return {part: [] if schema.is_file(subject) else [subject] for part, subject in self._subjects.items()}

    def carry_out(self, part: str, on: Shape, hear: Listen) -> None:
        """All that the tests look at with one net. Raises VerydeepError, and KeyboardInterrupt at a stop."""
        site, subject = self._site, self._subjects[part]
        model = self._model(subject)
        tests = [self._trial(name, [subject]) for name in self._names if subject in self._settings(name).models]
        site.watch.set(part, Phase.RUNNING)
        root, data = site.checked.store.root, site.checked.validation
        testing.complete(model, tests, data, root / TESTS, on, site.watch, site.stop, hear)
        site.watch.set(part, Phase.DONE)

    def results(self, done: set[str]) -> tuple[list[Result], dict[str, str]]:
        """Of the tests all of whose parts are `done`, and of the others that failed, why. Raises ClusterError."""
        site, found, failed = self._site, list[Result](), dict[str, str]()
        for name in self._names:
            subjects = list(dict.fromkeys(self._settings(name).models))
            if not all(self._part(subject) in done for subject in subjects):
                continue
            folder = site.checked.store.root / TESTS
            most = min((self._stage_unreadable(subject) for subject in subjects), default=_UNREADABLE)
            try:
                trial = self._trial(name, subjects)
                found += testing.results_of(trial, site.checked.validation, folder, most)
            except VerydeepError as error:
                failed[name] = str(error)
        return found, failed

    def publish(self, found: Sequence[Result]) -> None:
        """In the job's folder and in MLflow, beside what other tests came to before."""
        site = self._site
        if not found:
            return
        tests = {result.test for result in found}
        others = [result for result in self.stored().results if result.test not in tests]
        publish.publish([*found, *others], site.checked.store.root, site.tracker, site.parent)
        for name, run in self._stages.runs.items():
            if values := tracked.errors_of(found, name):
                site.tracker.metrics(run, values, 0)
        for result in found:
            if own := self._stages.runs.get(result.model):  # a stage by itself
                values = publish.errors(result, with_mode=True)
                site.tracker.metrics(own, {f"test.{result.test}.{key}": value for key, value in values.items()}, 0)

    def stored(self) -> Stored:
        """All that is stored of the job; results that are damaged count as none. Raises ClusterError or DataError."""
        store = self._site.checked.store
        try:
            return stored.read(store)
        except DataError:
            (store.root / RESULTS).delete()
            return stored.read(store)

    def _settings(self, name: str) -> EvaluationSettings:
        return self._site.checked.job.evaluations[name]

    def _stage_unreadable(self, subject: str) -> float:
        stage = self._site.checked.job.stages.get(subject)
        return stage.max_unreadable if stage else _UNREADABLE

    def _part(self, subject: str) -> str:
        files: Mapping[str, Model] = self._site.checked.files
        return outline.test_of(files[subject].name if subject in files else subject)

    def _model(self, subject: str) -> Model:
        return self._site.checked.files.get(subject) or self._stages.model(subject)

    def _trial(self, name: str, subjects: Sequence[str]) -> Trial:
        settings = self._settings(name)
        models = tuple(self._model(subject) for subject in subjects)
        how = (settings.scales, settings.mirror, settings.fuse, settings.precision)
        return Trial(name, models, tuple(settings.mode), *how)
