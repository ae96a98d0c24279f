"""What a net's posteriors tell beyond its error: which classes it takes for which others, how far its probabilities are
to be trusted, and where it is most certain of what is wrong. Pure."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cluster.posteriors import Posteriors

BINS = 15  # Guo et al. 2017, arXiv 1706.04599

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[Any]


@dataclass(frozen=True)
class Verdicts:
    """Of n images: the right class, the one with the largest probability, and that probability."""

    labels: Ints  # (n,)
    predicted: Ints  # (n,)
    confidence: Floats  # (n,)

    @property
    def right(self) -> Bools:
        """(n,)"""
        return np.equal(self.labels, self.predicted)


def verdicts(posteriors: Posteriors) -> Verdicts:
    """As in the totals a tie counts against the net: of equal probabilities the right class's is passed over."""
    scores, labels = np.nan_to_num(posteriors.scores), posteriors.labels
    rows = np.arange(len(labels))
    predicted, right = scores.argmax(axis=1), scores[rows, labels]
    confidence = scores[rows, predicted].astype(np.float64)
    tied = np.flatnonzero((predicted == labels) & ((scores == right[:, None]).sum(axis=1) > 1))
    others = scores[tied]
    others[np.arange(len(tied)), labels[tied]] = -1.0
    predicted[tied] = others.argmax(axis=1)
    return Verdicts(labels, predicted, confidence)


def confusion(found: Verdicts, classes: int) -> Ints:
    """(classes, classes): images by right class (rows) and predicted class (columns)."""
    counts = np.bincount(found.labels * classes + found.predicted, minlength=classes * classes)
    return counts.reshape(classes, classes).astype(np.int64)


@dataclass(frozen=True)
class Pair:
    """`count` images of class `true` were taken for `predicted`, the `share` of all that are of that class."""

    true: int
    predicted: int
    count: int
    share: float


def worst_pairs(counts: Ints, most: int) -> list[Pair]:
    """The most frequent confusions; of equally frequent ones first what is the larger share of its class."""
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    true, predicted = np.nonzero(wrong)
    count = wrong[true, predicted]
    share = count / counts.sum(axis=1)[true]
    order = np.lexsort((predicted, true, -share, -count))[:most]
    return [Pair(int(true[i]), int(predicted[i]), int(count[i]), float(share[i])) for i in order]


@dataclass(frozen=True)
class ClassScore:
    label: int
    images: int
    right: int

    @property
    def accuracy(self) -> float:
        return self.right / self.images


def by_class(counts: Ints) -> list[ClassScore]:
    """Of the classes that have images, the worst first."""
    images, right = counts.sum(axis=1), counts.diagonal()
    scores = [ClassScore(i, int(images[i]), int(right[i])) for i in np.flatnonzero(images).tolist()]
    return sorted(scores, key=lambda score: (score.accuracy, -score.images, score.label))


@dataclass(frozen=True)
class Calibration:
    """Images in bins of equal width by their confidence; bin i is ((i) / bins, (i + 1) / bins]. Means are NaN where no
    image is."""

    images: Ints  # (bins,)
    right: Ints  # (bins,)
    confidence: Floats  # (bins,): the mean

    @property
    def accuracy(self) -> Floats:
        """(bins,)"""
        return _ratio(self.right, self.images)

    @property
    def error(self) -> float:
        """The expected calibration error: what accuracy and mean confidence of a bin differ by, over all images."""
        gaps = np.abs(self.accuracy - self.confidence)
        return float(np.nansum(gaps * self.images) / self.images.sum())


def calibration(found: Verdicts, bins: int = BINS) -> Calibration:
    bin_ = np.clip(np.ceil(found.confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    images = np.bincount(bin_, minlength=bins)
    right = np.bincount(bin_[found.right], minlength=bins)
    return Calibration(images, right, _ratio(np.bincount(bin_, found.confidence, bins), images))


def _ratio(sums: Ints | Floats, counts: Ints) -> Floats:
    with np.errstate(invalid="ignore"):
        return np.asarray(sums / counts, np.float64)


def confident_mistakes(found: Verdicts, unreadable: tuple[int, ...], most: int) -> Ints:
    """Rows that are wrong, those with the highest confidence first; images that a plain picture stood in for have no
    part in it."""
    wrong = ~found.right
    wrong[list(unreadable)] = False
    rows = np.flatnonzero(wrong)
    return rows[np.lexsort((rows, -found.confidence[rows]))][:most]
