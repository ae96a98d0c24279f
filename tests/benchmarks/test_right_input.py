"""The comparison of a GPU's graph with the CPU's finds what is wrong."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks import pictures, report, right_input
from benchmarks.right_input import Crops
from benchmarks.setting import Setting
from pipelines import graphs
from pipelines.decoding import Decoding

CPU = torch.device("cpu")


def test_right_graphs_pass(setting: Setting) -> None:
    right_input.check(setting)
    found = report.read(setting.folder / "report.jsonl")
    assert found.passed
    assert len(found.checks) == 4 * 4 + 4 * 4
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


def as_engines(monkeypatch: pytest.MonkeyPatch, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Those of a GPU decode so."""
    made = graphs.run

    def run(graph: graphs.Graph, device: torch.device) -> torch.Tensor:
        return change(made(graph, device)) if graph.by_engines else made(graph, device)  # type: ignore[attr-defined]

    for kind, build in (("crops", graphs.crops), ("wholes", graphs.wholes)):

        def marked(*arguments: object, build: Callable[..., graphs.Graph] = build) -> graphs.Graph:
            graph = build(*arguments)
            graph.by_engines = isinstance(way := arguments[-1], Decoding) and way.hardware > 0  # type: ignore[attr-defined]
            return graph

        monkeypatch.setattr(graphs, kind, marked)
    monkeypatch.setattr(graphs, "run", run)


def rounded_otherwise(images: torch.Tensor) -> torch.Tensor:
    return images + 2.5 * torch.randn(images.shape, generator=torch.Generator().manual_seed(1)) - 0.5


def test_what_engines_round_is_no_error_but_what_they_mirror_is(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        as_engines(patch, rounded_otherwise)
        right_input.check(setting)
    found = report.read(setting.folder / "report.jsonl")
    assert found.passed
    missed = [check.name for check in found.checks if not check.passed]
    assert missed
    assert all(", JPEG engines: levels apart" in name for name in missed)
    as_engines(monkeypatch, lambda images: images.flip(3))
    right_input.check(setting)
    hard = [check for check in report.read(setting.folder / "report.jsonl").checks if not check.goal]
    wrong = [check.name for check in hard if not check.passed]
    assert [name for name in wrong if "distance" in name] == [
        f"{what}, {how}, JPEG engines: distance, by that to other S, crop or flip"
        for what in ("crops", "whole images")
        for how in ("windows", "whole decoded")
    ]
