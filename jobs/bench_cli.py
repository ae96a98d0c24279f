"""`verydeep bench`: its arguments, and its verbs carried out."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from cluster.settings import StageSettings
from jobs.source import open_source, scale_range
from pipelines.errors import SettingsError


def add_arguments(bench: argparse.ArgumentParser) -> None:
    parts = bench.add_subparsers(required=True, metavar="PART")
    _input_arguments(parts.add_parser("input", help="making of batches"))
    _step_arguments(parts.add_parser("step", help="a step of training"))
    _exchange_arguments(parts.add_parser("exchange", help="gradients between workers"))
    _tests_arguments(parts.add_parser("tests", help="dense and multi-crop tests"))


def _input_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "Compares the making of training batches on the CPU with other ways to make the same."
    parser.add_argument("data", metavar="DATASET", help="a prepared training set; its first images are taken")
    parser.add_argument(
        "--scale", type=int, nargs="+", default=[256, 512], metavar="S", help="S, or smallest and largest (256 512)"
    )
    parser.add_argument("--crop", type=int, default=224, help="the crop's side (default: 224)")
    parser.add_argument("--rounds", type=int, default=5, help="that are measured (default: 5)")
    parser.add_argument("--images", type=int, metavar="N", help="of a round, the same in each (default: up to 512)")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="contenders beside ours (default: all)")
    parser.add_argument("--no-tune", action="store_true", help="take default settings instead of each one's best")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all that is measured")
    parser.add_argument("--png", type=Path, metavar="FILE", help="draw a chart")
    parser.set_defaults(verb=_bench_input)


def _step_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Measures the time of a training step by part, and beside it a bare loop on torchrun that does the same. "
        "Settings that are not given are those of the job's stage; of a data set, a stage's defaults. Random weights "
        "are taken in any case, and a learning rate with which no net diverges."
    )
    parser.add_argument(
        "source", metavar="DATASET|JOB.yaml", help="a training set, or a job, one of whose stages it is"
    )
    parser.add_argument("--stage", help="of the job (default: its first)")
    parser.add_argument("--net", help="configuration (default of a data set: A)")
    parser.add_argument("--width", type=float, help="multiplies the widths of all hidden layers")
    parser.add_argument(
        "--scale", type=int, nargs="+", metavar="S", help="shorter side: fixed, or smallest and largest"
    )
    parser.add_argument("--input-size", type=int, metavar="PIXELS", help="side of the crops")
    parser.add_argument("--batch", type=int, help="images of a step, over all workers")
    parser.add_argument("--workers", type=int, help="processes on this machine (default: the job's, or 2)")
    parser.add_argument("--steps", type=int, default=200, help="that are timed, at least (default: 200)")
    parser.add_argument("--rounds", type=int, default=3, help="of ours and the bare loop in turns (default: 3)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all that is measured")
    parser.set_defaults(verb=_bench_step)


def _exchange_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Compares the exchange of a step's gradients by DDP and by factors: whether they are the same, seconds and "
        "bytes. On made-up images, on GPUs where there is one for each worker, else on the CPU."
    )
    parser.add_argument("--net", default="D", help="configuration (default: D)")
    parser.add_argument("--width", type=float, default=0.25, help="of all hidden layers (default: 0.25)")
    parser.add_argument("--input-size", type=int, default=64, metavar="PIXELS", help="side of images (default: 64)")
    parser.add_argument("--batch", type=int, default=32, help="images of a step, over all workers (default: 32)")
    parser.add_argument("--workers", type=int, nargs="+", default=[2, 4], help="one after the other (default: 2 4)")
    parser.add_argument("--rounds", type=int, default=10, help="of both in turns (default: 10)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all that is measured")
    parser.set_defaults(verb=_bench_exchange, scale=None)


def _tests_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Measures what a dense test of a net costs, and a multi-crop one of the same images, and beside the ratio of "
        "their times the one of their floating-point operations."
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="a net that was trained")
    parser.add_argument(
        "data", metavar="DATASET", help="a prepared data set of its classes; its first images are taken"
    )
    parser.add_argument("--scales", type=int, nargs="+", metavar="Q", help="(default: S - 32, S, S + 32 of the net)")
    parser.add_argument("--rounds", type=int, default=3, help="of both in turns (default: 3)")
    parser.add_argument("--images", type=int, metavar="N", help="of a round (default: up to 2048)")
    parser.add_argument("--threads", type=int, metavar="N", help="(default: all CPUs)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all that is measured")
    parser.set_defaults(verb=_bench_tests)


def _bench_input(options: argparse.Namespace) -> None:
    _check_folders(options.json, options.png)
    scale = scale_range(options.scale)
    from pipelines import bench_input, figures  # slow imports

    results = bench_input.run(
        options.data,
        scale,
        options.crop,
        options.rounds,
        options.images,
        options.only,
        not options.no_tune,
        log=_say,
    )
    print(figures.table(results, "images"))
    if options.json is not None:
        settings = {"data": options.data, "scale": scale, "crop": options.crop, "tuned": not options.no_tune}
        options.json.write_text(figures.record(results, settings))
    if options.png is not None:
        title = f"Training batches, S {' to '.join(map(str, options.scale))}, {figures.cpu_model()}"
        figures.chart(results, "images", title, options.png)


def _bench_step(options: argparse.Namespace) -> None:
    _check_folders(options.json)
    source = open_source(options.source, options.stage, options.scale)
    settings = _changed(source.settings, options)
    workers = options.workers or source.workers or 2
    from cluster import bench_step, step_figures  # slow imports
    from pipelines import figures

    found = bench_step.run(source.data, settings, workers, options.steps, options.rounds, _say)
    print(step_figures.table(found))
    if options.json is not None:
        content = {**figures.environment(), "data": source.data, **step_figures.record(found)}
        options.json.write_text(json.dumps(content, indent=1) + "\n")


def _bench_exchange(options: argparse.Namespace) -> None:
    _check_folders(options.json)
    scale = max(options.input_size, 224)  # nothing is scaled here
    settings = _changed(StageSettings(net="A", scale=(scale, scale), precision="float32"), options)
    from cluster import bench_exchange  # slow imports
    from pipelines import figures

    found = []
    for workers in options.workers:
        _say(f"{workers} workers")
        found.append(bench_exchange.run(settings, workers, options.rounds))
    print(bench_exchange.table(settings, found))
    if options.json is not None:
        content = {**figures.environment(), **bench_exchange.record(settings, found)}
        options.json.write_text(json.dumps(content, indent=1) + "\n")


def _bench_tests(options: argparse.Namespace) -> None:
    _check_folders(options.json)
    from cluster import bench_tests  # slow imports
    from pipelines import figures

    threads = options.threads or bench_tests.own_threads()
    found = bench_tests.run(
        options.checkpoint, options.data, options.scales, options.images, options.rounds, threads, _say
    )
    print(bench_tests.table(found))
    if options.json is not None:
        content = {**figures.environment(), "data": options.data, **bench_tests.record(found)}
        options.json.write_text(json.dumps(content, indent=1) + "\n")


def _changed(settings: StageSettings, options: argparse.Namespace) -> StageSettings:
    """With what was given on the command line. Raises SettingsError."""
    given = {name: getattr(options, name) for name in ("net", "width", "input_size", "batch")}
    changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if options.scale is not None:
        changes["scale"] = scale_range(options.scale)
    try:
        return StageSettings.model_validate({**settings.model_dump(by_alias=True), **changes})
    except ValidationError as error:
        first = error.errors()[0]
        where = "".join(f"{name}: " for name in first["loc"])
        raise SettingsError(f"{where}{first['msg'].removeprefix('Value error, ')}") from error


def _check_folders(*files: Path | None) -> None:
    """Raises SettingsError if a file that is asked for could not be written."""
    for file in files:
        if file is not None and not file.absolute().parent.is_dir():
            raise SettingsError(f"{file}: there is no folder {file.absolute().parent}")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
