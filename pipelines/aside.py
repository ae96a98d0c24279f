"""Data sets in the making: a folder beside the place where the data set will be, which has it whole or not at all.

.NAME.part/
    lock         held by the process that makes the data set, released by the system however it ends
    state.json   how far it has come, replaced after each finished step
    data/        becomes NAME
"""

import fcntl
import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.errors import DataError
from pipelines.schema import Manifest
from pipelines.shards import DataSet


@dataclass(frozen=True)
class Aside:
    """`identity`: of all that determines the data set; what was begun under another one is of no use."""

    folder: Path
    identity: str

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def replaced(self) -> Path:
        return self.folder / "replaced"

    def state(self) -> dict[str, Any] | None:
        """What was saved last; None if that was nothing, or under another identity."""
        try:
            state: dict[str, Any] = json.loads((self.folder / "state.json").read_bytes())
        except (FileNotFoundError, ValueError):
            return None
        return state["state"] if state.get("identity") == self.identity else None

    def save(self, state: dict[str, Any]) -> None:
        whole(self.folder / "state.json", json.dumps({"identity": self.identity, "state": state}))

    def discard(self) -> None:
        """What was made is of no use, however often it is tried."""
        shutil.rmtree(self.folder)


def whole(file: Path, text: str) -> None:
    """Writes a file that is there whole or not at all."""
    written = file.with_name(f"{file.name}.new")
    written.write_text(text)
    written.replace(file)


def place(dest: str | os.PathLike[str]) -> Path:
    """Raises DataError: not a local folder."""
    if ":/" in os.fspath(dest):  # a URI, of which Path keeps one slash
        raise DataError(f"{dest}: a data set is prepared in a folder; copy it to an object store afterwards")
    return Path(os.path.expanduser(dest)).absolute()


def finished(dest: Path, identity: str) -> Manifest | None:
    """The manifest of the data set that is there already, if it is the same. Raises DataError: something else is."""
    if not dest.exists():
        return None
    try:
        manifest = DataSet.open(str(dest)).manifest
    except DataError:
        manifest = None
    if manifest is None or manifest.identity != identity:
        raise DataError(f"{dest}: is there already; choose another place or give --overwrite")
    aside = _aside(dest, identity)
    if aside.folder.exists() and not aside.data.exists():  # it was moved to `dest`, and then the process was killed
        with _locked(aside.folder, dest):
            shutil.rmtree(aside.folder)
    return manifest


def _aside(dest: Path, identity: str) -> Aside:
    return Aside(dest.with_name(f".{dest.name}.part"), identity)


@contextmanager
def making(dest: Path, identity: str, overwrite: bool) -> Iterator[Aside]:
    """The body makes `data`, which then becomes `dest`; what it leaves when it is interrupted, it finds again.

    Raises DataError: another process makes the same data set, it cannot be written, or what the body raises.
    """
    aside = _aside(dest, identity)
    try:
        with _locked(aside.folder, dest):
            if aside.state() is None:
                _clear(aside, dest)
            if dest.exists() and not overwrite:
                raise DataError(f"{dest}: another process has just prepared it")
            aside.data.mkdir(exist_ok=True)
            yield aside
            if overwrite and dest.exists():
                shutil.rmtree(aside.replaced, ignore_errors=True)
                dest.rename(aside.replaced)
            aside.data.rename(dest)  # fails if something has come there meanwhile
            shutil.rmtree(aside.folder, ignore_errors=True)
    except OSError as error:
        raise DataError(f"{dest}: cannot be written: {error.strerror or error}") from error


def _clear(aside: Aside, dest: Path) -> None:
    if (aside.folder / "state.json").exists():
        print(f"{dest}: begun from other images or with other options, now begun anew", file=sys.stderr)
    for entry in aside.folder.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry)
        elif entry.name != "lock":
            entry.unlink()


@contextmanager
def _locked(folder: Path, dest: Path) -> Iterator[None]:
    folder.parent.mkdir(parents=True, exist_ok=True)
    while True:
        folder.mkdir(exist_ok=True)
        try:
            lock = (folder / "lock").open("w")
        except FileNotFoundError:  # its last user has just removed the folder
            continue
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise DataError(f"{dest}: another process is preparing it") from error
            if _is(lock.fileno(), folder / "lock"):
                yield
                return


def _is(descriptor: int, path: Path) -> bool:
    """Whether the open file is still the one at the path."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
