"""Which way of decoding is the fastest here: a few are tried on batches of the data set before training begins.

That depends on the GPU and its JPEG engines, on the cores and on the images, so nobody can know it beforehand, and it
takes a worker a few seconds to find out. Every worker does so for itself, at the same time as the others, so that each
has the load of its node's others as it will have in training, and none has to wait for a collective.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import cycle

import torch

from pipelines import graphs
from pipelines.decoding import Decoding
from pipelines.loader import Sample, TrainingBatches

_IMAGES = 512  # different ones, of which batches are made again and again; assumption: enough to be like all others
_WARM, _TIMED = 3, 8  # batches, beside those that the graph makes ahead
_SECONDS = 8.0  # after which no other way is tried
_SAFE = Decoding()
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
    """`images_per_second` is 0 of one that failed; `failure` says why."""

    decoding: Decoding
    images_per_second: float
    failure: str | None = None


@dataclass(frozen=True)
class Choice:
    """What was taken, and how it came to it; without a trial that did not fail it is the default. `left_out`: images
    that the decoder refused, which were not tried with."""

    decoding: Decoding
    images_per_second: float
    seconds: float
    trials: tuple[Trial, ...]
    left_out: int = 0

    def __str__(self) -> str:
        found = f"{self.images_per_second:.0f} images a second alone" if self.images_per_second else "by default"
        tried = f"{len(self.trials)} ways tried in {self.seconds:.0f} s" if self.trials else "nothing tried"
        text = f"{self.decoding} ({found}; {tried}"
        if self.left_out:
            text += f", without {self.left_out} images that cannot be decoded"
        failures = [trial.failure for trial in self.trials if trial.failure is not None]
        reasons = "; ".join(dict.fromkeys(failures))
        return f"{text}; {len(failures)} failed: {reasons})" if failures else f"{text})"


MOST_AHEAD = max(way.depth for way in ON_GPU) + 1  # batches: see `near`


def near(best: Decoding) -> Sequence[Decoding]:
    """What may be faster still, for the memory of a batch more."""
    return [replace(best, depth=best.depth + 1)]


def choose(
    batches: TrainingBatches,
    first: Sequence[Decoding] = ON_GPU,
    around: Callable[[Decoding], Sequence[Decoding]] = near,
    seconds: float = _SECONDS,
    safe: Decoding = _SAFE,
) -> Choice:
    """The fastest for these batches, which it looks at the first of: one of `first`, or of what is `around` the best.

    A number of batches is made in each way; after `seconds` no other way is tried, but one is in any case. `safe`: what
    it is if none does; only if that decodes windows, others do. Raises DataError: the data cannot be read.
    """
    start = time.monotonic()
    samples = _Samples(batches, safe)
    trials: list[Trial] = []

    def attempt(decodings: Sequence[Decoding]) -> None:
        for decoding in decodings if samples.taken else ():
            if decoding.regions and not safe.regions:
                continue
            if not trials or time.monotonic() - start < seconds:
                trials.append(samples.trial(decoding))

    attempt(first)
    if (best := _best(trials)) is not None:
        attempt(around(best.decoding))
    best = _best(trials) or Trial(safe, 0.0)
    taken = time.monotonic() - start
    return Choice(best.decoding, best.images_per_second, taken, tuple(trials), samples.left_out)


class _Samples:
    """What ways are tried with. One image that cannot be decoded fails its whole batch, so once a trial has failed for
    it, all that are such, whole or by windows, are left out, as training leaves them out later. `left_out`: how many.
    """

    def __init__(self, batches: TrainingBatches, safe: Decoding) -> None:
        self._batches, self._safe = batches, safe
        self.taken = batches.samples(_IMAGES)
        self.left_out = 0
        self._looked = False

    def trial(self, decoding: Decoding) -> Trial:
        """It fails where a GPU has no memory, or no such decoder."""
        try:
            try:
                return Trial(decoding, images_per_second(self._batches, self.taken, decoding))
            except RuntimeError as error:
                if self._looked or not graphs.is_refusal(error):
                    raise
                self._leave_out()
            return Trial(decoding, images_per_second(self._batches, self.taken, decoding))
        except RuntimeError as error:
            return Trial(decoding, 0.0, graphs.reason(error))

    def _leave_out(self) -> None:
        """But not all that there are."""
        self._looked = True
        sound = [sample for sample in map(self._sound, self.taken) if len(sample[1].rows)]
        if sound:
            self.left_out = _rows(self.taken) - _rows(sound)
            self.taken = sound

    def _sound(self, sample: Sample) -> Sample:
        step, images = sample
        for regions in {False, self._safe.regions}:
            images = images.without(self._batches.refused(step, images, Decoding(regions=regions)))
        return step, images


def _rows(samples: Sequence[Sample]) -> int:
    return sum(len(images.rows) for _, images in samples)


def _best(trials: Sequence[Trial]) -> Trial | None:
    """None if all of them failed."""
    best = None
    for trial in trials:
        if trial.images_per_second > (_GAIN * best.images_per_second if best else 0.0):
            best = trial
    return best


def images_per_second(batches: TrainingBatches, samples: Sequence[Sample], decoding: Decoding) -> float:
    """Raises RuntimeError: a GPU without memory, or without such a decoder; or an image cannot be decoded."""
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
    finally:
        graphs.stop(graph)


def _now(device: torch.device) -> float:
    """In seconds, once the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
