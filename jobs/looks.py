"""What tests look at: the files of posteriors that are there already, by their keys, and the sizes of images."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from hashlib import sha256

import numpy as np

from cluster.table import STRIDE
from cluster.views import View
from jobs.estimate import Sizes
from jobs.past import READERS
from jobs.store import reason
from pipelines import augment
from pipelines.errors import ClusterError
from pipelines.location import Location
from pipelines.shards import DataSet

# Raised whenever a test of the same net on the same images gives other posteriors than before.
_TEST_VERSION = 1
_SAMPLE_GROUPS = 32  # whose images' sizes stand for those of all


def key(seal: str, view: View, fingerprint: str) -> str:
    """Of the posteriors of the net in the file with this seal, on the data set with this fingerprint."""
    how = asdict(view)
    if view.precision == "float32":  # as it was when there was no other
        del how["precision"]
    content = [_TEST_VERSION, seal, fingerprint, how]
    return sha256(json.dumps(content).encode()).hexdigest()[:16]


def there(folder: Location) -> dict[str, str]:
    """The names of files of posteriors by their keys. Raises ClusterError."""
    try:
        names = [name for name in folder.files() if name.endswith(".parquet")]
    except OSError as error:
        raise ClusterError(f"storage: {folder} cannot be read: {reason(error)}") from error
    return {name.removesuffix(".parquet").rpartition("-")[2]: name for name in sorted(names)}


def sizes(data: DataSet, views: Iterable[View]) -> Sizes:
    """Of each dense view the (height, width) of images as it looks at them, and the share of all that have it; of a
    large data set by a sample, evenly spread. Raises DataError."""
    dense = [view for view in dict.fromkeys(views) if view.mode == "dense"]
    if not dense:
        return {}
    widths, heights = _stored_sizes(data)
    found: dict[View, Mapping[tuple[int, int], float]] = {}
    for view in dense:
        seen = augment.dense_windows(augment.rescaled(widths, heights, view.scale), STRIDE)
        counts = Counter(map(tuple, seen.tolist()))
        found[view] = {(height, width): count / len(seen) for (height, width), count in counts.items()}
    return found


def _stored_sizes(data: DataSet) -> tuple[augment.Ints, augment.Ints]:
    starts = data.group_starts
    groups = np.unique(np.linspace(0, len(starts) - 2, _SAMPLE_GROUPS).round().astype(int)).tolist()
    with ThreadPoolExecutor(READERS) as pool:
        parts = list(pool.map(lambda group: data.read_sizes(int(starts[group]), int(starts[group + 1])), groups))
    return np.concatenate([widths for widths, _ in parts]), np.concatenate([heights for _, heights in parts])
