"""The folder of a run that has finished, with posteriors that no net made, for the tests of its report."""

from dataclasses import asdict
from pathlib import Path

import numpy as np

from cluster import checkpoint, posteriors
from cluster.checkpoint import Epoch, Progress
from cluster.posteriors import Posteriors
from cluster.views import TestMode
from jobs import check, results, schema
from jobs.results import Result, Subject
from jobs.store import DONE, JOB, RESULTS, TESTS, StageFolder, Store, write_json, write_text
from pipelines.shards import DataSet
from tests.cluster.test_checkpoint import made, save

JOB_FILE = """name: kinds
data: {{train: {train}, val: {val}}}
storage: {storage}
train: {{input_size: 32, width: 0.05, epochs: 6}}
stages:
  a: {{net: A, scale: 34}}
  e: {{net: E, scale: [32, 40], init: {{from: a}}, learning_rate: 0.001}}
evaluations:
  single: {{models: [a, e]}}
  several: {{models: [e], scales: several, mode: [dense, both]}}
  together: {{models: [a, e], scales: [34], fuse: true}}
"""


def epoch(accuracy: float, rate: float) -> Epoch:
    """All but its accuracy and rate are as good as any."""
    return Epoch(2 - accuracy, accuracy, 1.0, 2.0, 2.1 - accuracy, accuracy, 1.0, rate, 640.0, 0.02, 1e10, 1e9, 30.0)


EPOCHS = {
    "a": [epoch(0.3, 0.01), epoch(0.6, 0.01), epoch(0.7, 0.001), epoch(0.69, 0.001)],
    "e": [epoch(0.7, 0.001), epoch(0.8, 0.001)],
}


def scores_of(model: str, mode: str, scale: int, data: DataSet) -> Posteriors:
    groups = [data.read_group(i) for i in range(len(data.manifest.group_rows))]
    labels = np.concatenate([group.labels for group in groups])
    scores = np.random.default_rng(0).dirichlet(np.full(10, 0.4), len(labels))  # all are wrong of much the same images
    scores += np.random.default_rng([ord(model), len(mode), scale]).uniform(0, 0.2, scores.shape)
    scores[np.arange(len(labels)), labels] += 0.2 + 0.05 * (model == "e")
    scores = (scores / scores.sum(axis=1, keepdims=True)).astype(np.float32)
    names = [name for group in groups for name in group.names]
    origin = {"model": model, "mode": mode, "scale": scale}
    return Posteriors(names, labels, scores, data.manifest.classes, data.manifest.fingerprint, (3,), origin)


def result(
    test: str, models: dict[str, tuple[int, ...]], mode: TestMode, folder: Store, data: DataSet, seals: dict[str, str]
) -> Result:
    """Tested, its posteriors kept. `models`: the Q of each."""
    subjects, means = [], []
    for model, scales in models.items():
        views = [(m, q) for m in (("dense", "multi-crop") if mode == "both" else (mode,)) for q in scales]
        parts = {f"{model}-{m}-{q}.parquet": scores_of(model, m, q, data) for m, q in views}
        for name, part in parts.items():
            posteriors.write(folder.root / TESTS / name, part)
        means.append(posteriors.average(list(parts.values())))
        trained = (34, 34) if model == "a" else (32, 40)
        subjects.append(
            Subject(model, model.upper(), trained, scales, tuple(parts), 32, 0.05, mirror=True, seal=seals[model])
        )
    return Result(test, tuple(subjects), mode, 10, posteriors.average(means).totals)


def finished_stage(folder: StageFolder, seed: int = 0) -> str:
    """Its net is any. Returns the net's seal."""
    epochs = EPOCHS[folder.name]
    best = Progress(epochs).best
    save(folder.path, made(tuple(epoch.validation_accuracy for epoch in epochs[:best]), seed=seed + ord(folder.name)))
    delivered = checkpoint.path_of(folder.path, best)
    content = {"key": folder.key, "delivered": delivered.name, "epochs": [asdict(epoch) for epoch in epochs]}
    write_json(folder.path / DONE, content)
    return checkpoint.read_head(delivered).seal


def finished_run(digits: tuple[str, str], place: Path) -> Path:
    """Two stages and five tests."""
    (place / "job.yaml").write_text(JOB_FILE.format(train=digits[0], val=digits[1], storage=place))
    checked = check.check(schema.load(place / "job.yaml"))
    folder = checked.store
    write_text(folder.root / JOB, schema.resolved(checked.job))
    folder.note_stages(checked.folders)
    seals = {name: finished_stage(stage) for name, stage in checked.folders.items()}
    data = checked.validation
    found = [
        result("single", {"a": (34,)}, "dense", folder, data, seals),
        result("single", {"e": (36,)}, "dense", folder, data, seals),
        result("several", {"e": (32, 36, 40)}, "dense", folder, data, seals),
        result("several", {"e": (32, 36, 40)}, "both", folder, data, seals),
        result("together", {"a": (34,), "e": (34,)}, "dense", folder, data, seals),
    ]
    write_json(folder.root / RESULTS, results.to_json(found))
    return Path(folder.root.path)
