"""A place on a local disk or in an object store, through `pyarrow.fs`.

What is written is there whole or not at all. On a disk it is written aside, flushed, and renamed. In an object store an
object appears when its upload is completed; Arrow completes it, too, when a stream is closed or dropped after an
exception, so all of the content has to be there before the first byte is written.
"""

import errno
import logging
import os
import re
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TypeVar

import numpy as np
import tenacity
from pyarrow import ArrowException
from pyarrow import fs as arrow_fs

from pipelines.errors import DataError, first_line

_ATTEMPTS, _FIRST_WAIT_SECONDS, _LONGEST_WAIT_SECONDS = 8, 0.5, 30  # a minute in all

_PASSING = {
    getattr(errno, name)
    for name in ("EAGAIN", "EBUSY", "EINTR", "EIO", "EPIPE", "EREMOTEIO", "ESTALE", "ETIMEDOUT", "ECONNABORTED")
    + ("ECONNREFUSED", "ECONNRESET", "EHOSTUNREACH", "ENETDOWN", "ENETUNREACH")
}
_NETWORK = ("AWS Error", "curl", "onnect", "imed out", "imeout", "nreachable", "esolve", "google::cloud", "HTTP")
_REFUSED = ("ACCESS_DENIED", "NO_SUCH_BUCKET", "INVALID_ACCESS_KEY_ID", "SIGNATURE_DOES_NOT_MATCH", "PERMISSION_DENIED")
_ASIDE = ".part"
_PIECE_BYTES = 16 << 20
_ABANDONED_SECONDS = 3600  # after which a file written aside is taken for what an interrupted write left

_USER = re.compile(r"(?<=://)[^/\s]*@")
# From the question mark to the next space, but for quotes, brackets and stops that end the URI. A name in a URI's path
# may have spaces.
_OPTIONS = re.compile(r"(://(?:[^\s?]*(?=\?)|[^\n?]*(?=\?[^\s=?]+=)))\?\S*?([\])}'\",:;.]*)(?!\S)")

log = logging.getLogger(__name__)
R = TypeVar("R")


def persistently(call: Callable[[], R], what: object, given_up: threading.Event | None = None) -> R:
    """What `call` returns, which is called again, at growing intervals, while the network or the server fails.

    Raises OSError: what is named `what` is not there, may not be read, or cannot be reached for a minute, or while
    waiting `given_up` was set.
    """
    waiting = given_up or threading.Event()

    def wait(seconds: float) -> None:
        waiting.wait(seconds)

    def tell(state: tenacity.RetryCallState) -> None:
        error = state.outcome and state.outcome.exception()
        seconds = state.next_action.sleep if state.next_action else 0.0
        log.warning("%s: %s; trying again in %.1f s", what, error and first_line(error), seconds)

    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception(_passing),
        sleep=wait,
        stop=tenacity.stop_any(tenacity.stop_after_attempt(_ATTEMPTS), tenacity.stop_when_event_set(waiting)),
        wait=tenacity.wait_exponential(_FIRST_WAIT_SECONDS, _LONGEST_WAIT_SECONDS)
        + tenacity.wait_random(0, _FIRST_WAIT_SECONDS),
        before_sleep=tell,
        reraise=True,
    )
    return retrying(call)


def _passing(error: BaseException) -> bool:
    """Whether the same call may succeed later. Arrow has OSError, too, for what is wrong with a file's content."""
    if not isinstance(error, OSError):
        return False
    if error.errno is not None:
        return error.errno in _PASSING
    text = str(error)
    return any(word in text for word in _NETWORK) and not any(word in text for word in _REFUSED)


@dataclass(frozen=True)
class Location:
    """A path inside a file system; `text` is how the user wrote it."""

    filesystem: arrow_fs.FileSystem
    path: str
    text: str

    @classmethod
    def of(cls, text: str | os.PathLike[str]) -> "Location":
        """From a local path or a URI (`s3://`, `gs://`, `file://`, ...). Raises DataError."""
        text = os.fspath(text)
        if "://" not in text:
            path = str(Path(os.path.expanduser(text)).absolute())
            if legible(path) != path:
                raise DataError(
                    f"{legible(text)}: the path is not UTF-8, and Arrow opens no other; give it another name"
                )
            return cls(arrow_fs.LocalFileSystem(), path, text)
        try:
            filesystem, path = arrow_fs.FileSystem.from_uri(text)
        except (ArrowException, ValueError, OSError) as error:
            raise DataError(f"{legible(text)}: no such place: {first_line(error)}") from error
        return cls(filesystem, path, text)

    def __truediv__(self, name: str) -> "Location":
        text, mark, options = self.text.partition("?")  # of a URI, such as s3://bucket/folder?region=...
        return Location(self.filesystem, f"{self.path.rstrip('/')}/{name}", f"{text.rstrip('/')}/{name}{mark}{options}")

    @property
    def absolute(self) -> str:
        """The same place for a process with another working folder."""
        return self.text if "://" in self.text else self.path

    def __str__(self) -> str:
        return self.text

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]

    @property
    def disk(self) -> Path | None:
        """The path on a disk of this machine, or one that is mounted like it; None in an object store."""
        return Path(self.path) if isinstance(self.filesystem, arrow_fs.LocalFileSystem) else None

    def same(self, other: "Location") -> bool:
        """Whether both are one file, however they are written; on a disk through links, too. Raises OSError."""
        if self.disk is not None and other.disk is not None and self.disk.exists() and other.disk.exists():
            return self.disk.samefile(other.disk)
        return bool(self.path == other.path and self.filesystem.equals(other.filesystem))

    def exists(self) -> bool:
        try:
            info = persistently(lambda: self.filesystem.get_file_info(self.path), self)
            return bool(info.type != arrow_fs.FileType.NotFound)
        except OSError as error:
            raise DataError(f"{self}: cannot be reached: {first_line(error)}") from error

    def read_bytes(self) -> bytes:
        def read() -> bytes:
            with self.filesystem.open_input_stream(self.path) as stream:
                return bytes(stream.read())

        try:
            return persistently(read, self)
        except OSError as error:
            raise DataError(f"{self}: cannot be read: {first_line(error)}") from error

    # What follows raises OSError, for callers who know what the place is for.

    def size(self) -> int | None:
        """In bytes; None if there is no such file."""
        info = persistently(lambda: self.filesystem.get_file_info(self.path), self)
        return info.size if info.type == arrow_fs.FileType.File else None

    def changed(self) -> datetime | None:
        """When its content was last written; None if there is no such file."""
        info = persistently(lambda: self.filesystem.get_file_info(self.path), self)
        return info.mtime if info.type == arrow_fs.FileType.File else None

    def read(self, first: int = 0, count: int | None = None) -> memoryview:
        """The bytes from `first` on, at most `count` of them; they can be written to."""

        def attempt() -> memoryview:
            with self.filesystem.open_input_file(self.path) as file:
                left = max(file.size() - first, 0)
                content = np.empty(left if count is None else min(count, left), np.uint8).data
                file.seek(min(first, file.size()))
                filled = 0
                while filled < len(content):
                    got = file.readinto(content[filled:])
                    if not got:
                        raise OSError(errno.EIO, "ended while it was read")
                    filled += got
                return content

        return persistently(attempt, self)

    @contextmanager
    def on_disk(self) -> Iterator[Path]:
        """The file itself, or a copy of it on a disk, which is deleted afterwards."""
        if self.disk is not None:
            yield self.disk
            return
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder, self.name)
            copy.write_bytes(self.read())
            yield copy

    def write(self, *pieces: bytes | memoryview) -> None:
        """A file of these pieces, there whole or not at all, in place of what was there. Makes its folders."""
        disk = self.disk
        persistently(lambda: _write_aside(disk, pieces) if disk is not None else self._upload(pieces), self)

    @contextmanager
    def filled(self) -> Iterator[Path]:
        """A path on a disk of this machine, at which the block makes a large file; at its end the file is here, whole,
        in place of what was. If the block raises, all is as before. A place that cannot be written to raises OSError
        before the block. Of an object store the file lies in the folder for temporary files until it is uploaded."""
        if self.disk is not None:
            with _aside(self.disk) as aside:
                yield aside
            return
        with tempfile.TemporaryDirectory() as folder:
            attempt = Location(self.filesystem, f"{self.path}.{uuid.uuid4().hex[:8]}{_ASIDE}", self.text)
            attempt.write(b"")
            attempt.delete()
            file = Path(folder, self.name)
            yield file
            persistently(lambda: self._upload(_pieces(file)), self)

    def _upload(self, pieces: Iterable[bytes | memoryview]) -> None:
        with self.filesystem.open_output_stream(self.path) as stream:
            for piece in pieces:
                stream.write(piece)

    def files(self) -> dict[str, "Location"]:
        """The files right in this folder by their names; none if there is no such folder."""
        chosen = arrow_fs.FileSelector(self.path, allow_not_found=True)
        found = persistently(lambda: self.filesystem.get_file_info(chosen), self)
        return {info.base_name: self / info.base_name for info in found if info.type == arrow_fs.FileType.File}

    def folders(self) -> list[str]:
        """The names of the folders right in this one; none if there is no such folder."""
        chosen = arrow_fs.FileSelector(self.path, allow_not_found=True)
        found = persistently(lambda: self.filesystem.get_file_info(chosen), self)
        return sorted(info.base_name for info in found if info.type == arrow_fs.FileType.Directory)

    def delete(self) -> None:
        """If it is there."""
        _if_there(lambda: self.filesystem.delete_file(self.path), self)

    def delete_folder(self) -> None:
        """With all that is in it, if it is there."""
        _if_there(lambda: self.filesystem.delete_dir(self.path), self)

    def sweep(self) -> None:
        """Deletes what writes into this folder that were interrupted long ago left; on disks alone it can be seen."""
        if self.disk is None:
            return
        for aside in self.disk.glob(f".*{_ASIDE}"):
            try:
                if time.time() - aside.stat().st_mtime > _ABANDONED_SECONDS:
                    aside.unlink()
            except FileNotFoundError:  # another process swept it
                pass


def legible(text: str) -> str:
    """With escapes in the place of bytes that are no UTF-8, which file names may hold."""
    return text.encode(errors="backslashreplace").decode()


def public(text: str) -> str:
    """Without what may be secret in URIs, anywhere in a text: a user's name and key, and options. Rather too much is
    left out than too little."""
    return _OPTIONS.sub(r"\1\2", _USER.sub("", text))


def _if_there(delete: Callable[[], None], place: Location) -> None:
    try:
        persistently(delete, place)
    except FileNotFoundError:
        pass


def _pieces(file: Path) -> Iterator[bytes]:
    with file.open("rb") as stream:
        while piece := stream.read(_PIECE_BYTES):
            yield piece


def _write_aside(path: Path, pieces: Iterable[bytes | memoryview]) -> None:
    with _aside(path) as aside, aside.open("wb") as stream:
        for piece in pieces:
            stream.write(piece)


@contextmanager
def _aside(path: Path) -> Iterator[Path]:
    """An empty file beside `path`, for the block to fill; it takes its place then, so that it outlasts a power cut."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}{_ASIDE}")
    try:
        aside.touch(exist_ok=False)
        yield aside
        _flush(aside)
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    _flush(path.parent)  # the new name


def _flush(path: Path) -> None:
    """A file's content, or a folder's names, to the disk."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
