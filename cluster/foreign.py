"""Tensors out of files that other programs wrote: torch's, and safetensors. No code in them is executed."""

import argparse
import hashlib
import pickle
import re
import warnings
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor
from xxhash import xxh3_128

from pipelines.errors import CheckpointError, DamagedError, first_line
from pipelines.location import Location

ZIP, PICKLE = b"PK\x03\x04", b"\x80"  # what files of torch.save begin with, the older ones with the latter

_UNDER = ("state_dict", "model", "model_state_dict")  # where training scripts keep it
_WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:module|_orig_mod)\.")  # of DataParallel and torch.compile


@dataclass(frozen=True)
class Contents:
    """A state dict, what torch notes beside it, and a checksum of the whole file."""

    state: dict[str, Tensor]
    notes: Mapping[str, Any]
    seal: str


def torch_file(place: Location, mapped: bool = False) -> Contents:
    """Of torch.save.

    `mapped`: the tensors are read when they are looked at, if the file's kind allows. Raises CheckpointError.
    """
    try:
        with place.on_disk() as path:
            state = _state(_unpickled(path, mapped, place), place)
            notes = getattr(state, "_metadata", None)
            return Contents(_unwrapped(state), notes if isinstance(notes, Mapping) else {}, _checksum(path))
    except OSError as error:
        raise _unreadable(place, error) from error


def safetensors_file(place: Location, mapped: bool = False) -> Contents:
    """Of the library of this name, or of another one. Raises CheckpointError."""
    try:
        with place.on_disk() as path:
            state = safetensors.torch.load_file(path)  # mapped
            return Contents(_unwrapped(state, copied=not mapped), {}, _checksum(path))
    except OSError as error:
        raise _unreadable(place, error) from error
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise DamagedError(f"{place}: not a whole safetensors file: {first_line(error)}") from error


def _unpickled(path: Path, mapped: bool, place: Location) -> Any:
    """`weights_only`: what is named in the file is looked up in a list of harmless things, and refused if it is none
    of them. Scripts' arguments, a Namespace of plain values, often stand beside a state dict."""
    with path.open("rb") as file:
        mapped = mapped and file.read(len(ZIP)) == ZIP
    _whole(path, place)
    try:
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings(action="ignore"):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except OSError:
        raise
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL (\S+)", str(error))
        raise CheckpointError(
            f"{place}: not read, since it holds more than tensors{f' ({named[1]})' if named else ''}, which could be "
            "code, and none is executed; save a net's state_dict() alone"
        ) from error
    except Exception as error:  # of a foreign or damaged file torch raises whatever its parts raise; the reason is kept
        reason = first_line(error).partition(". ")[0]
        raise DamagedError(
            f"{place}: not a file of tensors that torch.save wrote, or not all of it: {reason}"
        ) from error


def _whole(path: Path, place: Location) -> None:
    """torch.load does not compare the checksums that torch.save writes. Raises DamagedError."""
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as file:
            summed = any(part.CRC for part in file.infolist())  # torch.serialization.set_crc32_options turns them off
            bad = file.testzip() if summed else None
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, NotImplementedError, RuntimeError) as error:
        raise DamagedError(f"{place}: damaged: {first_line(error)}") from error
    if bad is not None:
        raise DamagedError(f"{place}: damaged: the checksum of {bad} is not that of its content")


def _state(content: Any, place: Location) -> Mapping[str, Tensor]:
    inside = (content.get(key) for key in _UNDER) if isinstance(content, Mapping) else ()
    for state in (content, *inside):
        if isinstance(state, Mapping) and state and all(map(_plain, state.values())):
            return state
    raise CheckpointError(f"{place}: holds no net's tensors, neither by themselves nor under {', '.join(_UNDER)}")


def _plain(value: object) -> bool:
    """Numbers, one beside the other; tensors on the device `meta` have none."""
    if not isinstance(value, Tensor) or value.is_meta or value.is_nested:
        return False
    return value.layout == torch.strided and not value.is_quantized


def _unwrapped(state: Mapping[str, Tensor], copied: bool = False) -> dict[str, Tensor]:
    """Under the names of the net by itself. `copied`: into memory, out of a file that may be overwritten."""
    found = {_WRAPPERS.sub("", str(key)): value.detach() for key, value in state.items()}
    return {key: value.clone() for key, value in found.items()} if copied else found


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return str(hashlib.file_digest(file, xxh3_128).hexdigest())  # type: ignore[arg-type]


def _unreadable(place: Location, error: OSError) -> CheckpointError:
    return CheckpointError(f"{place}: cannot be read: {error.strerror or first_line(error)}")
