"""Features of images, for use of a net on other data (paper, appendix B): what its last FC layer is given.

The net is applied densely to the whole image at each scale Q; the activations of the penultimate layer, behind its
ReLU, are averaged over space, over the image and its mirror image, and over scales, which can be stacked instead. The
file:

    name      string                    the image's, as in the data set
    label     int32                     index into the data set's classes
    features  fixed_size_list<float>    4096 of a net of full width; stacked, as many for each Q, in ascending order

Rows lie in the data set's order. The file's metadata has, as JSON under the key `verydeep`, what the features were made
from, and the numbers of rows that a plain picture stood in for.
"""

import json
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from itertools import chain
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from cluster import nets
from cluster.nets import Label
from cluster.passes import PASS_PIXELS, Passes, Scores
from cluster.records import Log, name_unreadable
from cluster.stopwatch import Stopwatch
from cluster.table import STRIDE
from cluster.vgg import VGG
from cluster.world import World
from pipelines.errors import SettingsError, TrainingError, first_line
from pipelines.loader import WholeBatches
from pipelines.location import Location, public
from pipelines.schema import Manifest
from pipelines.shards import DataSet

Pool = Literal["average", "stack"]
Floats = NDArray[np.float32]

PIECE_ROWS = 1024  # what a worker makes at a time, and a row group of the file: 16 MB, stacked as much for each scale
_VERSION = 1
_KEY = "verydeep"
_SUFFIX = ".parquet"


@dataclass(frozen=True)
class Extraction:
    """One net, applied to one data set, of whatever classes.

    `checkpoint`: whole path or URI. `scales`: Q in pixels, ascending. `pool`: what is done with their features.
    `normalise`: the features of an image, all together, to a Euclidean length of 1.
    """

    checkpoint: str
    data: str
    scales: tuple[int, ...]
    pool: Pool = "average"
    mirror: bool = True
    normalise: bool = True


@dataclass(frozen=True)
class Described:
    """Neighbouring images of the data set, in order. `unreadable`: rows of those that a plain picture stood in for."""

    names: list[str]
    labels: NDArray[np.int64]  # (n,)
    features: Floats  # (n, width)
    unreadable: tuple[int, ...]


@dataclass(frozen=True)
class Written:
    """What a file has: images, features of each, and images that a plain picture stood in for."""

    images: int
    width: int
    unreadable: int


def check(task: Extraction, net: Label, out: Location) -> None:
    """Raises SettingsError if a scale is too small for the net, or `out` cannot be such a file."""
    smallest, least = min(task.scales), net.card.input_size
    if smallest < least:
        raise SettingsError(f"scale {smallest} is too small for {task.checkpoint}, which takes {least} pixels at least")
    if not out.name.endswith(_SUFFIX):
        raise SettingsError(f"{out}: the name has to end in {_SUFFIX}")
    if out.disk is not None and out.disk.is_dir():
        raise SettingsError(f"{out}: is a folder")


class Extractor:
    """A net on one worker, for one piece of the data set after the other.

    `log` is told of images done (`tested`, each once a scale), and of those that cannot be decoded.

    Raises CheckpointError or DataError if the net or the data set cannot be read.
    """

    def __init__(self, task: Extraction, world: World, log: Log) -> None:
        trained = nets.load(Location.of(task.checkpoint))
        self._task, self._card, self._world, self._log = task, trained.card, world, log
        self._data = DataSet.open(task.data)
        net = trained.build().to(device=world.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._passes = Passes(penultimate(net), Stopwatch(world.device, parts=("net",)), PASS_PIXELS[world.device.type])

    def __call__(self, rows: range) -> Described:
        """`rows`: some, without gaps."""
        parts = [self._at(scale, rows) for scale in self._task.scales]
        features = pooled([part.features for part in parts], self._task.pool, self._task.normalise)
        unreadable = sorted({row for part in parts for row in part.unreadable})
        return replace(parts[0], features=features, unreadable=tuple(unreadable))

    def _at(self, scale: int, rows: range) -> Described:
        places, labels, names, found = list[Tensor](), list[Tensor](), list[str](), list[Tensor]()
        unreadable = list[int]()
        with closing(self._wholes(scale, rows)) as batches, torch.inference_mode():
            for batch in batches:
                found.append(self._features(batch.images))
                places.append(batch.rows)
                labels.append(batch.labels.cpu())
                names += batch.names
                unreadable += [image.row for image in batch.replaced]
                name_unreadable(batch, self._log)
                self._log({"kind": "tested", "images": len(batch.rows)})
        ordered, order = torch.cat(places).sort()
        assert ordered.tolist() == list(rows), "each image comes once"
        return Described(
            [names[i] for i in order.tolist()],
            torch.cat(labels)[order].numpy(),
            torch.cat(found)[order].numpy(),
            tuple(unreadable),
        )

    def _wholes(self, scale: int, rows: range) -> WholeBatches:
        return WholeBatches(
            self._data, scale, self._card.mean_rgb, self._card.pixel_std, STRIDE, self._world.seat, rows
        )

    def _features(self, images: Tensor) -> Tensor:
        """(n, C) of (n, 3, H, W), on the CPU."""
        both = torch.cat([images, images.flip(3)]) if self._task.mirror else images
        found = self._passes(both)
        return found.view(-1, len(images), found.shape[1]).mean(dim=0).cpu()


def penultimate(net: VGG) -> Scores:
    """Of images of at least the net's input size: what FC-3 is given, the mean over all places."""
    dense = net.dense()
    return lambda images: dense.penultimate(images).mean(dim=(1, 2))


def pooled(by_scale: Sequence[Floats], pool: Pool, normalise: bool) -> Floats:
    """(n, C), or stacked (n, C times scales), of one (n, C) for each scale. What is all zeros stays so."""
    features = np.concatenate(by_scale, axis=1) if pool == "stack" else np.mean(by_scale, axis=0)
    if normalise:
        features /= np.maximum(np.linalg.norm(features, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    return features


def notes(task: Extraction, net: Label, manifest: Manifest) -> dict[str, Any]:
    """For the file's metadata."""
    made = {key: value for key, value in asdict(task).items() if key != "data"}
    return {
        "version": _VERSION,
        **made,
        "checkpoint": public(task.checkpoint),
        "seal": net.seal,
        "card": asdict(net.card),
        "data": manifest.fingerprint,
        "classes": manifest.classes,
    }


def write(out: Location, pieces: Iterable[Described], about: dict[str, Any]) -> Written:
    """The file is there whole or not at all. It grows in a place of its own as pieces come, the first of which is asked
    for when it is known that it can be written. Raises TrainingError if it cannot be.
    """
    try:
        with out.filled() as file:
            return _fill(str(file), pieces, about)
    except OSError as error:
        raise TrainingError(f"{out}: cannot be written: {error.strerror or first_line(error)}") from error


def _fill(file: str, pieces: Iterable[Described], about: dict[str, Any]) -> Written:
    todo = iter(pieces)
    first = next(todo)
    rows, unreadable = 0, list[int]()
    with pq.ParquetWriter(file, _table(first).schema, compression="zstd", use_dictionary=["name"]) as writer:
        for piece in chain([first], todo):
            writer.write_table(_table(piece))
            rows += len(piece.names)
            unreadable += piece.unreadable
        writer.add_key_value_metadata({_KEY: json.dumps({**about, "unreadable": unreadable})})
    return Written(rows, first.features.shape[1], len(unreadable))


def _table(piece: Described) -> pa.Table:
    flat = pa.array(np.ascontiguousarray(piece.features).reshape(-1))
    return pa.table(
        {
            "name": pa.array(piece.names, pa.string()),
            "label": pa.array(piece.labels, pa.int32()),
            "features": pa.FixedSizeListArray.from_arrays(flat, piece.features.shape[1]),
        }
    )
