"""The command line: a verb and a file. Settings live in the job file, not in flags."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from jobs import schema
from pipelines import sources
from pipelines.errors import DataError, SettingsError, VerydeepError
from pipelines.prepare import REPORT, prepare
from pipelines.sources import Source


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0 done, 1 failed, 2 wrong use, 130 interrupted."""
    options = _parser().parse_args(arguments)
    try:
        options.verb(options)
    except VerydeepError as error:
        for line in str(error).splitlines():
            print(f"verydeep: {line}", file=sys.stderr)
        return error.exit_status
    except OSError as error:  # a disk that is full, a folder that may not be read
        print(f"verydeep: {error.filename or ''}: {error.strerror or error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        goes_on = "; the same command goes on after the last whole epoch" if options.verb is _run else ""
        print(f"verydeep: interrupted{goes_on}", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="verydeep", description="Trains very deep convolutional networks on a cluster."
    )
    verbs = parser.add_subparsers(required=True, metavar="COMMAND")

    run = verbs.add_parser("run", help="run a job's chain of stages; run again, it goes on where it stopped")
    _job_arguments(run)
    run.set_defaults(verb=_run)

    plan = verbs.add_parser("plan", help="show what would run, and why")
    _job_arguments(plan)
    plan.set_defaults(verb=_plan)

    prep = verbs.add_parser("prepare", help="make a data set of images").add_subparsers(required=True, metavar="SOURCE")
    folder = prep.add_parser("folder", help="from folders of images, one for each class")
    folder.add_argument("source", metavar="SRC", help="a folder with one folder of images for each class")
    folder.add_argument("dest", metavar="DEST", type=Path, help="becomes DEST/train, and DEST/val with --val")
    folder.add_argument("--val", metavar="FOLDER|FRACTION", help="a second such folder, or a share of each class")
    folder.set_defaults(verb=_prepare_folder)
    digits = prep.add_parser("digits", help="from scikit-learn's handwritten digits")
    digits.add_argument("dest", metavar="DEST", type=Path, help="becomes DEST/train and DEST/val")
    digits.set_defaults(verb=_prepare_digits)
    for each in (folder, digits):
        each.add_argument("--seed", type=int, default=0, help="of the order, and of the split (default: 0)")
        each.add_argument("--overwrite", action="store_true", help="replace what is there")

    bench = verbs.add_parser("bench", help="measure parts beside what one would otherwise take")
    _input_arguments(bench.add_subparsers(required=True, metavar="PART").add_parser("input", help="making of batches"))
    return parser


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


def _job_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("job", metavar="JOB.yaml")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="changes",
        metavar="KEY=VALUE",
        help="override a setting, such as stages.e.epochs=10",
    )
    parser.add_argument("--only", metavar="STAGE", help="run this stage alone")
    parser.add_argument("--fresh", action="store_true", help="run stages again though they are done")


def _run(options: argparse.Namespace) -> None:
    job = schema.load(options.job, options.changes)
    from jobs import check, run  # slow imports: a wrong job file is told of at once

    run.run(check.check(job), options.only, options.fresh)


def _plan(options: argparse.Namespace) -> None:
    job = schema.load(options.job, options.changes)
    from jobs import check, run

    checked = check.check(job)
    for decision in run.decisions(checked, options.only, options.fresh):
        stage = job.stages[decision.stage]
        steps = -(-checked.training.rows // stage.batch) * stage.epochs
        start = stage.init.source or "random weights"
        print(
            f"{decision.stage:<12} net {stage.net:<6} S {run.scale_text(stage.scale):<10}  "
            f"at most {stage.epochs} epochs, {steps} steps of {stage.batch}  from {start}: "
            f"{decision.action.value}, {decision.reason}"
        )


def _bench_input(options: argparse.Namespace) -> None:
    for file in (options.json, options.png):
        if file is not None and not file.absolute().parent.is_dir():
            raise SettingsError(f"{file}: there is no folder {file.absolute().parent}")
    if len(options.scale) > 2:
        raise SettingsError("--scale takes one S, or the smallest and the largest")
    from pipelines import bench_input, figures  # slow imports

    scale = (options.scale[0], options.scale[-1])
    results = bench_input.run(
        options.data,
        scale,
        options.crop,
        options.rounds,
        options.images,
        options.only,
        not options.no_tune,
        log=lambda line: print(line, file=sys.stderr, flush=True),
    )
    print(figures.table(results, "images"))
    if options.json is not None:
        settings = {"data": options.data, "scale": scale, "crop": options.crop, "tuned": not options.no_tune}
        options.json.write_text(figures.record(results, settings))
    if options.png is not None:
        title = f"Training batches, S {' to '.join(map(str, options.scale))}, {figures.cpu_model()}"
        figures.chart(results, "images", title, options.png)


def _prepare_folder(options: argparse.Namespace) -> None:
    training = sources.folder(options.source)
    validation = None
    if options.val is not None:
        fraction = _fraction(options.val)
        if fraction is None:
            validation = sources.folder(options.val, training.classes)
        else:
            training, validation = sources.split(training, fraction, options.seed)
    _write(training, validation, options)


def _prepare_digits(options: argparse.Namespace) -> None:
    _write(*sources.digits_split(options.seed), options)


def _fraction(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _write(training: Source, validation: Source | None, options: argparse.Namespace) -> None:
    parts = {"train": training, **({"val": validation} if validation is not None else {})}
    for name in parts:
        if (options.dest / name).exists() and not options.overwrite:
            raise DataError(f"{options.dest / name}: is there already; choose another place or give --overwrite")
    if options.overwrite and validation is None and (options.dest / "val").exists():
        raise DataError(
            f"{options.dest / 'val'}: belongs to what is overwritten; give --val too, or remove it first: "
            "its images may be among the new training set's"
        )
    for name, source in parts.items():
        place = options.dest / name
        manifest = prepare(source, place, seed=options.seed, statistics=name == "train", overwrite=options.overwrite)
        left_out = f"; {manifest.rejected} files left out, see {place / REPORT}" if manifest.rejected else ""
        print(f"{place}: {manifest.rows} images of {len(manifest.classes)} classes{left_out}")
