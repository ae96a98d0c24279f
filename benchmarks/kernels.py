"""What a GPU does in a step, kernel by kernel."""

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch.profiler import ProfilerActivity, profile

from benchmarks.setting import Setting, wait

_SHOWN = 12
_NAME_LENGTH = 90
# The first pattern that is found in a kernel's name tells its kind.
_KINDS = (
    ("layout and padding", r"nchwToNhwc|nhwcToNchw|AddPadding|tensorTransform|transpose"),
    ("convolution", r"fprop|dgrad|wgrad|conv|winograd|implicit_gemm|cudnn"),
    ("matmul", r"nvjet|gemm|gemv|cublas|cutlass|splitK"),
    ("pooling", r"max_pool|MaxPool"),
    ("optimiser", r"[Ss]gd|multi_tensor_apply"),
    ("dropout", r"[Bb]itwise|[rl]shift|arange|dropout|bernoulli|<long|long>"),
    ("loss", r"[Ss]oft[Mm]ax|nll_loss"),
    ("reduction", r"reduce|_red_|triton_per"),
    ("elementwise", r"elementwise|triton|[Cc]opy|fill"),
)


@dataclass(frozen=True)
class Run:
    """Of a kernel or a copy, in microseconds."""

    name: str
    kind: str
    start: float
    duration: float


def table(setting: Setting, step: Callable[[], None], what: str) -> None:
    """Two tables of one step that has been warmed up: kinds and the heaviest kernels, with their shares of the time
    from the first to the last, the rest of which is idle."""
    runs = _runs(setting, step)
    if not runs:
        setting.report.note(f"{what}: the profiler saw no kernel")
        return
    first, last = min(run.start for run in runs), max(run.start + run.duration for run in runs)
    whole = last - first
    kinds = _sums((run.kind, run.duration) for run in runs)
    kinds["idle"] = (whole - _busy(runs), 0)
    for kind, (spent, count) in sorted(kinds.items(), key=lambda item: -item[1][0]):
        setting.report.row(f"{what}: by kind", kind=kind, ms=spent / 1000, share=spent / whole, calls=count)
    heaviest = sorted(_sums((run.name, run.duration) for run in runs).items(), key=lambda item: -item[1][0])
    for name, (spent, count) in heaviest[:_SHOWN]:
        shown = name[:_NAME_LENGTH]
        setting.report.row(
            f"{what}: the heaviest kernels", kernel=shown, ms=spent / 1000, share=spent / whole, calls=count
        )


def kind_of(name: str) -> str:
    return next((kind for kind, pattern in _KINDS if re.search(pattern, name)), "other")


def _sums(durations: Iterable[tuple[str, float]]) -> dict[str, tuple[float, int]]:
    """Time and number by key."""
    found: dict[str, tuple[float, int]] = defaultdict(lambda: (0.0, 0))
    for key, duration in durations:
        spent, count = found[key]
        found[key] = spent + duration, count + 1
    return found


def _busy(runs: Iterable[Run]) -> float:
    """Time in which at least one of them runs."""
    busy, end = 0.0, float("-inf")
    for run in sorted(runs, key=lambda run: run.start):
        stop = run.start + run.duration
        busy += max(0.0, stop - max(run.start, end))
        end = max(end, stop)
    return busy


def _runs(setting: Setting, step: Callable[[], None]) -> list[Run]:
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if setting.cuda else [])]
    with profile(activities=activities) as profiler:
        step()
        wait(setting.device)
    file = setting.folder / "trace.json"
    profiler.export_chrome_trace(str(file))
    events: list[dict[str, Any]] = json.loads(file.read_text())["traceEvents"]
    file.unlink()
    copies = {"gpu_memcpy", "gpu_memset"}
    kernels = {"kernel"} if setting.cuda else {"cpu_op"}  # of a rehearsal on the CPU, where they lie inside one another
    found = [event for event in events if event.get("cat") in kernels | copies]
    return [
        Run(
            str(event["name"]),
            "memory copies" if event["cat"] in copies else kind_of(str(event["name"])),
            float(event["ts"]),
            float(event["dur"]),
        )
        for event in found
    ]
