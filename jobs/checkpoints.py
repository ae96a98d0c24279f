"""How a net is named on the command line: by its file, or by the folder of a job's stage."""

import re
from collections.abc import Sequence
from pathlib import PurePosixPath

from cluster import checkpoint, nets
from jobs.store import read_json
from jobs.testing import Model
from pipelines.errors import CheckpointError, DataError
from pipelines.location import Location

_STAGE = re.compile(r"(.+)-[0-9a-f]{12}")  # a stage's folder


def net_file(text: str) -> Location:
    """The file that `text` names; of a stage's folder the net that it delivers, or before its end the newest.

    Raises CheckpointError.
    """
    try:
        place = Location.of(text)
        if place.size() is not None:
            return place
        there = place.exists()
    except (DataError, OSError) as error:
        raise CheckpointError(f"{text}: cannot be reached: {error}") from error
    if not there:
        raise CheckpointError(f"{text}: no such file")
    done = read_json(place / "done.json")
    if done is not None and isinstance(done.get("delivered"), str):
        return place / done["delivered"]
    files = checkpoint.files_of(place)
    if not files:
        raise CheckpointError(f"{text}: a folder without checkpoints; name a file, or the folder of a job's stage")
    return files[max(files)]


def models(texts: Sequence[str]) -> tuple[Model, ...]:
    """Each under a name of its own. Raises CheckpointError."""
    found: dict[str, Model] = {}
    for text in dict.fromkeys(texts):
        place = net_file(text)
        name = unique = name_of(place)
        number = 1
        while unique in found:
            number += 1
            unique = f"{name}-{number}"
        found[unique] = Model(unique, place, nets.look(place))
    return tuple(found.values())


def name_of(place: Location) -> str:
    """The stage's name, or the file's without its ending."""
    path = PurePosixPath(place.path)
    stage = _STAGE.fullmatch(path.parent.name)
    return stage[1] if stage else path.stem
