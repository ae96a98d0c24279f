"""The measurement of dense and multi-crop tests, as users start it."""

import json
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from cluster.evaluate import Evaluation, Viewer
from cluster.views import views
from cluster.world import World
from jobs.cli import main
from pipelines.shards import DataSet
from tests.cluster.test_evaluate import written


def test_both_tests_are_measured_beside_the_operations_that_they_take(
    picture_set: DataSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.set_num_threads(1)
    file, data = written(tmp_path / "net.safetensors"), picture_set.location.absolute
    options = ["--scales", "70", "40", "--images", "9", "--rounds", "2", "--threads", "1"]
    assert main(["bench", "tests", file, data, *options, "--json", str(tmp_path / "tests.json")]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[0] for line in lines[2:5]] == ["dense", "multi-crop", "ratio"]
    found = json.loads((tmp_path / "tests.json").read_text())
    assert (found["scales"], found["images"], len(found["rounds"])) == ([40, 70], 9, 2)
    for mode in ("dense", "multi-crop"):
        assert all(0 < turns[mode]["net_seconds"] < turns[mode]["seconds"] for turns in found["rounds"])
        test = Evaluation(file, data, views(mode, (40, 70), mirror=True))  # type: ignore[arg-type]
        with FlopCounterMode(display=False) as counter:
            Viewer(test, World.single(), lambda record: None)(range(9))
        assert 9 * found["flops"][mode] == pytest.approx(counter.get_total_flops())
    assert float(lines[4][3]) == pytest.approx(found["flops"]["multi-crop"] / found["flops"]["dense"], abs=0.005)


@pytest.mark.parametrize(
    ("option", "told"), [("--rounds", "--rounds 0: at least 1"), ("--scales", "scale 0 is too small")]
)
def test_options_that_cannot_be_are_a_line(
    option: str, told: str, picture_set: DataSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = written(tmp_path / "net.safetensors")
    assert main(["bench", "tests", file, picture_set.location.absolute, option, "0"]) == 2
    said = capsys.readouterr().err
    assert told in said
    assert len(said.splitlines()) == 1
