"""`python -m benchmarks.gpu`: whether everything is right on this machine's GPU, and how fast it is, in 8 minutes.

Each part runs in a process of its own, within a time of its own: one that crashes, hangs or runs out of memory costs
the others nothing, and leaves what it has found so far. Prints tables and writes JSON. Ends with 1 if a check failed.

`--rehearse` runs the same code small, on the CPU where there is no GPU, to find its mistakes.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks import arguments, report
from benchmarks.report import Findings, Report
from benchmarks.setting import Setting
from pipelines import figures

# In the order in which they are worth most, and the seconds each may take, on one H200; and what those before it and
# those that are not wanted leave of all seconds.
PARTS = {
    "right": ("The same numbers as on the CPU", 70),
    "input": ("Input alone", 80),
    "step": ("Steps alone, on made-up images", 95),
    "together": ("Training on JPEGs through Ray Train", 70),
    "tests": ("Dense and multi-crop tests", 50),
    "chain": ("A whole chain on photographs", 100),
}
_ALL_SECONDS = 465
_REHEARSAL = 10  # times as long
_GRACE_SECONDS = 5.0


def main(given: list[str] | None = None) -> int:
    options = _parser().parse_args(given)
    if options.only_part:
        return _run_part(options)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that a part ends with it
    chosen = options.parts or list(PARTS)
    found: dict[str, Findings] = {}
    took: dict[str, float] = {}
    until = time.monotonic() + _ALL_SECONDS * (_REHEARSAL if options.rehearse else 1)
    with tempfile.TemporaryDirectory(prefix="verydeep-gpu-") as folder:
        for part in chosen:
            start = time.monotonic()
            end = until - _reserved(chosen[len(found) + 1 :], options.rehearse)
            found[part] = _guarded(part, options, Path(folder), end)
            took[part] = time.monotonic() - start
            print(report.text(f"{PARTS[part][0]} ({took[part]:.0f} s)", found[part]), end="\n\n", flush=True)
            if options.json is not None:  # after each part, since this process may be cut off, too
                options.json.write_text(json.dumps(_record(found, took, options.rehearse), indent=1) + "\n")
    wrong = [part for part in chosen if not found[part].passed]
    if left_out := [f"{part}: {name}" for part in chosen for name in found[part].left_out]:
        print(f"not looked at, for want of time: {'; '.join(left_out)}")
    print(f"wrong: {', '.join(wrong)}" if wrong else "all checks passed")
    return 1 if wrong else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--rehearse", action="store_true", help="small, on any device; the figures mean nothing")
    parser.add_argument("--parts", nargs="+", choices=PARTS, metavar="PART", help=f"of {', '.join(PARTS)}")
    what = "a folder with a folder of photographs for each class"
    parser.add_argument("--photos", type=arguments.folder, metavar="FOLDER", help=what)
    parser.add_argument("--json", type=arguments.new_file, metavar="FILE", help="write all that is found")
    parser.add_argument("--only-part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--until", type=float, help=argparse.SUPPRESS)
    return parser


def _reserved(parts: list[str], rehearsal: bool) -> float:
    """Seconds that are kept for these parts."""
    return sum(PARTS[part][1] for part in parts) * (_REHEARSAL if rehearsal else 1)


def _guarded(part: str, options: argparse.Namespace, folder: Path, until: float) -> Findings:
    """Runs the part in a process group of its own, which ends with it; to `until` at most, on `time.monotonic`'s clock,
    which is the same for all processes: what a part's start takes is part of its time."""
    command = [sys.executable, "-m", "benchmarks.gpu", "--only-part", part, "--folder", str(folder)]
    command += ["--rehearse"] * options.rehearse
    command += ["--photos", str(options.photos.absolute())] if options.photos else []
    command += ["--until", str(until)]
    limit = until - time.monotonic()
    process = subprocess.Popen(command, start_new_session=True)
    ended = None
    try:
        status = process.wait(limit + _GRACE_SECONDS)
        if status:
            ended = f"status {status}" if status > 0 else f"signal {signal.Signals(-status).name}"
    except subprocess.TimeoutExpired:
        ended = f"its time, {limit:.0f} s"
    finally:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.wait()
    found = report.read(_file(folder, part))
    found.error = found.error or ended
    return found


def _run_part(options: argparse.Namespace) -> int:
    """In the part's own process."""
    part, own = options.only_part, Report(_file(options.folder, options.only_part))
    if not options.rehearse and not torch.cuda.is_available():
        own.error("there is no GPU here; --rehearse does without")
        return 1
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    if options.rehearse and device.type == "cpu":
        torch.set_num_threads(1)  # small as it is, threads would wait for one another most of the time
    setting = Setting(device, options.rehearse, options.folder, options.photos, options.until, own)
    try:
        _program(part)(setting)
    except Exception as error:  # the edge of a process, whose findings are to tell of it
        traceback.print_exc()
        own.error(f"{type(error).__name__}: {error}")
        return 1
    return 0


def _program(part: str) -> Callable[[Setting], None]:
    """A part's own imports are slow, and may fail."""
    match part:
        case "right":
            from benchmarks.gpu_right import run
        case "input":
            from benchmarks.gpu_input import run
        case "step":
            from benchmarks.gpu_step import run
        case "together":
            from benchmarks.gpu_together import run
        case "tests":
            from benchmarks.gpu_tests import run
        case "chain":
            from benchmarks.gpu_chain import run
        case _:
            raise AssertionError(part)
    return run


def _file(folder: Path, part: str) -> Path:
    return folder / f"{part}.jsonl"


def _record(found: dict[str, Findings], took: dict[str, float], rehearsal: bool) -> dict[str, Any]:
    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
    content = {name: {"seconds": took[name], **asdict(f), "passed": f.passed} for name, f in found.items()}
    cudnn = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    versions = {"cuda": torch.version.cuda, "cudnn": cudnn, "nccl": _nccl()}
    return {**figures.environment(), "gpu": gpu, "libraries": versions, "rehearsal": rehearsal, "parts": content}


def _nccl() -> str | None:
    if not torch.cuda.is_available():
        return None
    return ".".join(map(str, torch.cuda.nccl.version()))  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    sys.exit(main())
