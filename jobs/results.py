"""What the tests of a job, or of `verydeep evaluate`, came to; kept as JSON beside the posteriors."""

from collections.abc import Container, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import TypeAdapter

from cluster import posteriors
from cluster.metrics import Totals
from cluster.posteriors import Posteriors
from cluster.views import Precision, TestMode
from pipelines.location import Location


@dataclass(frozen=True)
class Subject:
    """A net that was tested.

    `model`: the stage's name, or the file's. `net`: configuration, A to E. `trained`: S, smallest and largest.
    `scales`: the Q that were averaged. `posteriors`: files of its posteriors, one for each mode and Q, by their names
    in the folder of posteriors; their mean is what was tested. `mirror`: of images with their mirror images. `seal`: of
    the net's file. `precision`: of the net's products.
    """

    model: str
    net: str
    trained: tuple[int, int]
    scales: tuple[int, ...]
    posteriors: tuple[str, ...] = ()
    input_size: int = 224
    width: float = 1.0
    batch_norm: bool = False
    mirror: bool = False
    seal: str = ""
    precision: Precision = "float32"


@dataclass(frozen=True)
class Result:
    """One line of a table. Several subjects: the mean of their posteriors was tested."""

    test: str
    subjects: tuple[Subject, ...]
    mode: TestMode
    classes: int
    totals: Totals

    @property
    def model(self) -> str:
        """The models' names, as one."""
        return "+".join(subject.model for subject in self.subjects)


_RESULTS = TypeAdapter(list[Result])


def scale_text(scale: tuple[int, int]) -> str:
    """`256`, or `256 to 512`."""
    return str(scale[0]) if scale[0] == scale[1] else f"{scale[0]} to {scale[1]}"


def averaged(folder: Location, result: Result) -> Posteriors:
    """What a result was counted from; one file is held at a time.

    Raises DataError: a file is not there any more, or damaged.
    """
    means = (
        posteriors.average(posteriors.read(folder / name) for name in subject.posteriors) for subject in result.subjects
    )
    return posteriors.average(means)


def best(results: Iterable[Result], models: Container[str]) -> Result | None:
    """The net with the smallest error by itself, in whatever test: top-1, then top-5; of equals the first one."""
    alone = [result for result in results if len(result.subjects) == 1 and result.model in models]
    return max(alone, key=lambda result: (result.totals.accuracy, result.totals.accuracy5), default=None)


def to_json(results: Sequence[Result]) -> dict[str, Any]:
    return {"results": [asdict(result) for result in results]}


def from_json(content: dict[str, Any]) -> list[Result]:
    """Raises ValueError or KeyError if it is not what `to_json` makes."""
    found = _RESULTS.validate_python(content["results"])
    for result in found:
        totals = result.totals
        if not result.subjects or not all(subject.scales for subject in result.subjects) or totals.images < 1:
            raise ValueError(f"{result.test}: a result of no net, no scale or no image")
        if not 0 <= totals.top1 <= totals.top5 <= totals.images:
            raise ValueError(f"{result.test}: more images are right than were tested")
    return found
