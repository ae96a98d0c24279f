"""Tensors and notes in one file of the safetensors format, sealed: a bit that flips anywhere in it is found.

    8 bytes   the head's length, little-endian
    head      JSON, padded with spaces: the seal, the data's checksum, the notes, each tensor's type, shape and place
    data      the tensors' bytes in row-major order, those of the largest elements first, so that all are aligned

The seal is the xxh3_128 of the length and the head, with zeros for its own digits. Since the head holds the checksum
of the data, it can be read and trusted without them. Any reader of safetensors opens the file, and no code in it is
ever executed. The package of that name would copy all tensors: for VGG-D 3 s and 1 GB more to write, 2 s and 1 GB more
to read.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from xxhash import xxh3_128

from pipelines.errors import CheckpointError, DamagedError, first_line
from pipelines.location import Location

_TYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
_NAMES = {dtype: name for name, dtype in _TYPES.items()}
OPENING = b'{"__metadata__":{"seal":"'
_UNSEALED = b"0" * 32
_LENGTH_BYTES = 8  # the head's length is a multiple of it, too


@dataclass(frozen=True)
class Head:
    """What a file says of itself: `seal` stands for all of its content."""

    seal: str
    notes: dict[str, str]
    tensors: dict[str, dict[str, Any]]
    data: str  # checksum
    start: int  # of the data, in bytes from the file's beginning


def pack(tensors: Mapping[str, Tensor], notes: Mapping[str, str]) -> list[bytes | memoryview]:
    """The file in pieces, which share memory with the tensors; these are on the CPU and contiguous."""
    checksum, at = xxh3_128(), 0
    places: dict[str, dict[str, Any]] = {}
    pieces: list[bytes | memoryview] = []
    for name in sorted(tensors, key=lambda name: (-tensors[name].element_size(), name)):
        tensor = tensors[name]
        piece = tensor.reshape(-1).view(torch.uint8).numpy().data
        checksum.update(piece)
        ends = [at, at + len(piece)]
        places[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": ends}
        pieces.append(piece)
        at = ends[1]
    metadata = {"seal": _UNSEALED.decode(), "data": checksum.hexdigest(), **notes}
    head = json.dumps({"__metadata__": metadata, **places}, separators=(",", ":")).encode()
    head += b" " * (-len(head) % _LENGTH_BYTES)
    length = len(head).to_bytes(_LENGTH_BYTES, "little")
    at = len(OPENING)
    sealed = head[:at] + xxh3_128(length + head).hexdigest().encode() + head[at + len(_UNSEALED) :]
    return [length + sealed, *pieces]


def read_head(place: Location) -> Head:
    """Of a file that has as many bytes as it should; its data are not looked at. Raises CheckpointError."""
    try:
        size = place.size()
        if size is None:
            raise DamagedError(f"{place}: no such checkpoint")
        length = int.from_bytes(place.read(0, _LENGTH_BYTES), "little")
        content = place.read(0, _LENGTH_BYTES + min(length, size))
    except OSError as error:
        raise _unreadable(place, error) from error
    return _head(content, size, place)


def load(place: Location) -> tuple[Head, dict[str, Tensor]]:
    """The tensors, which share one piece of memory, are on the CPU. Raises CheckpointError."""
    try:
        content = place.read()
    except OSError as error:
        raise _unreadable(place, error) from error
    head = _head(content, len(content), place)
    if xxh3_128(content[head.start :]).hexdigest() != head.data:
        raise _broken(place, content)
    data = torch.from_numpy(np.frombuffer(content, np.uint8))[head.start :]
    try:
        return head, {name: _tensor(data, where) for name, where in head.tensors.items()}
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise _broken(place, content) from error


def _tensor(data: Tensor, where: dict[str, Any]) -> Tensor:
    first, end = where["data_offsets"]
    return data[first:end].view(_TYPES[where["dtype"]]).reshape(where["shape"])


def _head(content: memoryview, size: int, place: Location) -> Head:
    """`content`: the file's beginning, of `size` bytes in all."""
    start = _LENGTH_BYTES + int.from_bytes(content[:_LENGTH_BYTES], "little")
    head = bytes(content[:start])
    first = _LENGTH_BYTES + len(OPENING)
    end = first + len(_UNSEALED)
    seal = head[first:end]
    if (
        len(head) != start
        or head[_LENGTH_BYTES:first] != OPENING
        or xxh3_128(head[:first] + _UNSEALED + head[end:]).hexdigest().encode() != seal
    ):
        raise _broken(place, content)
    try:
        tensors = json.loads(head[_LENGTH_BYTES:])
        notes = tensors.pop("__metadata__")
        found = Head(notes.pop("seal"), notes, tensors, notes.pop("data"), start)
        whole = start + max((where["data_offsets"][1] for where in tensors.values()), default=0)
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise _broken(place, content) from error
    if size != whole:
        raise _broken(place, content)
    return found


def _broken(place: Location, content: memoryview) -> DamagedError:
    if bytes(content[:4]) == b"PK\x03\x04":
        return DamagedError(
            f"{place}: written by torch.save, as by earlier versions of this program; it may hold code and is not read"
        )
    return DamagedError(f"{place}: not a whole checkpoint")


def _unreadable(place: Location, error: OSError) -> CheckpointError:
    if isinstance(error, FileNotFoundError):
        return DamagedError(f"{place}: no such checkpoint")
    return CheckpointError(f"{place}: cannot be read: {error.strerror or first_line(error)}")
