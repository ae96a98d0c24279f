"""`python -m benchmarks.network`: what the exchange of gradients takes over links of 1, 10 and 25 Gbit/s.

Workers are processes on this machine, each in a network namespace of its own, and their links are shaped; see
`namespaces`. It takes root, Linux' iproute2, and some minutes. Where that cannot be had, one line says why, and the
status is 0: nothing was measured, and nothing is wrong.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import arguments, exchanges, namespaces, report
from benchmarks.exchanges import Answer, Exchange, Task
from benchmarks.namespaces import INTERFACE, Links
from benchmarks.network_figures import FULL, NOTES, SMALL, Measured, Sizes, findings
from cluster import torchrun
from cluster.turns import Turn
from pipelines import figures
from pipelines.errors import BenchError

_PORT = 29500  # of worker 0, in its own namespace, where nobody else is
_LIMIT_SECONDS = 1800.0  # for the workers of one rate, which take two minutes on two cores of their own


def main(given: list[str] | None = None) -> int:
    options = _parser().parse_args(given)
    if (reason := namespaces.refusal()) is not None:
        print(f"skipped: {reason}", file=sys.stderr)
        return 0
    sizes = SMALL if options.rehearse else FULL
    measured: list[Measured] = []

    def take(each: Measured) -> None:
        measured.append(each)
        title = f"{each.workers} workers, {each.gbit:g} Gbit/s"
        print(report.text(title, findings([each], sizes)), end="\n\n", flush=True)
        if options.json is not None:  # after each rate, since this process may be cut off
            options.json.write_text(json.dumps(_record(measured, sizes), indent=1) + "\n")

    try:
        for workers in options.workers:
            _measure(workers, options.gbit, options.rounds, sizes, take)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BenchError as error:
        print(error, file=sys.stderr)
        return error.exit_status
    print("\n".join(NOTES))
    return 0 if findings(measured, sizes).passed else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.network", description=(__doc__ or "").split("\n\n")[0])
    workers = arguments.whole(2, namespaces.MOST)
    parser.add_argument("--workers", type=workers, nargs="+", default=[2], help="one after the other (default: 2)")
    gbit = arguments.number(1e-3, 1e3)
    parser.add_argument("--gbit", type=gbit, nargs="+", default=[1, 10, 25], help="of each link (default: 1 10 25)")
    rounds = arguments.whole(1, 1_000_000)
    parser.add_argument("--rounds", type=rounds, default=3, help="of exchanges; of steps twice as many (default: 3)")
    parser.add_argument("--rehearse", action="store_true", help="small nets; the figures mean nothing")
    parser.add_argument("--json", type=arguments.new_file, metavar="FILE", help="write all that is measured")
    return parser


def _record(measured: list[Measured], sizes: Sizes) -> dict[str, Any]:
    rest = {"rehearsal": sizes is SMALL, "notes": NOTES, "measured": [asdict(each) for each in measured]}
    return {**figures.environment(), **asdict(findings(measured, sizes)), **rest}


def _measure(workers: int, rates: Sequence[float], rounds: int, sizes: Sizes, take: Callable[[Measured], None]) -> None:
    with namespaces.links(workers) as made, tempfile.TemporaryDirectory(prefix="verydeep-network-") as folder:
        for gbit in rates:
            print(f"{workers} workers, {gbit:g} Gbit/s", file=sys.stderr, flush=True)
            made.shape(gbit)
            take(Measured(workers, gbit, _answer(made, sizes, rounds, Path(folder))))


def _answer(made: Links, sizes: Sizes, rounds: int, folder: Path) -> Answer:
    task = Task(
        shapes=sizes.shapes,
        narrow=sizes.narrow,
        convolutions=sizes.convolutions,
        exchanges=rounds,
        steps=2 * rounds,
        cuda=False,
        threads=max(1, len(os.sched_getaffinity(0)) // made.workers),
    )
    task_file, answer_file = folder / "task.json", folder / "answer.json"
    task_file.write_text(task.model_dump_json(by_alias=True))
    run_workers(made, [sys.executable, "-m", exchanges.__name__, str(task_file), str(answer_file)], folder)
    answer = json.loads(answer_file.read_bytes())
    return Answer(
        {name: [Exchange(**each) for each in found] for name, found in answer["exchange"].items()},
        {name: [Turn(**each) for each in found] for name, found in answer["steps"].items()},
        {name: [Turn(**each) for each in found] for name, found in answer["buckets"].items()},
    )


def run_workers(made: Links, program: list[str], folder: Path) -> None:
    """The program as each worker, in its namespace, to the end. `folder`: for what they say. Raises BenchError if one
    fails; none is left behind."""
    address = {"MASTER_ADDR": made.address(0), "MASTER_PORT": str(_PORT), "GLOO_SOCKET_IFNAME": INTERFACE}
    running: list[subprocess.Popen[bytes]] = []
    try:
        for rank in range(made.workers):
            environment = {**os.environ, **address, "RANK": str(rank), "WORLD_SIZE": str(made.workers)}
            with (folder / f"{rank}.log").open("wb") as log:
                command = made.command(rank, program)
                running.append(
                    subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
                )
        _wait(running, folder)
    finally:
        for process in running:
            process.kill()
            process.wait()


def _wait(running: list[subprocess.Popen[bytes]], folder: Path) -> None:
    until = time.monotonic() + _LIMIT_SECONDS
    while (states := [process.poll() for process in running]).count(0) < len(running):
        failed = [rank for rank, status in enumerate(states) if status]
        if failed:
            text = (folder / f"{failed[0]}.log").read_text(errors="replace")
            raise BenchError(f"worker {failed[0]}: {torchrun.reason(text)}")
        if time.monotonic() > until:
            raise BenchError(f"the workers did not come to an end within {_LIMIT_SECONDS:.0f} s")
        time.sleep(0.1)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background jobs ignore
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # by way of what removes namespaces
    sys.exit(main())
