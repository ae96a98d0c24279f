"""The command line: a verb and a file. Settings live in the job file, not in flags."""

import argparse
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jobs import (
    bench_cli,
    evaluate_cli,
    export_cli,
    features_cli,
    plan_cli,
    predict_cli,
    report_cli,
    run_cli,
    status_cli,
    stop_cli,
    sync_cli,
)
from jobs.source import open_source, scale_range
from pipelines import imagenet, parquet, sources
from pipelines.aside import check_apart
from pipelines.errors import DataError, SettingsError, VerydeepError
from pipelines.prepare import Options, existing, prepare
from pipelines.schema import REPORT, Manifest
from pipelines.shards import DataSet
from pipelines.shrink import Shrink
from pipelines.sources import Source


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0 done, 1 failed, 2 wrong use, 130 interrupted."""
    options = _parser().parse_args(arguments)
    try:
        status = options.verb(options)
    except VerydeepError as error:
        for line in str(error).splitlines():
            print(f"verydeep: {line}", file=sys.stderr)
        return error.exit_status
    except OSError as error:  # a disk that is full, a folder that may not be read
        print(f"verydeep: {error.filename or ''}: {error.strerror or error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as error:
        fresh = " without --fresh" if getattr(options, "fresh", False) else ""
        again = f"; the same command{fresh} goes on where this one stopped"
        goes_on = again if options.verb in (run_cli.run, _prepare) else ""
        why = f": {error}" if str(error) else ""
        print(f"verydeep: interrupted{why}{goes_on}", file=sys.stderr)
        return 130
    return status or 0


@cache
def _parser() -> argparse.ArgumentParser:
    """Made once for a process: tests that call `main` a thousand times would spend most of their time here."""
    parser = argparse.ArgumentParser(
        prog="verydeep", description="Trains very deep convolutional networks on a cluster."
    )
    verbs = parser.add_subparsers(required=True, metavar="COMMAND")

    show = verbs.add_parser(
        "show",
        help="draw a contact sheet of what the net is fed",
        description="Draws a contact sheet of what the net is fed. Settings that are not given are those of the job's "
        "stage; of a data set, a stage's defaults.",
    )
    _show_arguments(show)
    show.set_defaults(verb=_show)

    _prepare_arguments(verbs.add_parser("prepare", help="make a data set of images"))

    for module, verb, meaning in (
        (run_cli, "run", "run a job's chain of stages; run again, it goes on where it stopped"),
        (plan_cli, "plan", "show what would run, and why"),
        (status_cli, "status", "show how a job stands that runs, here or elsewhere"),
        (stop_cli, "stop", "end a job that runs elsewhere, with checkpoints"),
        (evaluate_cli, "evaluate", "test nets as the paper does"),
        (report_cli, "report", "make a job's page of tables and pictures anew"),
        (predict_cli, "predict", "classify images"),
        (export_cli, "export", "write a net for other programs"),
        (features_cli, "features", "write what a net makes of images, for other classifiers"),
        (sync_cli, "sync", "tell MLflow what it was not there to be told"),
        (bench_cli, "bench", "measure parts beside what one would otherwise take"),
    ):
        module.add_arguments(verbs.add_parser(verb, help=meaning))
    return parser


def _prepare_arguments(parser: argparse.ArgumentParser) -> None:
    prep = parser.add_subparsers(required=True, metavar="SOURCE")
    folder = prep.add_parser("folder", help="from folders of images, one for each class")
    folder.add_argument("source", metavar="SRC", help="a folder with one folder of images for each class")
    folder.add_argument("dest", metavar="DEST", help="becomes DEST/train, and DEST/val with --val")
    folder.add_argument("--val", metavar="FOLDER|FRACTION", help="a second such folder, or a share of each class")
    folder.set_defaults(verb=_prepare, make=_prepare_folder)
    archives = prep.add_parser("imagenet", help="from ImageNet's archives (ILSVRC 2012) as they are, without unpacking")
    archives.add_argument("--train", metavar="TAR", help="ILSVRC2012_img_train.tar; becomes DEST/train")
    archives.add_argument("--val", metavar="TAR", help="ILSVRC2012_img_val.tar; becomes DEST/val")
    archives.add_argument("--devkit", metavar="TAR", required=True, help="ILSVRC2012_devkit_t12.tar.gz")
    archives.add_argument("dest", metavar="DEST")
    archives.set_defaults(verb=_prepare, make=_prepare_imagenet)
    files = prep.add_parser("parquet", help="of a set of images of the Hugging Face hub, whose files stay as they are")
    files.add_argument("source", metavar="SRC", help="a folder with train-*.parquet, or data/train-*.parquet")
    files.add_argument("dest", metavar="DEST", nargs="?", help="becomes DEST/train and DEST/val (SRC/verydeep)")
    files.add_argument("--val", metavar="SPLIT", help="what becomes DEST/val: validation (default), or else test")
    files.add_argument("--label", metavar="COLUMN", help="the column of labels, if there are several")
    files.set_defaults(verb=_prepare, make=_prepare_parquet)
    digits = prep.add_parser("digits", help="from scikit-learn's handwritten digits")
    digits.add_argument("dest", metavar="DEST", help="becomes DEST/train and DEST/val")
    digits.set_defaults(verb=_prepare, make=_prepare_digits, shorter_side=None, quality=None)
    for each in (folder, archives):
        each.add_argument("--shorter-side", type=int, metavar="PIXELS", help="make larger images as small as this")
        each.add_argument(
            "--quality", type=int, help=f"of the JPEG files that these become (default: {Shrink.quality})"
        )
    for each in (folder, archives, digits):
        each.add_argument("--seed", type=int, default=0, help="of the order, and of a split (default: 0)")
    for each in (folder, archives, files, digits):
        each.add_argument("--overwrite", action="store_true", help="replace what is there")
        each.add_argument("--strict", action="store_true", help="fail on files that would be left out")


def _show_arguments(parser: argparse.ArgumentParser) -> None:
    flag = argparse.BooleanOptionalAction
    parser.add_argument("source", metavar="DATASET|JOB.yaml", help="a data set, or a job, one of whose stages is shown")
    parser.add_argument("--stage", help="of the job (default: its first)")
    parser.add_argument(
        "--scale", type=int, nargs="+", metavar="S", help="shorter side: fixed, or smallest and largest"
    )
    parser.add_argument("--crop", type=int, metavar="PIXELS", help="side of the crops")
    parser.add_argument("--flip", action=flag, help="mirror half of the images")
    parser.add_argument("--colour-shift", type=float, metavar="DEVIATION", help="of the RGB shift's normal variates")
    parser.add_argument("--seed", type=int, help="of order and augmentation")
    parser.add_argument("--epoch", type=int, default=1, help="whose first images are shown (default: 1)")
    parser.add_argument("--windows", action="store_true", help="show beside each crop the image that it comes from")
    parser.add_argument("--rows", type=int, default=6, help="of the sheet (default: 6)")
    parser.add_argument("--columns", type=int, help="of the sheet (default: 8, with --windows 4)")
    parser.add_argument("--output", type=Path, default=Path("show.png"), metavar="PNG", help="default: show.png")


def _show(options: argparse.Namespace) -> None:
    _check_png(options.output)
    source = open_source(options.source, options.stage, options.scale)
    stage = source.settings
    from pipelines import sheet, show  # slow imports

    def chosen(option: str, setting: str) -> Any:
        given = getattr(options, option)
        return getattr(stage, setting) if given is None else given

    data = DataSet.open(source.data)
    view = show.View(
        scale=stage.scale if options.scale is None else scale_range(options.scale),
        crop=chosen("crop", "input_size"),
        flip=chosen("flip", "flip"),
        colour_shift=chosen("colour_shift", "colour_shift"),
        seed=chosen("seed", "seed"),
        epoch=options.epoch,
        rows=options.rows,
        columns=(4 if options.windows else 8) if options.columns is None else options.columns,
        origins=options.windows,
    )
    cells = show.cells(data, view)
    sheet.draw(cells, view.columns, [*source.title, *show.header(data, view, len(cells))]).save(options.output)
    print(f"{options.output}: {len(cells)} of {data.rows} images")


def _check_png(path: Path) -> None:
    """Raises SettingsError if no picture can be written there."""
    if path.suffix.lower() != ".png":
        raise SettingsError(f"--output {path}: the name has to end in .png")
    if path.is_dir() or not path.parent.is_dir():
        raise SettingsError(
            f"--output {path}: " + ("is a folder" if path.is_dir() else f"there is no folder {path.parent}")
        )


def _prepare(options: argparse.Namespace) -> None:
    """From any source."""
    shown = {"source": "SRC", "dest": "DEST", "train": "--train", "val": "--val", "devkit": "--devkit"}
    for name, what in shown.items():
        if getattr(options, name, None) == "":
            raise DataError(f"{what}: is empty; this folder is named .")
    seed = getattr(options, "seed", 0)
    if not 0 <= seed < 1 << 64:
        raise DataError(f"--seed {seed}: has to be 0 to 2**64 - 1")
    if options.dest is not None:
        options.dest = Path(options.dest)
    options.make(options)


def _prepare_folder(options: argparse.Namespace) -> None:
    parts = {"train": sources.folder(options.source)}
    if options.val is None and options.overwrite and (options.dest / "val").exists():
        raise DataError(
            f"{options.dest / 'val'}: belongs to what is overwritten; give --val too, or remove it first: "
            "its images may be among the new training set's"
        )
    if options.val is not None:
        fraction = _fraction(options.val)
        if fraction is None:
            parts["val"] = sources.folder(options.val, parts["train"].classes)
        else:
            parts["train"], parts["val"] = sources.split(parts["train"], fraction, options.seed)
    _write(parts, options)


def _prepare_imagenet(options: argparse.Namespace) -> None:
    if options.train is None and options.val is None:
        raise DataError("give --train, --val or both")
    devkit = imagenet.devkit(options.devkit)
    parts = {}
    if options.val is not None:  # first, since it is read in a moment
        parts["val"] = imagenet.validation(options.val, devkit)
    if options.train is not None:
        parts["train"] = imagenet.training(options.train, devkit)
    _write(parts, options)


def _prepare_parquet(options: argparse.Namespace) -> None:
    parts = parquet.splits(options.source, options.val, options.label)
    dest = options.dest or Path(options.source, "verydeep")
    done = {
        name: parquet.existing(split, dest / name, name == "train", options.overwrite) for name, split in parts.items()
    }
    for place in (dest / name for name in parts):
        check_apart(place, [file for split in parts.values() for file in split.files])
    for name, split in parts.items():
        manifest = parquet.refer(
            split, dest / name, statistics=name == "train", strict=options.strict, overwrite=options.overwrite
        )
        _report(dest / name, manifest, done[name] is not None)


def _prepare_digits(options: argparse.Namespace) -> None:
    training, validation = sources.digits_split(options.seed)
    _write({"train": training, "val": validation}, options)


def _fraction(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _write(parts: dict[str, Source], options: argparse.Namespace) -> None:
    shrink = _shrink(options)
    made = {name: Options(seed=options.seed, statistics=name == "train", shrink=shrink) for name in parts}
    for place in (options.dest / name for name in parts):
        check_apart(place, [place for source in parts.values() for place in source.places])
    done = {  # whatever is in the way of one of them is told of before any is begun
        name: existing(source, options.dest / name, made[name], options.overwrite) for name, source in parts.items()
    }
    for name, source in parts.items():
        place = options.dest / name
        manifest = prepare(source, place, **vars(made[name]), strict=options.strict, overwrite=options.overwrite)
        _report(place, manifest, done[name] is not None)


def _shrink(options: argparse.Namespace) -> Shrink | None:
    quality = Shrink.quality if options.quality is None else options.quality
    if options.shorter_side is None and options.quality is not None:
        raise DataError(f"--quality {quality}: is of what --shorter-side makes smaller; give that too")
    if not 1 <= quality <= 100:
        raise DataError(f"--quality {quality}: has to be 1 to 100")
    if options.shorter_side is None:
        return None
    if options.shorter_side < 1:
        raise DataError(f"--shorter-side {options.shorter_side}: has to be 1 or more")
    return Shrink(options.shorter_side, quality)


def _report(place: Path, manifest: Manifest, done: bool) -> None:
    left_out = f"; {manifest.rejected} files left out, see {place / REPORT}" if manifest.rejected else ""
    already = "prepared already, " if done else ""
    print(f"{place}: {already}{manifest.rows} images of {len(manifest.classes)} classes{left_out}")
