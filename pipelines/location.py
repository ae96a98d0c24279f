"""A place on a local disk or in an object store, through `pyarrow.fs`."""

import errno
import logging
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

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

log = logging.getLogger(__name__)
R = TypeVar("R")


def persistently(read: Callable[[], R], what: object, given_up: threading.Event | None = None) -> R:
    """What `read` returns, which is called again, at growing intervals, while the network or the server fails.

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
    return retrying(read)


def _passing(error: BaseException) -> bool:
    """Whether the same call may succeed later. Arrow has OSError, too, for what is wrong with a file's content."""
    if not isinstance(error, OSError):
        return False
    if error.errno is not None:
        return error.errno in _PASSING
    return any(word in str(error) for word in _NETWORK) and "ACCESS_DENIED" not in str(error)


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
            return cls(arrow_fs.LocalFileSystem(), str(Path(os.path.expanduser(text)).absolute()), text)
        try:
            filesystem, path = arrow_fs.FileSystem.from_uri(text)
        except (ArrowException, ValueError, OSError) as error:
            raise DataError(f"{text}: no such place: {first_line(error)}") from error
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
