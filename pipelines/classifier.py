"""Encoded images to the names of classes, by a dense ONNX file (see `cluster/onnx_file.py`), as in the paper's dense
test: scores averaged over space, soft-max, and the mean with the mirror image's if the net was trained with flips.

It needs onnxruntime, Pillow, NumPy, and the file `still.py` beside it, which it therefore imports as a neighbour: both
are copied into the models that MLflow keeps (see `cluster/registry.py`), where this program is not installed.
"""

import base64
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from .still import Unreadable, prepare

_KEY = "verydeep"  # of the file's metadata


class Classifier:
    """`scale`: the images' shorter side, Q in the paper. Default: S of the net's training, or the middle of its range.
    `providers`: of onnxruntime; a GPU's round differently."""

    def __init__(
        self,
        file: str | os.PathLike[str],
        scale: int | None = None,
        providers: Sequence[str] = ("CPUExecutionProvider",),
    ) -> None:
        """Raises ValueError: no such file, not such a file, or a scale that is smaller than the net's input."""
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # half of the CPU time, of small nets
        try:
            self._session = onnxruntime.InferenceSession(os.fspath(file), options, providers=list(providers))
        except Exception as error:  # onnxruntime's errors have no other base
            raise ValueError(f"{file}: cannot be read: {str(error).splitlines()[0]}") from error
        notes = self._session.get_modelmeta().custom_metadata_map.get(_KEY)
        if notes is None or "map" not in [output.name for output in self._session.get_outputs()]:
            raise ValueError(f"{file}: not the dense form of a net that verydeep exported")
        self.notes: dict[str, Any] = json.loads(notes)
        card = self.notes["card"]
        self.classes: list[str] = card["classes"]
        self.scale = sum(card["scale"]) // 2 if scale is None else scale
        self.mirror: bool = card["flip"]
        if self.scale < card["input_size"]:
            raise ValueError(f"Q = {self.scale} is smaller than the net's input, {card['input_size']} pixels")

    def probabilities(self, encoded: bytes) -> NDArray[np.float64]:
        """(classes,), of an image as it comes: JPEG, PNG, or what else Pillow reads. Raises Unreadable."""
        image = prepare(encoded, self.scale, (0, 0, 0), 1, self.notes["stride"])  # the mean is subtracted in the graph
        views = np.stack([image, image[:, :, ::-1]]) if self.mirror else image[None]
        (scores,) = self._session.run(["scores"], {"images": views})
        powers = np.exp(scores.astype(np.float64) - scores.max(axis=1, keepdims=True))
        return (powers / powers.sum(axis=1, keepdims=True)).mean(axis=0)

    def best(self, encoded: bytes, count: int = 5) -> list[tuple[str, float]]:
        """The likeliest classes, at most `count` of them, the likeliest first. Raises Unreadable."""
        found = self.probabilities(encoded)
        return [(self.classes[i], float(found[i])) for i in np.argsort(-found, kind="stable")[:count]]


class Served:
    """What MLflow calls. An image that cannot be read has an error instead of classes, and does the others no harm."""

    def __init__(self, classifier: Classifier) -> None:
        self.classifier = classifier

    def predict(self, images: Any, params: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
        """For each row of `images`, a table of one column, {"best": [{"class", "probability"}, ...], "error"}.

        Of `params`, `count` is how many classes at most. Raises ValueError: none.
        """
        count = int((params or {}).get("count", 5))
        if count < 1:
            raise ValueError(f"count: {count} is not at least 1")
        return [self._answer(image, count) for image in images.iloc[:, 0]]

    def _answer(self, image: object, count: int) -> dict[str, Any]:
        try:
            found = self.classifier.best(_decoded(image), count)
        except Unreadable as error:
            return {"best": [], "error": str(error)}
        return {"best": [{"class": name, "probability": probability} for name, probability in found], "error": None}


def _load_pyfunc(file: str) -> Served:
    """MLflow looks for it under this name."""
    return Served(Classifier(file))


def _decoded(image: object) -> bytes:
    """JSON carries bytes as base64, which MLflow decodes in its `dataframe_...` formats, but not in `inputs` and
    `instances`. No image file consists of base64's 64 letters alone. Raises Unreadable."""
    if not isinstance(image, bytes | str):
        raise Unreadable(f"neither bytes nor base64, but {type(image).__name__}")
    try:
        return base64.b64decode(image, validate=True)
    except ValueError:
        return image if isinstance(image, bytes) else image.encode(errors="replace")
