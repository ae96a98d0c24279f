"""Whether a GPU decodes windows of images. Some versions of its decoder end the process on some GPUs instead, or fail
(NVIDIA/nvImageCodec#55, open in November 2026); so it is tried in a process that may come to such an end."""

import logging
import os
import subprocess
import sys
from functools import cache
from io import BytesIO

import numpy as np
from PIL import Image

from pipelines import graphs
from pipelines.augment import Windows
from pipelines.decoding import Decoding
from pipelines.errors import first_line
from pipelines.graphs import Encoded

_log = logging.getLogger(__name__)

_IMAGES, _HEIGHT, _WIDTH = 16, 375, 500
_SECONDS = 120.0  # a decoder that hangs is none


def safe(device_id: int | None) -> Decoding:
    """The default on this device, of windows if these are decoded there. `device_id`: the GPU, or None for the CPU."""
    return Decoding(regions=device_id is None or _decodes_windows(device_id))


@cache
def _decodes_windows(device_id: int) -> bool:
    """It is told of if not. Takes some seconds, once in a process."""
    path = os.pathsep.join(entry for entry in sys.path if entry)
    program = [sys.executable, "-m", __name__, str(device_id)]
    environment = {**os.environ, "PYTHONPATH": path}
    try:
        subprocess.run(program, env=environment, capture_output=True, timeout=_SECONDS, check=True)
    except (subprocess.SubprocessError, OSError) as error:
        _log.warning("this GPU's decoder fails on windows of images (%s): whole ones are decoded", first_line(error))
        return False
    return True


def main(device: str) -> int:
    """`device`: a GPU's number, or "cpu"."""
    draw = np.random.default_rng(0)
    starts = draw.integers(0, 150, (_IMAGES, 2))
    extents = draw.integers(100, 225, (_IMAGES, 2))
    windows = Windows(starts, extents, np.zeros((_IMAGES, 2)), extents.astype(float))
    refused = graphs.refused(_pictures(draw), windows, 2, None if device == "cpu" else int(device))
    for reason in refused.values():
        print(reason, file=sys.stderr)
    return len(refused)


def _pictures(draw: np.random.Generator) -> Encoded:
    """JPEGs of the usual kind, of half the colours."""
    found = []
    for _ in range(_IMAGES):
        coarse = draw.integers(0, 256, (12, 16, 3), dtype=np.uint8)
        out = BytesIO()
        Image.fromarray(coarse).resize((_WIDTH, _HEIGHT), Image.Resampling.BICUBIC).save(out, "JPEG", quality=90)
        found.append(np.frombuffer(out.getvalue(), np.uint8))
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
