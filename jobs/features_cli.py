"""`verydeep features`: its arguments, and the verb carried out."""

import argparse
from collections.abc import Sequence

from jobs.checkpoints import net_file
from jobs.watch import Watch
from pipelines.errors import SettingsError
from pipelines.location import Location
from pipelines.shards import DataSet


def add_arguments(parser: argparse.ArgumentParser) -> None:
    flag = argparse.BooleanOptionalAction
    parser.description = (
        "Writes for each image of a data set, of whatever classes, what a net's last layer is given: 4096 numbers that "
        "a linear classifier can be trained on (paper, appendix B). The net is applied to the whole image."
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="a file of a net, or the folder of a job's stage")
    parser.add_argument("data", metavar="DATASET", help="a prepared data set")
    parser.add_argument("out", metavar="OUT.parquet", help="a file, also s3://... or gs://...; replaced if it is there")
    parser.add_argument(
        "--scales",
        type=int,
        nargs="+",
        metavar="Q",
        help="the image's shorter side in pixels; several are averaged (default: S - 32, S and S + 32, or the ends and "
        "the middle of a range of S, with which the net was trained)",
    )
    parser.add_argument(
        "--pool",
        choices=("average", "stack"),
        default="average",
        help="scales: average them, or put their features side by side (default: average)",
    )
    parser.add_argument("--mirror", action=flag, help="average with the mirror image (default: if it was trained so)")
    parser.add_argument("--normalise", action=flag, default=True, help="to a length of 1 (default: yes)")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="of the Ray cluster (default: 1)")
    parser.set_defaults(verb=_features)


def _features(options: argparse.Namespace) -> None:
    _check(options.scales, options.workers)
    from cluster import features, interrupt, launch, nets, place, views  # slow imports
    from cluster.settings import ClusterSettings

    checkpoint, out = net_file(options.checkpoint), Location.of(options.out)
    net, data = nets.look(checkpoint), DataSet.open(options.data)
    scales = views.scales_of(options.scales or "several", net.card.scale, net.card.input_size)
    mirror = net.card.flip if options.mirror is None else options.mirror
    task = features.Extraction(
        checkpoint.absolute, data.location.absolute, scales, options.pool, mirror, options.normalise
    )
    features.check(task, net, out)
    watch = Watch()
    try:
        cluster = launch.connect()
        shape = place.shape(ClusterSettings(workers=(options.workers, options.workers)))
        watch.say(f"Ray: {cluster}; {shape}")
        watch.begin("features", data.rows * len(scales))
        with interrupt.noted() as stop:
            written = launch.run_features(task, out, shape, watch.listen, stop)
    finally:
        watch.done()
        launch.disconnect()
    unreadable = f", {written.unreadable} of them cannot be decoded" if written.unreadable else ""
    each = f"{written.width} features of each, Q {' '.join(map(str, scales))}"
    watch.say(f"{out}: {written.images} images{unreadable}; {each}")


def _check(scales: Sequence[int] | None, workers: int) -> None:
    """Raises SettingsError."""
    if scales is not None and min(scales) < 1:
        raise SettingsError(f"--scales {min(scales)}: has to be 1 or more")
    if workers < 1:
        raise SettingsError(f"--workers {workers}: has to be 1 or more")
