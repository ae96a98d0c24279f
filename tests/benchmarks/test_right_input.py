"""The comparison of a GPU's graph with the CPU's finds what is wrong."""

from dataclasses import replace

import numpy as np
import torch

from benchmarks import pictures, report, right_input
from benchmarks.right_input import Crops
from benchmarks.setting import Setting
from pipelines.decoding import Decoding

CPU = torch.device("cpu")


def test_right_graphs_pass(setting: Setting) -> None:
    right_input.check(setting)
    found = report.read(setting.folder / "report.jsonl")
    assert found.passed
    assert len(found.checks) == 4 * 4 + 4 * 3
    apart = {row["graph"]: row["percentile_999"] for rows in found.tables.values() for row in rows}
    assert apart["crops, windows, no engines"] == 0
    assert apart["crops, whole decoded, no engines"] > 0, "another graph"


def test_each_wrong_draw_is_found(setting: Setting) -> None:
    files = [pictures.encoded(pictures.picture(i, 125, 93)) for i in range(6)]
    crops = Crops.of(files, right_input.recipe(setting))
    expected = crops.pixels(setting, CPU)
    others = {name: other.pixels(setting, CPU) for name, other in crops.others()}
    for name, found in others.items():
        assert right_input.nearness(found, expected, list(others.values())) > right_input.NEARER, name
    right = crops.pixels(setting, CPU, Decoding(regions=False))
    assert right_input.nearness(right, expected, list(others.values())) < right_input.NEARER / 100
    shifted = replace(crops, draws=replace(crops.draws, subtract=crops.draws.subtract + np.float32(1)))
    assert right_input.levels(shifted.pixels(setting, CPU), expected)[1] > 0.5
