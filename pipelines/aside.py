"""Data sets in the making: a folder beside the place where the data set will be, which has it whole or not at all.

.NAME.part/
    lock         held by the process that makes the data set, released by the system however it ends
    state.json   how far it has come, replaced after each finished step
    data/        becomes NAME
    replaced/    what was NAME, for the moment in which it is replaced

Nothing but data sets of this program is ever replaced, and sources are kept clear of.
"""

import fcntl
import json
import os
import re
import shutil
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.errors import DataError
from pipelines.schema import INDEX, MANIFEST, REPORT, Manifest
from pipelines.shards import DataSet

_OURS = re.compile(rf"part-\d+\.parquet|{re.escape(INDEX)}|{re.escape(REPORT)}|{re.escape(MANIFEST)}(\.new)?")


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


def check_apart(dest: Path, sources: Iterable[Path]) -> None:
    """Raises DataError: `dest` is one of the sources, lies inside one or holds one, links followed."""
    ours = dest.resolve()
    for source in sources:
        named = Path(os.path.abspath(source))
        for theirs in (named.parent.resolve() / named.name, named.resolve()):
            if ours == theirs or ours.is_relative_to(theirs):
                where = "is" if ours == theirs else "lies inside"
                raise DataError(f"{dest}: {where} {source}, which the images come from; choose a place outside it")
            if theirs.is_relative_to(ours):
                raise DataError(f"{dest}: holds {source}, which the images come from; choose another place")


def finished(dest: Path, identity: str, overwrite: bool) -> Manifest | None:
    """The manifest of the data set that is there already, if it is the same and stays.

    Raises DataError: something else is there, and is not to be replaced (without `overwrite`) or never is.
    """
    for place in (dest, *dest.parents):
        if place.is_symlink() and not place.exists():
            raise DataError(f"{place}: a link to {place.readlink()}, which is not there")
    _restore(_aside(dest, identity), dest)
    if not dest.exists():
        return None
    if overwrite:
        _check_ours(dest)
        return None
    try:
        manifest = DataSet.open(str(dest)).manifest
    except DataError:
        manifest = None
    if manifest is None or manifest.identity != identity:
        _check_ours(dest)
        raise DataError(f"{dest}: is there already; choose another place or give --overwrite")
    aside = _aside(dest, identity)
    if aside.folder.exists() and not aside.data.exists():  # it was moved to `dest`, and then the process was killed
        with _locked(aside.folder, dest):
            shutil.rmtree(aside.folder)
    return manifest


def _check_ours(dest: Path) -> None:
    """Raises DataError if what is there is not empty, nor a data set of this program, of whatever version or broken."""
    what = None
    if dest.is_symlink():
        what = f"a link to {dest.readlink()}, which is not replaced"
    elif not dest.is_dir():
        what = "not a data set"
    elif entries := sorted(dest.iterdir()):
        foreign = [file.name for file in entries if not _OURS.fullmatch(file.name) or not file.is_file()]
        if foreign:
            what = f"it holds {foreign[0]}, which no data set does"
        elif not _has_manifest(dest):
            what = "not a data set"
    if what is not None:
        raise DataError(f"{dest}: is there already ({what}); choose another place")


def _has_manifest(folder: Path) -> bool:
    """Whether `folder`, in which all files are named like ours, holds a manifest of ours, whole or broken."""
    try:
        raw = json.loads((folder / MANIFEST).read_bytes())
    except FileNotFoundError:
        return False
    except ValueError:
        return any(folder.glob("*.parquet"))
    return isinstance(raw, dict) and {"version", "shards"} <= raw.keys()


def _restore(aside: Aside, dest: Path) -> None:
    """Undoes a replacement that was killed in its midst."""
    if aside.replaced.exists() and not dest.exists():
        with _locked(aside.folder, dest):
            if aside.replaced.exists() and not dest.exists():
                aside.replaced.rename(dest)


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
                _check_ours(dest)  # it has had time to become something else
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
