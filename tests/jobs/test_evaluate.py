"""`verydeep evaluate`: nets out of files, on a real Ray; what is computed, what is found again, and what is refused."""

import csv
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient

from cluster import posteriors
from cluster.checkpoint import Card, Checkpoint, Progress, path_of
from cluster.init import randomise
from cluster.writer import Writer
from jobs import testing
from jobs.checkpoints import check, models, net_file
from jobs.cli import main
from jobs.results import averaged, from_json
from jobs.testing import Trial
from pipelines.errors import CheckpointError, DataError
from pipelines.location import Location
from pipelines.shards import DataSet

CLASSES = ("ant", "bee", "cat")


def card(**changes: object) -> Card:
    fields = {
        "net": "A",
        "classes": CLASSES,
        "input_size": 32,
        "width": 0.05,
        "mean_rgb": (120.0, 110.0, 100.0),
        "pixel_std": 64.0,
        "scale": (40, 40),
        "flip": True,
    }
    return Card(**{**fields, **changes})  # type: ignore[arg-type]


def saved(folder: Path, seed: int, **changes: object) -> Path:
    """A net with random weights, as a stage's last checkpoint."""
    own = card(**changes)
    net = own.build()
    randomise(net, "kaiming", 0.01, seed)
    writer = Writer(Location.of(folder), 1, set())
    writer.save(Checkpoint(own, net.state_dict(), {}, None, Progress(), {}))
    writer.close()
    return Path(path_of(Location.of(folder), 0).path)


@pytest.fixture(scope="module")
def nets(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """An A trained, as it seems, at S = 40, and a B with scale jitter, in the folders of stages."""
    root = tmp_path_factory.mktemp("nets")
    a = saved(root / "first-0123456789ab", 1)
    b = saved(root / "second-ba9876543210", 2, net="B", scale=(32, 48))
    (b.parent / "done.json").write_text(json.dumps({"delivered": b.name}))
    return a, b


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["evaluate", *arguments]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1, error
    return error


@pytest.mark.usefixtures("cluster")
def test_nets_are_tested_fused_and_found_again(
    nets: tuple[Path, Path],
    picture_set: DataSet,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    arguments = [str(nets[0]), str(nets[1].parent), "--data", str(picture_set.location), "--storage", str(tmp_path)]
    arguments += ["--mode", "dense", "multi-crop", "both", "--scales", "several", "--workers", "2"]
    assert main(["evaluate", *arguments]) == 0
    assert len(re.findall("of 60 right", capsys.readouterr().out)) == 2 * 2 * 3, "two nets, two modes, three scales"
    (folder,) = (tmp_path / "evaluations").iterdir()
    before = (folder / "results.json").read_text()
    (spoilt,) = (folder / "tests").glob("second-multi-crop-40-*")
    spoilt.write_bytes(spoilt.read_bytes()[:-20])
    assert main(["evaluate", *arguments]) == 0
    assert re.findall("(.*): [0-9]+ of 60 right", capsys.readouterr().out) == ["test of second: multi-crop, Q = 40"], (
        "the rest is known"
    )
    assert (folder / "results.json").read_text() == before
    lines = list(csv.DictReader((folder / "results.csv").open(newline="")))
    assert {line["images"] for line in lines} == {"60"}
    check_averages(folder)
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("evaluations")
    assert experiment is not None
    run = client.search_runs([experiment.experiment_id])[0]
    assert {"results.csv", "results.md", "results.json"} <= {a.path for a in client.list_artifacts(run.info.run_id)}
    assert "fused.first_and_second.both.top1_error" in run.data.metrics
    assert {"verydeep.version", "ray.job_id"} <= run.data.tags.keys()
    (tested,) = run.inputs.dataset_inputs
    assert tested.dataset.digest == picture_set.manifest.fingerprint[:36]
    assert [(tag.key, tag.value) for tag in tested.tags] == [("mlflow.data.context", "validation")]


def check_averages(folder: Path) -> None:
    """Results are those of the mean of the files that they name."""
    found = from_json(json.loads((folder / "results.json").read_text()))
    fused = next(r for r in found if r.mode == "both" and len(r.subjects) == 2)
    assert [len(subject.posteriors) for subject in fused.subjects] == [6, 6]
    assert [subject.scales for subject in fused.subjects] == [(36, 40, 44), (32, 40, 48)]
    files = [name for subject in fused.subjects for name in subject.posteriors]
    parts = [posteriors.read(Location.of(folder / "tests" / name)) for name in files]
    scores = np.mean([part.scores for part in parts], axis=0, dtype=np.float64)
    assert np.allclose(averaged(Location.of(folder / "tests"), fused).scores, scores, atol=1e-6)
    assert fused.totals.top1 == int((scores.argmax(axis=1) == parts[0].labels).sum())
    assert fused.totals.top5 == fused.totals.images == 60, "there are three classes"


def test_a_stages_folder_stands_for_the_net_that_it_delivers(nets: tuple[Path, Path], tmp_path: Path) -> None:
    assert net_file(str(nets[1].parent)).path == str(nets[1])
    assert net_file(str(nets[0].parent)).path == str(nets[0]), "not done yet: the newest"
    assert [model.name for model in models([str(nets[0]), str(nets[1].parent), str(nets[0].parent)])] == [
        "first",
        "second",
        "first-2",
    ]
    with pytest.raises(CheckpointError, match="no such file"):
        net_file(str(tmp_path / "none"))
    with pytest.raises(CheckpointError, match="a folder without checkpoints"):
        net_file(str(tmp_path))


def test_a_test_of_other_scales_needs_only_what_is_new(nets: tuple[Path, Path]) -> None:
    """Each view of each net once, whatever the tests have in common."""
    both = models([str(file) for file in nets])
    tests = [
        Trial("one", both, ("dense",), [40]),
        Trial("two", both[:1], ("both", "dense"), [40, 48]),
        Trial("fused", both, ("dense",), [40], fuse=True),
    ]
    needed = {
        model.name: [(view.mode, view.scale) for view in views]
        for model in both
        for views in [testing.wanted(model, tests)]
    }
    assert needed == {
        "first": [("dense", 40), ("dense", 48), ("multi-crop", 40), ("multi-crop", 48)],
        "second": [("dense", 40)],
    }


def test_what_cannot_be_tested_is_one_line(
    nets: tuple[Path, Path], picture_set: DataSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, net = str(picture_set.location), str(nets[0])
    other = saved(tmp_path / "other", 3, classes=("ant", "bee", "dog"))
    assert "has other classes than" in told(capsys, str(other), "--data", data)
    assert "scale 20 is too small" in told(capsys, net, "--data", data, "--scales", "20", "40")
    assert "expected single, several, or Q" in told(capsys, net, "--data", data, "--scales", "many")
    assert "no such data set" in told(capsys, net, "--data", str(tmp_path / "none"))
    assert "no such file" in told(capsys, str(tmp_path / "none.safetensors"), "--data", data)
    assert "--workers 0" in told(capsys, net, "--data", data, "--workers", "0")
    torn = tmp_path / "torn.safetensors"
    torn.write_bytes(nets[0].read_bytes()[:-100])
    assert str(torn) in told(capsys, str(torn), "--data", data)
    (tmp_path / "text.safetensors").write_text("weights")
    assert "text.safetensors" in told(capsys, str(tmp_path / "text.safetensors"), "--data", data)


def test_an_unnamed_net_needs_only_as_many_classes(nets: tuple[Path, Path], picture_set: DataSet) -> None:
    (model,) = models([str(nets[0])])
    numbered = replace(model.label, card=replace(model.label.card, classes=("0", "1", "2")), named=False)
    check(replace(model, label=numbered), picture_set, "single")
    with pytest.raises(DataError, match="other classes than"):
        check(replace(model, label=replace(numbered, named=True)), picture_set, "single")
