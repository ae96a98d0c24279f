"""The comparison with other ways to make batches: the measuring against known work, the peers against the reference."""

import io
import json
import random
import tarfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from jobs.cli import main
from pipelines import bench, bench_input, figures, peers, peers_dali, reference
from pipelines.bench import Contender, Result, Turn
from pipelines.errors import BenchError
from pipelines.peers import Batches, Stream, Task
from pipelines.shards import DataSet
from tests.pipelines import burner
from tests.pipelines.burner import Burner


def burning(name: str, *seconds: float) -> Contender:
    return Contender(name, "", Burner, {"here": seconds[:1], "child": seconds[1:2], "after": seconds[2:]})


def test_a_turn_holds_the_work_of_children_and_of_what_goes_on_after_the_round() -> None:
    contenders = [burning("all", 0.1, 0.1, 0.1), burning("plain", 0.1, 0.0, 0.0)]
    everything, plain = bench.compare(contenders, 3, False, lambda line: None, lambda facts: None)
    for turn in everything.turns:
        assert turn.items == 10
        assert 0.28 <= turn.cpu_seconds < 0.6
        assert turn.wall_seconds >= 0.28  # one after the other
        assert turn.idle_cpu_seconds < 0.1
    assert 2.0 < figures.figures(everything, plain).ratio < 4.0
    assert figures.figures(plain, plain).ratio_range == (1.0, 1.0)
    assert everything.facts == {"rounds": 10}
    assert everything.peak_bytes > plain.peak_bytes > 1 << 20


def test_settings_are_chosen_by_cpu_time_one_knob_after_the_other() -> None:
    contender = Contender("c", "", Burner, {"here": (0.06, 0.03, 0.12), "child": (0.0,), "after": (0.1, 0.02)})
    setting, trials = bench.tuned(contender, lambda line: None)
    assert setting == {"here": 0.03, "child": 0.0, "after": 0.02}
    assert [tried["here"] for tried, _ in trials] == [0.06, 0.03, 0.12, 0.03]


def test_of_settings_that_are_about_equal_in_cpu_time_the_fastest_is_taken() -> None:
    assert bench.best_turn([Turn(10, 4.0, 2.0, 0), Turn(10, 2.0, 2.04, 0), Turn(10, 1.0, 2.2, 0)]) == 1


def test_a_contender_that_fails_or_dies_is_named_with_the_reason() -> None:
    with pytest.raises(BenchError, match=r"^sad: OSError: the disk is on fire$"):
        bench.compare([Contender("sad", "", burner.failing, {})], 1, False, print, lambda facts: None)
    with pytest.raises(BenchError, match=r"^dead: its process ended with status 7$"):
        bench.compare([Contender("dead", "", partial(burner.exiting, 7), {})], 1, False, print, lambda facts: None)


@pytest.mark.parametrize("n", [1, 2, 5])
def test_every_contender_has_every_turn_once_in_as_many_rounds_as_there_are(n: int) -> None:
    orders = np.array([bench.rotated(range(n), number) for number in range(n)])
    assert all(sorted(column) == list(range(n)) for column in orders.T)
    assert all(sorted(row) == list(range(n)) for row in orders)


def result(name: str, *turns: tuple[float, float]) -> Result:
    """Turns of 100 items with these wall and CPU seconds."""
    measured = tuple(Turn(100, wall, cpu, 0.0) for wall, cpu in turns)
    return Result(name, f"{name}'s way", {"batch": 64, "threads": 2}, measured, 3 << 20, {}, ())


OURS = result("ours", (1.0, 0.1), (2.0, 0.2), (4.0, 0.4))
THEIRS = result("theirs", (1.0, 0.3), (5.0, 0.4), (2.0, 0.6))  # ratios 3, 2, 1.5


def test_figures_are_medians_over_rounds_and_ratios_within_them() -> None:
    assert figures.figures(OURS, OURS) == figures.Figures(50.0, 2.0, 1.0, (1.0, 1.0))
    f = figures.figures(THEIRS, OURS)
    assert (f.items_per_second, f.cpu_milliseconds) == (50.0, 4.0)
    assert (f.ratio, *f.ratio_range) == pytest.approx((2.0, 1.5, 3.0))


def test_the_table_has_a_line_for_each_contender() -> None:
    head, first, second = figures.table([OURS, THEIRS], "images").splitlines()
    assert head.split("  ")[0] == ""
    assert "images/s  CPU ms/image  ratio" in head
    assert first.split()[:3] == ["ours", "50", "2.00"]
    assert second.split() == [
        "theirs",
        "50",
        "4.00",
        "2.00",
        "(1.50",
        "to",
        "3.00)",
        "3",
        "batch=64",
        "threads=2",
        "theirs's",
        "way",
    ]


def task_of(data: DataSet, folder: Path, images: int, scale: tuple[int, int]) -> Task:
    assert data.manifest.statistics is not None
    task = Task(data.location.absolute, images, scale, 32, data.manifest.statistics.mean_rgb, 64.0, 5, folder)
    bench_input.copy(data, task, 4)
    return task


def source_bytes(data: DataSet) -> list[bytes]:
    return [bytes(e) for g in range(len(data.manifest.group_rows)) for e in data.read_group(g).encoded]


def test_copies_are_the_first_images_of_the_data_set(picture_set: DataSet, tmp_path: Path) -> None:
    task = task_of(picture_set, tmp_path, 44, (36, 64))
    expected = source_bytes(picture_set)[:44]
    assert [Path(file).read_bytes() for file in task.files] == expected
    found = {}
    for shard in task.shards:
        with tarfile.open(shard) as tar:
            found |= {entry.name: tar.extractfile(entry).read() for entry in tar}  # type: ignore[union-attr]
    assert [found[name] for name in sorted(found)] == expected


@given(st.lists(st.integers(1, 9), min_size=1, max_size=8), st.data())
def test_the_first_groups_hold_just_the_first_rows(group_rows: list[int], data: st.DataObject) -> None:
    rows = data.draw(st.integers(1, sum(group_rows)))
    line = [group for group, n in enumerate(group_rows) for _ in range(n)][:rows]
    assert peers_dali.first_groups(tuple(group_rows), rows) == tuple(line.count(g) for g in range(line[-1] + 1))


PEERS: dict[str, tuple[Callable[..., Any], float]] = {  # and the mean difference in grey levels that its filter makes
    "pil": (peers.pil_crop, 0.0),
    "linear": (lambda task, file: peers.opencv_crop(task, "linear", file), 2.0),
    "area": (lambda task, file: peers.opencv_crop(task, "area", file), 2.0),
    "window": (lambda task, file: peers.opencv_crop(task, "window", file), 4.0),
    "reduced": (lambda task, file: peers.opencv_crop(task, "reduced", file), 4.0),
}


@pytest.mark.parametrize("peer", PEERS)
def test_peers_make_the_crops_of_the_reference(picture_set: DataSet, tmp_path: Path, peer: str) -> None:
    pytest.importorskip("cv2")
    task = task_of(picture_set, tmp_path, 60, (33, 48))
    crop, tolerance = PEERS[peer]
    differences, flips = [], 0
    for seed, file in enumerate(task.files):
        encoded = Path(file).read_bytes()
        random.seed(seed)
        view = peers.random_view(task, *Image.open(io.BytesIO(encoded)).size)
        random.seed(seed)
        mean = np.asarray(task.mean, np.float32)
        shorter, flips = min(view.width, view.height), flips + view.flip
        expected = reference.crop(encoded, shorter, (view.y, view.x), 32, view.flip, mean)
        found = crop(task, file)
        assert (found.shape, found.dtype, found.is_contiguous()) == ((3, 32, 32), torch.float32, True)
        differences.append(np.abs(found.numpy() * 64.0 - expected).mean())
    assert np.mean(differences) <= tolerance + 1e-4, np.mean(differences)
    assert 15 < flips < 45


def test_views_reach_every_scale_and_every_border(tmp_path: Path) -> None:
    task = Task("", 1, (34, 36), 32, (0.0, 0.0, 0.0), 1.0, 0, tmp_path)
    random.seed(1)
    views = [peers.random_view(task, 50, 40) for _ in range(1000)]
    assert {view.height for view in views} == {34, 35, 36}
    for shorter in (34, 35, 36):
        same = [view for view in views if view.height == shorter]
        assert {view.width for view in same} == {round(50 * shorter / 40)}
        assert {view.y for view in same} == set(range(shorter - 32 + 1))
        assert {view.x for view in same} == set(range(same[0].width - 32 + 1))
        assert 250 < len(same) < 420


@pytest.mark.parametrize(
    ("source", "setting"),
    [
        (peers_dali.ours, {"threads": 1}),
        (peers_dali.plain_dali, {"threads": 1, "depth": 2, "feed": "readers.file"}),
        (peers_dali.plain_dali, {"threads": 1, "depth": 2, "feed": "external_source"}),
        (peers.pil, {"workers": 1, "depth": 2}),
        (peers.opencv, {"workers": 1, "depth": 2, "variant": "window"}),
        (peers.webdataset, {"workers": 2, "depth": 2}),
        (peers_dali.decoder, {"threads": 1, "depth": 2}),
        (peers_dali.region_decoder, {"threads": 1, "depth": 2}),
    ],
)
def test_every_contender_delivers_the_same_pixels_in_the_mean(
    picture_set: DataSet, tmp_path: Path, source: Callable[..., Batches], setting: dict[str, Any]
) -> None:
    if source in (peers.opencv, peers.webdataset):
        pytest.importorskip("cv2" if source is peers.opencv else "webdataset")
    task = task_of(picture_set, tmp_path, 60, (36, 48))
    stream = Stream(source, task, 20, **setting)
    try:
        assert stream.round() == 60
        facts = stream.facts()
    finally:
        stream.close()
    limit = source in (peers_dali.decoder, peers_dali.region_decoder)
    wholes = [np.asarray(reference.rescale(encoded, 42), np.float64) for encoded in source_bytes(picture_set)]
    mean = np.mean([whole.mean(axis=(0, 1)) for whole in wholes], axis=0)
    square = np.mean([(whole**2).mean(axis=(0, 1)) for whole in wholes], axis=0)
    expected = {
        "images": 60,
        "kinds": ["float32 (3, 32, 32)"],
        "mean": mean.tolist(),
        "deviation": np.sqrt(square - mean**2).tolist(),
    }
    bench_input.check(32, 60, [("ours", expected), ("decode" if limit else "dali", facts)])


def test_other_work_than_ours_is_an_error() -> None:
    facts = {"images": 512, "kinds": ["float32 (3, 224, 224)"], "mean": [120, 110, 100], "deviation": [60, 60, 60]}
    for change, told in [
        ({"images": 500}, "500 images in a round instead of 512"),
        ({"kinds": ["uint8 (224, 224, 3)"]}, "delivered uint8 (224, 224, 3) instead of float32 (3, 224, 224)"),
        ({"mean": [100, 110, 120]}, "mean differs from that of ours by 20.0 grey levels"),
        ({"deviation": [60, 60, 50]}, "deviation differs"),
        ({"mean": [float("nan")] * 3}, "mean differs"),
    ]:
        with pytest.raises(BenchError) as caught:
            bench_input.check(224, 512, [("ours", facts), ("pil", facts | change)])
        assert str(caught.value).startswith("pil: ")
        assert told in str(caught.value)


def test_the_command_compares_draws_and_records(
    picture_set: DataSet, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    find = bench.find_spec
    monkeypatch.setattr(bench, "find_spec", lambda name: None if name == "cv2" else find(name))
    files = {kind: tmp_path / f"figures.{kind}" for kind in ("json", "png")}
    status = main(
        ["bench", "input", picture_set.location.text, "--scale", "36", "48", "--crop", "32", "--rounds", "2"]
        + ["--images", "40", "--only", "pil", "opencv", "--no-tune"]
        + [argument for kind, file in files.items() for argument in (f"--{kind}", str(file))]
    )
    out, err = capsys.readouterr()
    assert status == 0, err
    assert "opencv: left out, cv2 is not installed: pip install 'verydeep[bench]'" in err
    assert [line.split()[0] for line in out.splitlines()[1:]] == ["ours", "pil"]
    record = json.loads(files["json"].read_text())
    assert record["settings"]["scale"] == [36, 48]
    ours, pil = record["contenders"]
    assert ours["setting"]["batch"] == pil["setting"]["batch"] == 40
    for contender in (ours, pil):
        assert [turn["items"] for turn in contender["turns"]] == [40, 40]
        assert all(turn["cpu_seconds"] > 0 for turn in contender["turns"])
    assert Image.open(files["png"]).format == "PNG"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["nowhere"], "nowhere: no such data set; `verydeep prepare` makes one"),
        (["SET", "--scale", "200"], "--scale 200: S must be at least the crop's side, --crop 224"),
        (["SET", "--scale", "512", "256"], "--scale 512 256: the smallest S comes first"),
        (["SET", "--scale", "1", "2", "3"], "--scale 1 2 3: give S, or its smallest and largest value"),
        (["SET", "--only", "opncv"], "--only opncv: no such contender; nearest: opencv; there are ours, dali, pil,"),
        (["SET", "--rounds", "0"], "--rounds 0: at least 1"),
        (["SET", "--images", "61"], "--images 61: the data set has 60; give a number from 1 to 60"),
        (["SET", "--json", "no/such/file"], "no/such/file: there is no folder "),
    ],
)
def test_bad_input_is_told_of_in_one_line(
    picture_set: DataSet, capsys: pytest.CaptureFixture[str], arguments: list[str], told: str
) -> None:
    status = main(["bench", "input", *(picture_set.location.text if a == "SET" else a for a in arguments)])
    out, err = capsys.readouterr()
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"verydeep: {told}")


def test_a_round_has_whole_batches() -> None:
    assert bench_input.round_images(None, 1000) == 512
    assert bench_input.round_images(None, 300) == 256
    assert bench_input.round_images(None, 50) == 50
    assert bench_input.round_images(128, 1000) == 128
    with pytest.raises(ValueError, match="--images 100: give a multiple of 64, such as 64, or less"):
        bench_input.round_images(100, 1000)
