"""A place on a local disk or in an object store, through `pyarrow.fs`."""

import os
from dataclasses import dataclass
from pathlib import Path

from pyarrow import ArrowException
from pyarrow import fs as arrow_fs

from pipelines.errors import DataError, first_line


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
        return Location(self.filesystem, f"{self.path.rstrip('/')}/{name}", f"{self.text.rstrip('/')}/{name}")

    @property
    def absolute(self) -> str:
        """The same place for a process with another working folder."""
        return self.text if "://" in self.text else self.path

    def __str__(self) -> str:
        return self.text

    def exists(self) -> bool:
        try:
            return bool(self.filesystem.get_file_info(self.path).type != arrow_fs.FileType.NotFound)
        except OSError as error:
            raise DataError(f"{self}: cannot be reached: {first_line(error)}") from error

    def read_bytes(self) -> bytes:
        try:
            with self.filesystem.open_input_stream(self.path) as stream:
                return bytes(stream.read())
        except OSError as error:
            raise DataError(f"{self}: cannot be read: {first_line(error)}") from error
