"""Images' verdicts, before they enter a data set: can they be trained on, how large are they, what are their colours?

A file is decoded twice. Pillow tells damaged files from whole ones as far as its decoders can (of JPEG files cut short
every one, of single bytes changed inside a scan only those that break the stream; PNG has checksums of its own). DALI's
decoder, which feeds the nets, then has to take it too, since one image that it refuses costs a whole batch in training;
sizes and colours are those of its pixels.
"""

import io
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow
from PIL import UnidentifiedImageError

from pipelines.errors import first_line

# Pillow's names of the formats that are shown to DALI's decoder, which has the last word on each file.
FORMATS = (
    "JPEG",
    "PNG",
    "BMP",
    "WEBP",
    "TIFF",
    "PPM",
    "JPEG2000",
    "MPO",
)  # MPO: JPEG of several pictures, as many cameras write it

# Pillow's modes whose pixels DALI's decoder gives otherwise than Pillow, by 12 grey levels on average and more.
_MODES = {"F", "LAB", "PA"}
_FORMAT_MODES = {("TIFF", "LA")}

_DECODED_PIXELS = 24 << 20  # that a thread decodes at once by DALI: 72 MiB
_SAYS_NOTHING = re.compile(r"failure: '#\d+'")
_CHUNK_PIXELS = 1 << 14  # whose colours are summed at a time: they fit a core's cache


class Refusal(Exception):
    """Why a file is not taken."""


@dataclass(frozen=True)
class Colours:
    """Of one image's RGB, in grey levels."""

    mean: NDArray[np.float64]  # (3,)
    second_moment: NDArray[np.float64]  # (3, 3), the mean of x x^T


@dataclass(frozen=True)
class Image:
    """A source's image. `reason` it is refused for, or None; width and height, in pixels as stored, once examined."""

    encoded: bytes
    label: int
    name: str
    reason: str | None = None
    width: int = 0
    height: int = 0
    colours: Colours | None = None

    def refused(self, reason: str) -> "Image":
        return replace(self, encoded=b"", reason=reason)  # its bytes are of no more use


def examine(images: Sequence[Image], colours: bool) -> list[Image]:
    """The images with their verdicts; `colours`: with the colours of the good ones."""
    judged = [_by_pillow(image) for image in images]
    good = [i for i, image in enumerate(judged) if image.reason is None]
    for part in _parts(judged, good):
        for i, decoded in zip(part, _decoded([judged[i].encoded for i in part], colours), strict=True):
            if isinstance(decoded, str):
                judged[i] = judged[i].refused(_untaken(decoded))
            else:
                judged[i] = replace(judged[i], width=decoded[0], height=decoded[1], colours=decoded[2])
    return judged


T = TypeVar("T")
R = TypeVar("R")


def in_order(function: Callable[[T], R], items: Iterable[T], threads: int) -> Iterator[R]:
    """`function` of each item, in the items' order, on several threads; a bounded number is under way."""
    with ThreadPoolExecutor(threads) as pool:
        under_way: deque[Future[R]] = deque()
        try:
            for item in items:
                under_way.append(pool.submit(function, item))
                if len(under_way) > 2 * threads:
                    yield under_way.popleft().result()
            while under_way:
                yield under_way.popleft().result()
        finally:
            for future in under_way:
                future.cancel()


@contextmanager
def opened(encoded: bytes) -> Iterator[Pillow.Image]:
    """The file as Pillow sees it, not decoded yet. Raises Refusal, also for what is raised when it is decoded."""
    if not encoded:
        raise Refusal("the file is empty")
    try:
        with Pillow.open(io.BytesIO(encoded)) as image:
            if image.format not in FORMATS:
                raise Refusal(f"{image.format} is not among the formats {', '.join(FORMATS)}")
            if image.mode in _MODES or (image.format, image.mode) in _FORMAT_MODES:
                raise Refusal(f"{image.format} of mode {image.mode}, which is not decoded as meant: save it as RGB")
            yield image
    except Refusal:
        raise
    except UnidentifiedImageError as error:
        raise Refusal("not an image") from error
    except Exception as error:  # Pillow's decoders raise whatever their format's code raises; the reason is kept
        raise Refusal(f"cannot be decoded: {first_line(error)}") from error


def _by_pillow(image: Image) -> Image:
    if image.reason is not None:
        return image
    try:
        with opened(image.encoded) as file:
            file.load()
            return replace(image, width=file.width, height=file.height)
    except Refusal as refusal:
        return image.refused(str(refusal))


def _parts(images: Sequence[Image], good: Sequence[int]) -> Iterator[list[int]]:
    """`good` in parts that a thread can decode at once: bounded in pixels, or one larger image."""
    part: list[int] = []
    pixels = 0
    for i in good:
        size = images[i].width * images[i].height
        if part and pixels + size > _DECODED_PIXELS:
            yield part
            part, pixels = [], 0
        part.append(i)
        pixels += size
    if part:
        yield part


Decoded = tuple[int, int, Colours | None]  # width, height


def _decoded(encoded: Sequence[bytes], colours: bool) -> list[Decoded | str]:
    """By DALI's CPU decoder; of an image that it does not take, its words."""
    from pipelines import graphs  # slow import

    try:
        pixels = graphs.pixels([np.frombuffer(image, np.uint8) for image in encoded])
    except graphs.Refused as refusal:
        if len(encoded) == 1:
            return [str(refusal)]
        half = len(encoded) // 2
        return _decoded(encoded[:half], colours) + _decoded(encoded[half:], colours)
    return [(p.shape[1], p.shape[0], _colours(p) if colours else None) for p in pixels]


def _untaken(words: str) -> str:
    """Why a file is refused that Pillow takes, but not DALI; with the latter's words, if they tell anything."""
    said = "" if _SAYS_NOTHING.search(words) or not words else f" (DALI: {words})"
    return f"whole, but of a kind that training's decoder does not read: save it as JPEG or PNG{said}"


def _colours(pixels: NDArray[np.uint8]) -> Colours:
    """The sums are of whole numbers below 2**53, hence exact, in whatever order they are made."""
    flat = pixels.reshape(-1, 3)
    total, products = np.zeros(3), np.zeros((3, 3))
    for start in range(0, len(flat), _CHUNK_PIXELS):
        planes = np.ascontiguousarray(flat[start : start + _CHUNK_PIXELS].T, dtype=np.float64)
        total += planes.sum(axis=1)
        products += planes @ planes.T
    return Colours(total / len(flat), products / len(flat))
