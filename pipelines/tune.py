"""Which way of decoding is the fastest here: a few are tried on batches of the data set before training begins.

That depends on the GPU and its JPEG engines, on the cores and on the images, so nobody can know it beforehand, and it
takes a worker a few seconds to find out. Every worker does so for itself, at the same time as the others, so that each
has the load of its node's others as it will have in training, and none has to wait for a collective.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import cycle

import torch

from pipelines import graphs
from pipelines.decoding import Decoding
from pipelines.errors import first_line
from pipelines.loader import Sample, TrainingBatches

_log = logging.getLogger(__name__)

_IMAGES = 512  # different ones, of which batches are made again and again; assumption: enough to be like all others
_WARM, _TIMED = 3, 8  # batches, beside those that the graph makes ahead
_SECONDS = 8.0  # after which no other way is tried
_GAIN = 1.05  # how many times as fast has to be what is tried later, to be taken

# What takes more of the engines comes first, since it leaves more of the GPU to the net.
ON_GPU = (
    Decoding(hardware=0.9),
    Decoding(hardware=0.65),
    Decoding(hardware=0.0),
    Decoding(hardware=0.9, regions=False),
    Decoding(hardware=1.0, regions=False),
)


@dataclass(frozen=True)
class Trial:
    """`images_per_second` is 0 of one that failed."""

    decoding: Decoding
    images_per_second: float


@dataclass(frozen=True)
class Choice:
    """What was taken, and how it came to it; without a trial it is the default."""

    decoding: Decoding
    images_per_second: float
    seconds: float
    trials: tuple[Trial, ...]

    def __str__(self) -> str:
        found = f"{self.images_per_second:.0f} images a second alone" if self.images_per_second else "nothing tried"
        return f"{self.decoding} ({found}; {len(self.trials)} ways tried in {self.seconds:.0f} s)"


def near(best: Decoding) -> Sequence[Decoding]:
    """What may be faster still, for the memory of a batch more."""
    return [replace(best, depth=best.depth + 1)]


def choose(
    batches: TrainingBatches,
    first: Sequence[Decoding] = ON_GPU,
    around: Callable[[Decoding], Sequence[Decoding]] = near,
    seconds: float = _SECONDS,
) -> Choice:
    """The fastest for these batches, which it looks at the first of: one of `first`, or of what is `around` the best.

    A number of batches is made in each way; after `seconds` no other way is tried, but one is in any case. Raises
    DataError: the data cannot be read.
    """
    start = time.monotonic()
    samples = batches.samples(_IMAGES)
    trials: list[Trial] = []

    def attempt(decodings: Sequence[Decoding]) -> None:
        for decoding in decodings if samples else ():
            if not trials or time.monotonic() - start < seconds:
                trials.append(Trial(decoding, images_per_second(batches, samples, decoding)))

    attempt(first)
    if (best := _best(trials)) is not None:
        attempt(around(best.decoding))
    best = _best(trials) or Trial(Decoding(), 0.0)
    return Choice(best.decoding, best.images_per_second, time.monotonic() - start, tuple(trials))


def _best(trials: Sequence[Trial]) -> Trial | None:
    """None if all of them failed."""
    best = None
    for trial in trials:
        if trial.images_per_second > (_GAIN * best.images_per_second if best else 0.0):
            best = trial
    return best


def images_per_second(batches: TrainingBatches, samples: Sequence[Sample], decoding: Decoding) -> float:
    """0 if it fails: a GPU without memory, or without such a decoder; or an image is bad, which training replaces."""
    feeds = [batches.feed(step, images, decoding) for step, images in samples]
    turn = cycle(feeds)
    graph = batches.graph(lambda: next(turn), decoding)
    device = batches.device
    try:
        for _ in range(_WARM):
            graphs.run(graph, device)
        start = _now(device)
        made = sum(len(graphs.run(graph, device)) for _ in range(_TIMED))
        return made / (_now(device) - start)
    except RuntimeError as error:
        _log.info("%s: %s", decoding, first_line(error))
        return 0.0
    finally:
        graphs.stop(graph)


def _now(device: torch.device) -> float:
    """In seconds, once the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
