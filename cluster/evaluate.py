"""The paper's tests (section 3.2): a net over the images of a data set, in one view or several.

Each view decodes and rescales for itself: dense ones lose up to 31 pixels at the images' borders so that many have one
shape, crops need them; and beside the net's time that of decoding is little.
"""

from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cluster import nets
from cluster.nets import Label
from cluster.passes import PASS_PIXELS, Passes, dense_scores, of_crops, of_wholes, plain_scores, precisely
from cluster.posteriors import Posteriors
from cluster.records import Log, name_unreadable
from cluster.stopwatch import Stopwatch
from cluster.table import STRIDE
from cluster.views import View
from cluster.world import World
from pipelines import probe
from pipelines.augment import Ints
from pipelines.errors import CheckpointError, DataError, SettingsError, TrainingError
from pipelines.loader import WholeBatches
from pipelines.location import Location
from pipelines.schema import Manifest
from pipelines.shards import DataSet
from pipelines.stream import Batch

PIECE_ROWS = 2048  # whose posteriors a worker holds at a time: 8 MB a view of 1000 classes
_NO_IMAGES = torch.empty(0)


@dataclass(frozen=True)
class Evaluation:
    """One net, tested on one data set, in each of the `views`.

    `checkpoint`: whole path or URI. `seal`: the one that the file had when it was chosen; another one is refused.
    """

    checkpoint: str
    data: str
    views: tuple[View, ...]
    seal: str | None = None


@dataclass(frozen=True)
class Looked:
    """What a net makes of n images, in the order in which they came.

    `unreadable`: rows of the data set. `seconds`: that it took in all; `net_seconds`: in the net, with mirroring, and
    waiting for its device.
    """

    rows: Ints  # (n,)
    labels: Ints  # (n,)
    names: list[str]
    scores: NDArray[np.float32]  # (n, classes)
    unreadable: frozenset[int]
    seconds: float
    net_seconds: float


def check(test: Evaluation, net: Label, manifest: Manifest) -> None:
    """Raises DataError if the data has other classes than the net, SettingsError if a scale is too small for it.

    Of a net whose file does not name its classes only their number has to be right.
    """
    ours, theirs = net.card.classes, manifest.classes
    if len(ours) != len(theirs):
        raise DataError(f"{test.data}: has {len(theirs)} classes, {test.checkpoint} was trained on {len(ours)}")
    different = [(a, b) for a, b in zip(ours, theirs, strict=True) if a != b and net.named]
    if different:
        a, b = different[0]
        raise DataError(f"{test.data}: has other classes than {test.checkpoint}, such as {b!r} in the place of {a!r}")
    smallest = min(view.scale for view in test.views)
    if smallest < net.card.input_size:
        raise SettingsError(
            f"scale {smallest} is too small for {test.checkpoint}, which takes {net.card.input_size} pixels at least"
        )


class Viewer:
    """A net on one worker, to be tested on one piece of the data set after the other.

    `log` is told of images done (`tested`, each once a view), and of those that cannot be decoded.

    Raises CheckpointError or DataError if the net or the data set cannot be read.
    """

    def __init__(self, test: Evaluation, world: World, log: Log) -> None:
        trained = nets.load(Location.of(test.checkpoint))
        if test.seal not in (None, trained.seal):
            raise CheckpointError(f"{test.checkpoint}: is another file than it was when this test began")
        self._card, self._views = trained.card, test.views
        self._data, self._world, self._log = DataSet.open(test.data), world, log
        net = trained.build().to(device=world.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._watch, most = Stopwatch(world.device, parts=("net",)), PASS_PIXELS[world.device.type]
        self._dense = Passes(dense_scores(net), self._watch, most)
        self._plain = Passes(plain_scores(net), self._watch, most)

    def __call__(self, rows: range) -> dict[View, Looked]:
        """`rows`: some, without gaps."""
        return {view: self.look(view, rows) for view in self._views}

    def look(self, view: View, rows: range) -> Looked:
        card, dense, seen = self._card, view.mode == "dense", list[Batch]()
        self._watch.read()
        seat, stride = self._world.seat, STRIDE if dense else 1
        decoding = probe.safe(seat.device_id)
        whole = WholeBatches(self._data, view.scale, card.mean_rgb, card.pixel_std, stride, seat, rows, decoding)
        with closing(whole), torch.inference_mode(), precisely(view.precision, self._world.device):
            images = self._told(whole, seen)
            if dense:
                found = of_wholes(self._dense, images, view.mirror)
            else:
                found = of_crops(self._plain, images, card.input_size, view.mirror)
            scores = torch.cat(list(found)).numpy()
        reading = self._watch.read()
        return Looked(
            torch.cat([batch.rows for batch in seen]).numpy(),
            torch.cat([batch.labels.cpu() for batch in seen]).numpy(),
            [name for batch in seen for name in batch.names],
            scores,
            frozenset(image.row for batch in seen for image in batch.replaced),
            reading.seconds,
            reading.parts["net"],
        )

    def _told(self, batches: Iterable[Batch], seen: list[Batch]) -> Iterator[Tensor]:
        """Their images; the rest of them is added to `seen`."""
        for batch in batches:
            name_unreadable(batch, self._log)
            seen.append(replace(batch, images=_NO_IMAGES))
            yield batch.images
            self._log({"kind": "tested", "images": len(batch.rows)})


def assembled(
    test: Evaluation, net: Label, manifest: Manifest, pieces: Iterable[dict[View, Looked]]
) -> dict[View, Posteriors]:
    """Raises TrainingError unless each image came once in each view."""
    n, classes = manifest.rows, manifest.classes
    scores = {view: np.zeros((n, len(classes)), np.float32) for view in test.views}
    times = {view: np.zeros(n, np.int64) for view in test.views}
    names, labels, unreadable = np.empty(n, np.object_), np.zeros(n, np.int64), set[int]()
    for piece in pieces:
        for view, looked in piece.items():
            np.add.at(times[view], looked.rows, 1)
            names[looked.rows], labels[looked.rows], scores[view][looked.rows] = (
                looked.names,
                looked.labels,
                looked.scores,
            )
            unreadable |= looked.unreadable
    once = min(int((count == 1).sum()) for count in times.values())
    if once != n:
        raise TrainingError(f"{test.data}: {once} of {n} images were tested once")
    origin = {"checkpoint": test.checkpoint, "seal": net.seal, "net": net.card.net}
    common = (classes, manifest.fingerprint, tuple(sorted(unreadable)))
    return {
        view: Posteriors(names.tolist(), labels, scores[view], *common, {**origin, **asdict(view)})
        for view in test.views
    }
