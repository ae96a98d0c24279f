"""`verydeep evaluate`: the paper's tests of nets out of files, each by itself and all of them fused."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from cluster.settings import ClusterSettings
from cluster.views import Scales
from pipelines.errors import DataError, SettingsError
from pipelines.location import Location, public
from pipelines.shards import DataSet

if TYPE_CHECKING:
    from cluster.track import Tracker


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Tests nets on a data set: dense, on 5 x 5 crops, or both averaged; each net by itself, and several fused. "
        "Posteriors are kept, so that a second call with other scales or nets computes only what is new."
    )
    parser.add_argument("checkpoints", nargs="+", metavar="CHECKPOINT", help="a file, or the folder of a job's stage")
    parser.add_argument("--data", required=True, metavar="DATASET")
    parser.add_argument(
        "--mode", nargs="+", default=["dense"], choices=("dense", "multi-crop", "both"), help="(default: dense)"
    )
    parser.add_argument(
        "--scales",
        nargs="+",
        default=["single"],
        metavar="Q",
        help="shorter sides in pixels, whose posteriors are averaged; single (default): the net's own; several: the "
        "three of the paper",
    )
    parser.add_argument(
        "--mirror", action=argparse.BooleanOptionalAction, help="mirror images, too (default: as in training)"
    )
    parser.add_argument(
        "--precision",
        default="float32",
        choices=("float32", "tf32", "bf16"),
        help="of the net's products on GPUs: tf32 and bf16 are faster (default: float32)",
    )
    parser.add_argument("--workers", type=int, help="(default: one for each GPU, or one)")
    parser.add_argument("--cpus-per-worker", type=int, help="(default: all that there are, shared evenly)")
    parser.add_argument(
        "--max-unreadable", type=float, default=0.01, metavar="SHARE", help="of images; more end it (default: 0.01)"
    )
    parser.add_argument(
        "--storage", default="~/verydeep", metavar="PLACE", help="a folder that all nodes share, or a URI (~/verydeep)"
    )
    parser.set_defaults(verb=evaluate)


def evaluate(options: argparse.Namespace) -> None:
    """Raises VerydeepError."""
    scales = _scales(options.scales)
    modes = tuple(dict.fromkeys(options.mode))
    for name in ("workers", "cpus_per_worker"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            raise SettingsError(f"--{name.replace('_', '-')} {getattr(options, name)}: has to be 1 or more")
    if not 0 <= options.max_unreadable <= 1:
        raise SettingsError(f"--max-unreadable {options.max_unreadable}: has to be a share, from 0 to 1")
    data = DataSet.open(options.data)
    from cluster import interrupt, launch, place  # slow imports: what is wrong is told of at once
    from jobs import publish, tables, testing
    from jobs.checkpoints import check, models
    from jobs.store import TESTS
    from jobs.testing import Trial
    from jobs.watch import Watch

    nets = models(options.checkpoints)
    for model in nets:
        check(model, data, scales)
    tests = [Trial("each", nets, modes, scales, options.mirror, precision=options.precision)]
    if len(nets) > 1:
        tests.append(replace(tests[0], name="fused", fuse=True))
    root = _root(options.storage) / "evaluations" / f"{_name(data)}-{data.manifest.fingerprint[:8]}"
    watch = Watch()
    watch.say(f"Ray: {launch.connect()}")
    try:
        shape = place.shape(_cluster(options, sum(node.gpus for node in place.nodes())))
        with interrupt.noted() as stop, _tracked(options, data, root) as (tracker, run):
            found = testing.carry_out(tests, data, root / TESTS, shape, watch, options.max_unreadable, stop)
            publish.publish(found, root, tracker, run)
    finally:
        watch.done()
        launch.disconnect()
    watch.say(f"\n{tables.text(tables.tables(found))}\n")
    watch.say(f"Tables and posteriors: {root}")


@contextmanager
def _tracked(options: argparse.Namespace, data: DataSet, root: Location) -> Iterator[tuple["Tracker", str]]:
    """A run of its own in MLflow."""
    from cluster.submission import job_ids
    from cluster.track import Tracker, default_uri
    from jobs import origin, tracked
    from jobs.store import SPOOL

    tracker = Tracker(default_uri(_root(options.storage)), "evaluations", root / SPOOL)
    try:
        run = tracker.open_run(_name(data), None, origin.tags(None) | job_ids(), None)
        tracked.data_set(tracker, run, data, "validation")
        told = ("checkpoints", "data", "mode", "scales", "mirror", "precision")
        tracker.parameters(run, {key: public(str(getattr(options, key))) for key in told})
        with tracker.ending(run):
            yield tracker, run
    finally:
        tracker.close()


def _scales(given: list[str]) -> Scales:
    """Raises SettingsError."""
    if given == ["single"]:
        return "single"
    if given == ["several"]:
        return "several"
    if all(text.isdecimal() and int(text) for text in given):
        return [int(text) for text in given]
    raise SettingsError(f"--scales {' '.join(given)}: expected single, several, or Q in pixels, such as 256 384 512")


def _root(storage: str) -> Location:
    try:
        return Location.of(storage)
    except DataError as error:
        raise SettingsError(f"--storage: {error}") from error


def _name(data: DataSet) -> str:
    """Of its folder and the one above, which says more than `val`."""
    return "-".join(PurePosixPath(data.location.path).parts[-2:]).strip("/-") or "data"


def _cluster(options: argparse.Namespace, gpus: int) -> ClusterSettings:
    workers = options.workers or max(1, gpus)
    return ClusterSettings(workers=(workers, workers), cpus_per_worker=options.cpus_per_worker or "auto")
