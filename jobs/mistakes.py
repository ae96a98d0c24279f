"""A net's most confident mistakes, with the images themselves out of the data set."""

import base64
import io
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

from cluster.posteriors import Posteriors
from jobs.diagnosis import Ints, Verdicts
from pipelines import audit
from pipelines.shards import DataSet

_SIDE = 200  # pixels, of the longer side
_QUALITY = 80  # of JPEG: about 8 kB each


@dataclass(frozen=True)
class Mistake:
    """`picture`: a small JPEG file, or None if the image cannot be decoded. `right`: the right class's probability."""

    name: str
    true: str
    predicted: str
    confidence: float
    right: float
    picture: bytes | None

    @property
    def uri(self) -> str | None:
        return None if self.picture is None else f"data:image/jpeg;base64,{base64.b64encode(self.picture).decode()}"


def of_rows(rows: Ints, posteriors: Posteriors, found: Verdicts, data: DataSet) -> list[Mistake]:
    """`data` is what the net was tested on. Raises DataError."""
    pictures = dict(_pictures(rows, data))
    classes, scores = posteriors.classes, posteriors.scores
    return [
        Mistake(
            posteriors.names[row],
            classes[found.labels[row]],
            classes[found.predicted[row]],
            float(found.confidence[row]),
            float(scores[row, found.labels[row]]),
            pictures[row],
        )
        for row in rows.tolist()
    ]


def _pictures(rows: Ints, data: DataSet) -> Iterator[tuple[int, bytes | None]]:
    """One row group is held at a time."""
    groups = data.groups_of(rows)
    for number in np.unique(groups).tolist():
        group = data.read_group(number)
        for row in rows[groups == number].tolist():
            yield row, _small(bytes(group.encoded[row - data.group_starts[number]]))


def _small(encoded: bytes) -> bytes | None:
    """Tiny images are magnified in whole steps."""
    out = io.BytesIO()
    try:
        with audit.opened(encoded) as file:
            longer = max(file.size)
            scale = _SIDE / longer if longer > _SIDE else max(1, _SIDE // longer)
            size = max(1, round(file.width * scale)), max(1, round(file.height * scale))
            file.draft("RGB", size)  # JPEG files are decoded at a fraction of their size
            how = Image.Resampling.BILINEAR if scale < 1 else Image.Resampling.NEAREST
            file.convert("RGB").resize(size, how).save(out, "JPEG", quality=_QUALITY)
    except audit.Refusal:
        return None
    return out.getvalue()
