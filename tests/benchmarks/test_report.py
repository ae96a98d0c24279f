"""The frame of the GPU benchmark: what its parts find comes through, whatever becomes of them."""

import json
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch

from benchmarks import compare, gpu, host, kernels, report
from benchmarks.report import Check, Findings, Report
from benchmarks.setting import Piece, Setting

# Parts that stand in for the real ones, each a module that `gpu` imports in the part's own process.
FAKES = {
    "right": "setting.report.check('error', 0.5, most=1)\n    setting.report.row('speeds', net='D', ms=2.5)",
    "together": "setting.report.check('error', 0, most=1)\n    os.kill(os.getpid(), signal.SIGSEGV)",
    "tests": "raise ValueError('no such thing')",
}


@pytest.fixture
def faked(tmp_path: Path) -> Path:
    """A folder with a `benchmarks` whose parts are fakes."""
    package = tmp_path / "benchmarks"
    package.mkdir()
    for file in ("__init__.py", "arguments.py", "gpu.py", "report.py", "setting.py"):
        (package / file).symlink_to(Path(gpu.__file__).parent / file)
    for part, body in FAKES.items():
        (package / f"gpu_{part}.py").write_text(f"import os, signal\n\n\ndef run(setting):\n    {body}\n")
    return tmp_path


def test_what_a_part_finds_comes_through_and_one_that_crashes_costs_the_others_nothing(faked: Path) -> None:
    json_file, root = faked / "found.json", Path(gpu.__file__).parent.parent
    environment = {**os.environ, "PYTHONPATH": f"{faked}{os.pathsep}{root}"}
    command = [sys.executable, "-m", "benchmarks.gpu", "--rehearse", "--json", str(json_file), "--parts"]
    done = subprocess.run(
        [*command, "tests", "together", "right"],
        cwd=faked,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stdout.endswith("wrong: tests, together\n")
    parts = json.loads(json_file.read_text())["parts"]
    assert {name: (part["passed"], part["error"]) for name, part in parts.items()} == {
        "tests": (False, "ValueError: no such thing"),
        "together": (False, "signal SIGSEGV"),
        "right": (True, None),
    }
    assert parts["together"]["checks"], "what it had found before"
    assert parts["right"]["tables"] == {"speeds": [{"net": "D", "ms": 2.5}]}


def test_it_ends_with_0_only_if_all_was_checked_and_passed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = Check("error", 0, most=1), Check("error", 2, most=1)
    found = {"right": Findings([good]), "input": Findings([good, bad]), "step": Findings()}
    monkeypatch.setattr(gpu, "_guarded", lambda part, options, folder, until: found[part])
    assert gpu.main(["--parts", "right"]) == 0
    assert capsys.readouterr().out.endswith("all checks passed\n")
    assert gpu.main(["--parts", "right", "input", "step"]) == 1
    assert capsys.readouterr().out.endswith("wrong: input, step\n")


def test_a_part_has_its_own_time_and_what_others_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, float] = {}

    def guarded(part: str, options: object, folder: Path, until: float) -> Findings:
        given[part] = until - time.monotonic()
        return Findings()

    monkeypatch.setattr(gpu, "_guarded", guarded)
    assert sum(seconds for _, seconds in gpu.PARTS.values()) <= gpu._ALL_SECONDS
    gpu.main(["--parts", "input", "chain"])
    left = gpu._ALL_SECONDS - gpu.PARTS["chain"][1]
    assert left - 1 < given["input"] <= left
    assert left < given["chain"] <= gpu._ALL_SECONDS


def test_a_part_that_hangs_is_killed_with_its_children_and_leaves_what_it_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `gpu` starts parts, but with a process that waits for a child of its own."""
    child = tmp_path / "child"
    program = (
        f"sleep 600 & echo $! > {child}; "
        f"""echo '{{"kind": "check", "name": "n", "value": 1, "most": 2, "least": null, "goal": false}}' """
        f"> {tmp_path}/step.jsonl; touch {tmp_path}/begun; wait"
    )
    shell = tmp_path / "shell"
    shell.write_text(f"#!/bin/sh\n{program}\n")
    shell.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(shell))
    wait = subprocess.Popen.wait

    def patient(process: "subprocess.Popen[bytes]", timeout: float | None = None) -> int:
        """A part's time begins when its program has begun, however busy the machine is."""
        until = time.monotonic() + 60
        while not (tmp_path / "begun").exists() and time.monotonic() < until:
            time.sleep(0.01)
        return wait(process, timeout)

    monkeypatch.setattr(subprocess.Popen, "wait", patient)
    monkeypatch.setattr(gpu, "_GRACE_SECONDS", 0.0)
    found = gpu._guarded("step", gpu._parser().parse_args([]), tmp_path, time.monotonic() + 0.2)
    assert found.error == "its time, 0 s"
    assert [check.name for check in found.checks] == ["n"]
    assert not found.passed
    for _ in range(100):
        if not alive(int(child.read_text())):
            break
        time.sleep(0.05)
    else:
        os.kill(int(child.read_text()), signal.SIGKILL)
        pytest.fail("the child outlived its part")


def alive(pid: int) -> bool:
    """Not a zombie, which nobody may have waited for yet."""
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.parametrize(
    ("value", "most", "least", "passed"),
    [(1, 1, None, True), (1.1, 1, None, False), (1, None, 1, True), (0.9, None, 1, False), (2, 3, 1, True)]
    + [(float("nan"), 1, None, False), (float("inf"), None, 0, False)],
)
def test_bounds_are_inclusive_and_what_is_no_number_never_passes(
    value: float, most: float | None, least: float | None, passed: bool
) -> None:
    assert Check("name", value, most, least).passed is passed


def test_a_missed_goal_is_told_and_no_error_and_a_line_that_was_cut_off_is_left_out(tmp_path: Path) -> None:
    file = tmp_path / "part.jsonl"
    own = Report(file)
    own.check("error", 0, most=0)
    own.check("speed", 1, least=2, goal=True)
    own.note("a word")
    whole = file.read_text()
    file.write_text(whole + '{"kind": "check", "name": "err')
    found = report.read(file)
    assert found.passed
    assert [check.name for check in found.checks] == ["error", "speed"]
    assert "missed" in report.text("Title", found)
    own.error("first")
    own.error("second")
    assert report.read(tmp_path / "none.jsonl").checks == []
    assert not report.read(file).passed


def test_pieces_that_fail_or_have_no_time_cost_the_others_nothing(tmp_path: Path) -> None:
    def fail() -> None:
        raise ValueError("no such thing\nbecause")

    own = Report(tmp_path / "part.jsonl")
    setting = Setting(torch.device("cpu"), False, tmp_path, None, time.monotonic() + 50, own)
    setting.each(
        (
            Piece("wrong", 1, fail),
            Piece("long", 100, lambda: own.note("not to be run")),
            Piece("short", 1, lambda: own.check("error", 0, most=0)),
            Piece("wrong too", 1, fail),
        )
    )
    found = report.read(tmp_path / "part.jsonl")
    assert found.error == "wrong: ValueError: no such thing; wrong too: ValueError: no such thing"
    assert [check.name for check in found.checks] == ["error"]
    assert found.left_out == ["long"]


def test_distances_and_other_bits() -> None:
    a = torch.tensor([3.0, 4.0])
    assert compare.relative(torch.tensor([3.0, 4.5]), a) == pytest.approx(0.1)
    image = torch.randn(2, 3, 4, 4)
    assert compare.differing({"x": image.contiguous(memory_format=torch.channels_last)}, {"x": image}) == 0
    assert (
        compare.differing({"x": torch.tensor([0.0, float("nan"), 1.0])}, {"x": torch.tensor([-0.0, float("nan"), 1.0])})
        == 1
    )


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("sm90_xmma_fprop_implicit_gemm_bf16bf16_bf16f32_f32_nhwckrsc_nhwc_tilesize128x128x64", "convolution"),
        ("void cudnn::ops::nchwToNhwcKernel<__nv_bfloat16, __nv_bfloat16, float>", "layout and padding"),
        ("nvjet_tst_128x256_64x4_1x2_h_bz_coopA_NTN", "matmul"),
        ("void at::native::(anonymous namespace)::max_pool_forward_nhwc<c10::BFloat16>", "pooling"),
        ("void at::native::multi_tensor_apply_kernel<FusedSgdMathFunctor<float, 3>>", "optimiser"),
        (
            "void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add<c10::BFloat16>>",
            "elementwise",
        ),
        ("void at::native::vectorized_elementwise_kernel<4, at::native::BitwiseXorFunctor<long>>", "dropout"),
        ("void at::native::reduce_kernel<128, 4, at::native::ReduceOp<c10::BFloat16, float>>", "reduction"),
        ("triton_poi_fused_relu_3", "elementwise"),
        ("something_new", "other"),
    ],
)
def test_kernels_are_sorted_by_their_names(name: str, kind: str) -> None:
    assert kernels.kind_of(name) == kind


def test_overlapping_kernels_count_once() -> None:
    spans = [(0, 10), (2, 3), (5, 10), (20, 1)]
    assert kernels._busy(kernels.Run("k", "other", start, length) for start, length in spans) == 16


def test_waits_are_counted_by_the_place_that_waits(tmp_path: Path) -> None:
    setting = Setting(torch.device("cpu"), True, tmp_path, None, time.monotonic() + 50, Report(tmp_path / "part.jsonl"))

    def step() -> None:
        warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
        warnings.warn("something else", stacklevel=1)

    found = host.synchronisations(setting, step, 3)
    assert found.total() == 3
    assert [place.partition(":")[0] for place in found] == ["test_report.py"]
