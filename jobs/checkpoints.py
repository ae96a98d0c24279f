"""Nets that are named by their file, or by the folder of a job's stage."""

import re
from collections.abc import Container, Sequence
from dataclasses import dataclass, replace
from itertools import chain, count
from pathlib import PurePosixPath

from cluster import checkpoint, nets
from cluster.nets import Label
from cluster.views import Scales, scales_of, views
from jobs.store import read_json
from pipelines.errors import CheckpointError, DataError, first_line
from pipelines.location import Location
from pipelines.shards import DataSet

STAGE = re.compile(r"(.+)-[0-9a-f]{12}")  # a stage's folder


@dataclass(frozen=True)
class Model:
    """A net to be tested: what it is called, its file, and what is known of it."""

    name: str
    file: Location
    label: Label


def net_file(text: str) -> Location:
    """The file that `text` names; of a stage's folder the net that it delivers, or before its end the newest.

    Raises CheckpointError.
    """
    try:
        place = Location.of(text)
        if place.size() is not None:
            return place
        there = place.exists()
    except DataError as error:
        raise CheckpointError(str(error)) from error
    except OSError as error:
        raise CheckpointError(f"{text}: cannot be reached: {first_line(error)}") from error
    if not there:
        raise CheckpointError(f"{text}: no such file")
    done = read_json(place / "done.json")
    if done is not None and isinstance(done.get("delivered"), str):
        return place / done["delivered"]
    files = checkpoint.files_of(place)
    if not files:
        raise CheckpointError(f"{text}: a folder without checkpoints; name a file, or the folder of a job's stage")
    return files[max(files)]


def model(text: str) -> Model:
    """Raises CheckpointError."""
    place = net_file(text)
    return Model(name_of(place), place, nets.look(place))


def models(texts: Sequence[str]) -> tuple[Model, ...]:
    """Each under a name of its own. Raises CheckpointError."""
    found: dict[str, Model] = {}
    for text in dict.fromkeys(texts):
        named = model(text)
        name = unlike(named.name, found)
        found[name] = replace(named, name=name)
    return tuple(found.values())


def unlike(name: str, taken: Container[str]) -> str:
    """The name, with a number if it is taken."""
    return next(each for each in chain([name], (f"{name}-{n}" for n in count(2))) if each not in taken)


def name_of(place: Location) -> str:
    """The stage's name, or the file's without its ending."""
    path = PurePosixPath(place.path)
    stage = STAGE.fullmatch(path.parent.name)
    return stage[1] if stage else path.stem


def check(model: Model, data: DataSet, scales: Scales) -> None:
    """Raises DataError or SettingsError if the model cannot be tested on the data, or not at these scales."""
    from cluster import evaluate  # slow import
    from cluster.evaluate import Evaluation

    card = model.label.card
    looks = views("dense", scales_of(scales, card.scale, card.input_size), False)
    evaluate.check(Evaluation(str(model.file), str(data.location), looks), model.label, data.manifest)
