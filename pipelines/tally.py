"""What is counted while a data set is made. It survives a round trip through JSON exactly."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from pipelines.audit import Image
from pipelines.schema import Statistics


@dataclass
class Tally:
    """Rows of each class, files left out with their reasons, and sums of the images' mean colours and second moments,
    each image with the same weight, as it has in training."""

    class_rows: list[int]
    rejected: list[tuple[str, str]] = field(default_factory=list)
    mean_sum: list[float] = field(default_factory=lambda: [0.0] * 3)
    second_sum: list[list[float]] = field(default_factory=lambda: [[0.0] * 3] * 3)

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> "Tally":
        return cls(**{**raw, "rejected": [(name, reason) for name, reason in raw["rejected"]]})

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def rows(self) -> int:
        return sum(self.class_rows)

    @property
    def seen(self) -> int:
        return self.rows + len(self.rejected)

    def add(self, images: Iterable[Image]) -> None:
        """In their order: it decides how sums of real numbers are rounded."""
        mean, second = np.array(self.mean_sum), np.array(self.second_sum)
        for image in images:
            if image.reason is not None:
                self.rejected.append((image.name, image.reason))
                continue
            self.class_rows[image.label] += 1
            if image.colours is not None:
                mean += image.colours.mean
                second += image.colours.second_moment
        self.mean_sum, self.second_sum = mean.tolist(), second.tolist()

    def statistics(self) -> Statistics:
        mean = np.array(self.mean_sum) / self.rows
        covariance = np.array(self.second_sum) / self.rows - np.outer(mean, mean)
        values, vectors = np.linalg.eigh(covariance)
        largest_first = [2, 1, 0]
        directions = vectors.T[largest_first]
        # The sign of an eigenvector is arbitrary: fix it, so that the same images give the same statistics.
        directions *= np.sign(directions[np.arange(3), np.abs(directions).argmax(axis=1)])[:, None]
        deviations = np.sqrt(np.maximum(values[largest_first], 0.0))
        first, second, third = directions
        return Statistics(_three(mean), (_three(first), _three(second), _three(third)), _three(deviations))


def _three(values: np.ndarray) -> tuple[float, float, float]:
    a, b, c = values.tolist()
    return a, b, c
