"""`verydeep plan`: its lines, its numbers, and what it refuses."""

import json
from pathlib import Path
from typing import Any

import pytest

from jobs import check, forecast, rates, schema
from jobs.cli import main
from jobs.selection import Choice
from jobs.units import hours, scaled
from pipelines.location import Location
from pipelines.shards import DataSet
from tests.cluster.test_flops import TABLE
from tests.cluster.test_vgg import PARAMETERS
from tests.jobs import imagenet

ROOT = Path(__file__).parents[2]

JOB = """name: small
data: {{train: {train}, val: {val}}}
storage: {storage}
cluster: {{workers: 2}}
train: {{input_size: 32, width: 0.05, batch: 50, epochs: 4}}
stages:
  a: {{net: A, scale: 34}}
  b: {{net: B, scale: [32, 40], init: {{from: a}}}}
  d: {{net: D, scale: 34, init: {{from: a}}, learning_rate: 0.001, epochs: 2}}
evaluations:
  one: {{models: [a]}}
  all: {{models: [b], mode: [dense, both], scales: several}}
"""


@pytest.fixture
def job(digits: tuple[str, str], tmp_path: Path) -> str:
    file = tmp_path / "job.yaml"
    file.write_text(JOB.format(train=digits[0], val=digits[1], storage=tmp_path / "storage"))
    return str(file)


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["plan", *arguments]) == 0
    return capsys.readouterr().out


def numbers(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    found = json.loads(printed(capsys, *arguments, "--json"))
    return {**found, "parts": {part["name"]: part for part in found["parts"]}}


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["plan", *arguments]) == 2
    return capsys.readouterr().err


def test_a_small_plan_is_these_lines(job: str, digits: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    train, val = (DataSet.open(place).manifest.total_bytes for place in digits)  # the rest of it is the job's alone
    read = {
        "four": 4 * (train + val),
        "two": 2 * (train + val),
        "one": val,
        "six": 6 * val,
        "all": 10 * train + 17 * val,
    }
    expected = EXPECTED.format(**{name: scaled(n, "B") for name, n in read.items()})
    assert printed(capsys, job, "--images-per-second", "2") == expected


EXPECTED = """\
small: 300 images to train on, 97 to validate with, 10 classes; 2 workers

           net  S or Q    epochs  steps  images   FLOPs     read     sent    saved    time
------------------------------------------------------------------------------------------
a          A    34             4     24  1.59 k  3.87 G  {four:>7}  4.01 MB  2.36 MB   6 min
    will run: nothing with these settings and data in the storage
    from random weights; rate 0.01, divided by 10 after 5 epochs without a gain of 0.001, at most 3 times
b          B    32-40          4     24  1.59 k  5.20 G  {four:>7}  4.05 MB  2.37 MB   8 min
    will run: nothing with these settings and data in the storage
    from a; rate 0.01, divided by 10 after 5 epochs without a gain of 0.001, at most 3 times
d          D    34             2     12     794  3.47 G  {two:>7}  2.68 MB  1.41 MB   6 min
    will run: nothing with these settings and data in the storage
    from a; rate 0.001, divided by 10 after 5 epochs without a gain of 0.001, at most 3 times
test of a  A    34             -      -      97   198 M  {one:>7}        -        -    19 s
    will run: 1 view
test of b  B    32 36 40       -      -     582  20.5 G  {six:>7}        -        -  33 min
    will run: 6 views
------------------------------------------------------------------------------------------
in all                        10     60  4.65 k  33.2 G  {all:>7}  10.7 MB  6.14 MB  53 min

All of it at most: a stage may end before its last epoch, where its schedule says so.
sent: gradients, by each of the 2 workers to others; 21.5 MB by all of them.
a step of A (a): 167 kB, by plain DDP 295 kB; as sums conv1_1 336 B, conv2_1 672 B, conv3_1 2.86 kB,
    conv3_2 6.14 kB, conv4_1 12.3 kB, conv4_2 conv5_1 conv5_2 each 24.4 kB, fc1 22.1 kB, fc3 8.24
    kB; as factors in float32 fc2 41.0 kB.
a step of B (b): 169 kB, by plain DDP 297 kB; as sums conv1_1 conv1_2 each 336 B, conv2_1 672 B,
    conv2_2 1.32 kB, conv3_1 2.86 kB, conv3_2 6.14 kB, conv4_1 12.3 kB, conv4_2 conv5_1 conv5_2 each
    24.4 kB, fc1 22.1 kB, fc3 8.24 kB; as factors in float32 fc2 41.0 kB.
a step of D (d): 224 kB, by plain DDP 352 kB; as sums conv1_1 conv1_2 each 336 B, conv2_1 672 B,
    conv2_2 1.32 kB, conv3_1 2.86 kB, conv3_2 conv3_3 each 6.14 kB, conv4_1 12.3 kB, conv4_2 conv4_3
    conv5_1 conv5_2 conv5_3 each 24.4 kB, fc1 22.1 kB, fc3 8.24 kB; as factors in float32 fc2 41.0
    kB.
factors: taken to be in float32, since the job does not say whether there are GPUs
    (gpus_per_worker); of those that compute in bf16 they are half as large.
saved: checkpoints; 8 of them, 4.95 MB, stay on the storage.
time: 2 images/s for d, as given; others by their operations.
time of tests: at the pace of training; in float32, so that GPUs that train in bf16 take longer.
time: one after the other 53 min; side by side, each on 2 workers: 2 at a time 47 min.
"""


def test_without_a_speed_it_says_how_to_come_by_one(job: str, capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(capsys, job).splitlines()
    assert lines[-2:] == [
        "time: unknown, since nothing was measured in this storage yet. Give --images-per-second, which",
        "    `verydeep bench step` measures, or run a stage.",
    ]
    assert next(line for line in lines if line.startswith("in all")).endswith("  ?")


def test_what_was_measured_in_the_storage_is_taken(job: str, capsys: pytest.CaptureFixture[str]) -> None:
    settings, storage = schema.load(job), Location.of(schema.load(job).storage)
    place = storage / "runs" / "other" / "x-0123456789ab"
    rates.note(place, settings.stages["b"], 10, 1, rates.device(0, 2), [3.0, 5.0, 5.0])
    found = numbers(capsys, job)
    b = found["parts"]["b"]
    assert b["pace"]["source"].startswith("5.0 images/s measured on 1 worker with 2 CPUs each, ")
    assert b["pace"]["source"].endswith("; scaled by workers")
    share = b["flops"] / (b["images"] + b["looked_at"])
    assert 0 < b["hours"] < (b["images"] + b["looked_at"]) / 10 / 3600
    assert found["parts"]["a"]["hours"] < b["hours"] * found["parts"]["a"]["flops"] / b["flops"] * 1.001
    assert share > 0
    assert "; scaled by operations and workers (a" in printed(capsys, job).replace("\n    ", " ")


def test_all_sums_are_those_of_the_parts(job: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = numbers(capsys, job, "--images-per-second", "100", "--workers", "4")
    parts = found["parts"].values()
    assert found["workers"] == 4
    for key, value in found["sum"].items():
        assert value == pytest.approx(sum(part[key] for part in parts)), key
    assert list(found["parts"]) == ["a", "b", "d", "test of a", "test of b"]
    side_by_side = found["hours_side_by_side"]
    assert side_by_side["1"] == pytest.approx(found["sum"]["hours"])
    assert side_by_side["2"] < side_by_side["1"]
    in_turn = numbers(capsys, job, "--images-per-second", "100", "--set", "cluster.side_by_side=1")
    assert list(in_turn["hours_side_by_side"]) == ["1"]


def test_what_is_urgent_goes_by_the_plans_operations_and_not_by_speeds(
    job: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = {name: part["flops"] for name, part in numbers(capsys, job)["parts"].items()}
    monkeypatch.delattr(rates, "known")
    assert forecast.costs(check.check(schema.load(job)), Choice()) == found


def test_only_what_is_asked_for_is_counted(job: str, capsys: pytest.CaptureFixture[str]) -> None:
    whole, a = numbers(capsys, job), numbers(capsys, job, "--until", "a")
    assert a["parts"]["a"] == whole["parts"]["a"]
    assert a["parts"]["b"]["action"] == "left out"
    assert list(a["parts"]) == ["a", "b", "d", "test of a"]
    assert a["sum"]["flops"] == sum(whole["parts"][name]["flops"] for name in ("a", "test of a"))


def test_what_is_done_costs_nothing(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = numbers(capsys, str(run / "job.yaml"))
    assert [
        (p["name"], p["action"], p["steps"], p["hours"]) for p in found["parts"].values() if p["kind"] == "stage"
    ] == [
        ("a", "done", 0, 0.0),
        ("e", "done", 0, 0.0),
    ]
    fresh = numbers(capsys, str(run / "job.yaml"), "--fresh")
    assert fresh["parts"]["a"]["action"] == "will run again"
    assert fresh["parts"]["a"]["steps"] == 6 * 2


def test_what_cannot_be_is_refused_in_a_line(job: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert refused(capsys, job, "--workers", "0") == "verydeep: --workers 0: expected 1 or more\n"
    for rate in ("0", "-1", "nan", "inf"):
        expected = f"verydeep: --images-per-second {rate}: expected a number above 0\n"
        assert refused(capsys, job, "--images-per-second", rate) == expected
    assert refused(capsys, job, "--of", "a") == "verydeep: --of a: does not go without --images-per-second\n"
    unknown = refused(capsys, job, "--images-per-second", "1", "--of", "bb")
    assert unknown == "verydeep: --of bb: there is no such stage; did you mean b?\n"
    exact = refused(capsys, job, "--workers", "3", "--set", "train.batch_norm=true")
    assert "--workers 3: stage a: batch norm takes a power of two of workers" in exact


@pytest.mark.parametrize(
    "change",
    ["train.width=1e300", "train.width=1e308", "checkpoints.every_minutes=1e-320"],
)  # fmt: skip
def test_numbers_beyond_all_measure_are_refused_in_a_line(
    job: str, change: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert refused(capsys, job, "--set", change, "--images-per-second", "100") == (
        "verydeep: small: a width, a number of epochs or another setting is so large that the job's work can't be "
        "reckoned\n"
    )


def test_the_speed_may_be_that_of_any_stage(job: str, capsys: pytest.CaptureFixture[str]) -> None:
    largest = numbers(capsys, job, "--images-per-second", "100")["parts"]
    a = numbers(capsys, job, "--images-per-second", "100", "--of", "a")["parts"]
    assert largest["d"]["pace"]["source"] == "100 images/s for d, as given; others by their operations"
    assert a["a"]["hours"] > largest["a"]["hours"]
    assert a["a"]["hours"] / a["d"]["hours"] == pytest.approx(largest["a"]["hours"] / largest["d"]["hours"])


def test_the_papers_job_comes_to_what_one_reckons_by_hand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train, val = imagenet.made(tmp_path / "imagenet")
    changes = [f"--set={key}" for key in (f"data.train={train}", f"data.val={val}", f"storage={tmp_path / 'storage'}")]
    job = str(ROOT / "jobs" / "vgg_e.yaml")
    found = numbers(capsys, job, *changes, "--workers", "8", "--images-per-second", "3000")
    rows, checked = imagenet.TRAINING_ROWS, imagenet.VALIDATION_ROWS
    for name, net in (("a", "A"), ("e", "E"), ("e-384", "E"), ("e-jitter", "E")):
        part, (forward, training) = found["parts"][name], TABLE[net]
        assert part["steps"] == 74 * 5005  # 1,281,167 / 256, rounded up
        assert (part["images"], part["looked_at"]) == (74 * rows, 74 * checked)
        assert part["flops"] == pytest.approx(74e9 * (rows * training + checked * forward), rel=1e-3)
        assert part["hours"] == pytest.approx(part["flops"] / (3000 * 117.62e9) / 3600, rel=1e-3)
        # 2 * 7/8 * 4 bytes of each convolution's, and 7/8 * 2 of each image's factors, which a GPU has in bf16
        by_step = 7 * (PARAMETERS[net] - 123_642_856) + 1.75 * 256 * (25088 + 3 * 4096 + 4096 + 1000)
        assert part["sent_bytes"] == 74 * 5005 * by_step
        assert part["read_bytes"] == 74 * (imagenet.TRAINING_BYTES + DataSet.open(val).manifest.total_bytes)
        hourly = int(part["hours"] * 60 / 74 / 10)
        assert part["checkpoints"] == {"bytes": 8 * PARAMETERS[net], "written": 74 * (1 + hourly), "kept": 3}
    assert 8.7 < found["parts"]["e"]["hours"] < 9.0
    dense = found["parts"]["test of e-384"]  # at 352, 384 and 416, of 500 x 375 pixels
    assert dense["looked_at"] == 3 * checked
    pixels = (352 * 448, 384 * 512, 416 * 544)  # shorter sides, and longer ones to whole strides
    places = (5 * 8, 6 * 10, 7 * 11)  # of FC-1's window, 7 x 7, on a 32nd of these
    convolutions, classifier = 39.26e9 - 0.2473e9, 0.2473e9  # 2 * (7 * 7 * 512 * 4096 + 4096**2 + 4096 * 1000)
    by_hand = sum(convolutions * n / 224**2 for n in pixels) + sum(classifier * n for n in places)
    assert dense["flops"] == pytest.approx(2 * checked * by_hand, rel=1e-3)  # the mirror image, too
    crops = found["parts"]["test of e-jitter"]["flops"]
    assert crops > 3 * 50 * checked * 39.26e9
    text = printed(capsys, job, *changes, "--workers", "8", "--images-per-second", "3000")
    assert max(map(len, text.splitlines())) <= 105


def exchanges(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    """By the first of its stages."""
    return {each["stages"][0]: each for each in numbers(capsys, *arguments)["exchanges"]}


def test_exchanges_add_up_to_what_a_step_sends(job: str, capsys: pytest.CaptureFixture[str]) -> None:
    kinds = {"exchange=auto": 1, "exchange=ddp": 1, "batch_norm=true": 1, "exchange_precision=bf16": 2}
    for change, smaller in kinds.items():
        arguments = [job, "--workers", "4", f"--set=train.{change}"]
        parts, found = numbers(capsys, *arguments)["parts"], exchanges(capsys, *arguments)
        assert list(found) == ["a", "b", "d"]
        for name, each in found.items():
            assert each["bytes"] == sum(layer["bytes"] for layer in each["layers"]) + each["statistics_bytes"]
            assert parts[name]["sent_bytes"] == parts[name]["steps"] * round(each["bytes"])
            assert each["plain_bytes"] == pytest.approx(smaller * sum(layer["ddp_bytes"] for layer in each["layers"]))
            assert (each["bytes"] < each["plain_bytes"]) == (change != "exchange=ddp")


def test_stages_that_send_the_same_are_told_of_together(job: str, capsys: pytest.CaptureFixture[str]) -> None:
    changes = ("stages.b.net=A-LRN", "stages.d.net=A", "stages.d.freeze=[features]")
    arguments = [job, *(f"--set={change}" for change in changes)]
    found = exchanges(capsys, *arguments)
    assert [(each["stages"], each["nets"]) for each in found.values()] == [(["a", "b"], ["A", "A-LRN"]), (["d"], ["A"])]
    assert [layer["layer"] for layer in found["d"]["layers"]] == ["fc1", "fc2", "fc3"]
    assert "a step of A and A-LRN (a, b): " in printed(capsys, *arguments)


def test_what_is_done_and_one_worker_exchange_nothing(run: Path, job: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert exchanges(capsys, str(run / "job.yaml")) == {}
    assert exchanges(capsys, job, "--workers", "1") == {}
    assert "a step of" not in printed(capsys, job, "--workers", "1")


@pytest.mark.parametrize(
    ("changes", "bf16", "told"),
    [
        (["cluster.gpus_per_worker=0"], False, None),
        ([], False, "taken to be in float32, since the job does not say"),
        (["cluster.gpus_per_worker=1"], True, "taken to be in bf16, as GPUs from Ampere on"),
        (["cluster.gpus_per_worker=1", "train.precision=float32"], False, None),
        (["cluster.gpus_per_worker=0", "train.precision=bf16"], True, None),
        (["train.exchange=ddp"], False, None),
    ],
)
def test_the_factors_precision_is_the_jobs_or_is_assumed_and_told_of(
    job: str, changes: list[str], bf16: bool, told: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [job, *(f"--set={change}" for change in changes)]
    assert {each["bf16"] for each in exchanges(capsys, *arguments).values()} == {bf16}
    text = printed(capsys, *arguments).replace("\n    ", " ")
    assert ("factors: " in text) == (told is not None)
    assert told is None or told in text


def test_numbers_have_three_digits_and_a_unit() -> None:
    assert [scaled(n) for n in (0, 7, 999, 1000, 5_186_000, 999_500, 1e21)] == [
        "0", "7", "999", "1.00 k", "5.19 M", "1.00 M", "1.00 Z",
    ]  # fmt: skip
    assert [scaled(n, "B") for n in (553e6, 12.34, 1.5)] == ["553 MB", "12.3 B", "1.50 B"]
    assert [scaled(n) for n in (9.9949, 9.999, 99.96, 999.6, 9_999)] == ["9.99", "10.0", "100", "1.00 k", "10.0 k"]
    assert [hours(n) for n in (0, 0.02, 0.5, 3.14, 30.4, 1210.4)] == [
        "0 s",
        "72 s",
        "30 min",
        "3.1 h",
        "30.4 h",
        "1,210 h",
    ]
    assert hours(99.5 / 60) != hours(98.5 / 60)
    assert [hours(n) for n in (1e-5, 2e-4, 99.94, 99.96)] == ["< 1 s", "1 s", "99.9 h", "100 h"]
