"""What the files that `verydeep export` writes say of their nets, beside the tensors.

In .safetensors it is the metadata, a text of JSON for each field; in .pth an entry of the state dict's own metadata,
which torch hands on and no module looks at.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError

from cluster.checkpoint import Card
from pipelines.errors import CheckpointError

KEY, VERSION = "verydeep", "1"


@dataclass(frozen=True)
class Note:
    """`named`: whether the classes have names, and not numbers. `errors`: top-1 and top-5 on the middle crops of the
    validation set, if known."""

    card: Card
    named: bool = True
    errors: tuple[float, float] | None = None


def texts(note: Note) -> dict[str, str]:
    """`format` is what other programs look for in safetensors files."""
    return {"format": "pt", KEY: VERSION, **{key: json.dumps(value) for key, value in asdict(note).items()}}


def read(content: Any) -> Note:
    """Of what `texts` made. Raises CheckpointError, without the file's name.

    A net is made of it without memory, in which torch has errors of its own for sizes that cannot be counted.
    """
    if not isinstance(content, Mapping) or content.get(KEY) != VERSION:
        raise CheckpointError("written by another version of the program")
    try:
        fields = {key: json.loads(content[key]) for key in ("card", "named", "errors")}
        note = TypeAdapter(Note).validate_python(fields)
        with torch.device("meta"):
            note.card.build()
        return note
    except (KeyError, TypeError, ValueError, ValidationError, OverflowError, RuntimeError) as error:
        raise CheckpointError("what it says of its net cannot be read") from error
