"""ImageNet, ILSVRC 2012, from its archives as they are distributed. Nothing is unpacked: the headers are read once, and
images then where they lie, in any order and from any thread.

train   ILSVRC2012_img_train.tar, a tar archive of one for each class, such as n01440764.tar
val     ILSVRC2012_img_val.tar, 50,000 images; sorted by name they are in the order of their labels
devkit  ILSVRC2012_devkit_t12.tar.gz, with data/meta.mat (the classes) and the labels of the validation images: the
        devkit's own numbers of classes, not the places among the sorted WordNet identifiers that labels commonly are
"""

import io
import os
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO, overload

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from pipelines.errors import DataError, first_line
from pipelines.sources import Source

META = "data/meta.mat"
GROUND_TRUTH = "data/ILSVRC2012_validation_ground_truth.txt"
_WITHOUT_CONTENT = (
    tarfile.DIRTYPE,
    tarfile.LNKTYPE,
    tarfile.SYMTYPE,
    tarfile.FIFOTYPE,
    tarfile.CHRTYPE,
    tarfile.BLKTYPE,
)


@dataclass(frozen=True)
class Devkit:
    """`wnids`: WordNet identifiers, sorted; a class's label is its place. `validation`: the labels of the validation
    images, in the order of the images' names."""

    path: Path
    wnids: tuple[str, ...]
    classes: tuple[str, ...]  # such as "n01440764 tench"
    validation: NDArray[np.int64]


def devkit(path: str | os.PathLike[str]) -> Devkit:
    """Raises DataError."""
    path = _path(path)
    found = _contents(path, (META, GROUND_TRUTH))
    words = _leaves(found[META], path)
    wnids = sorted(wnid for wnid, _ in words.values())
    label = {number: wnids.index(wnid) for number, (wnid, _) in words.items()}
    first_word = {wnid: text.split(",")[0].strip() for wnid, text in words.values()}
    try:
        validation = np.array([label[int(line)] for line in found[GROUND_TRUTH].split()], dtype=np.int64)
    except (KeyError, ValueError) as error:
        raise DataError(f"{path}: {GROUND_TRUTH}: {error} is not the number of a class") from error
    return Devkit(path, tuple(wnids), tuple(f"{wnid} {first_word[wnid]}" for wnid in wnids), validation)


def training(path: str | os.PathLike[str], kit: Devkit) -> Source:
    """The images of the training archive, class by class. Raises DataError."""
    path = _path(path)
    names, offsets, sizes, labels = [], [], [], []
    stream = _open(path)
    archives = _members(stream, 0, os.fstat(stream.fileno()).st_size, path)
    for name, start, size in tqdm(
        archives, total=len(kit.wnids), desc=f"reading headers of {path.name}", unit=" classes", disable=None
    ):
        wnid = PurePosixPath(name).stem
        if PurePosixPath(name).suffix != ".tar":
            raise DataError(f"{path}: holds {name}, not archives of classes; is it the archive of --val?")
        if wnid not in kit.wnids:
            raise DataError(f"{path}: class {wnid} is unknown to {kit.path}")
        index = _Index.of(_members(stream, start, start + size, path, nested=True), f"{wnid}/")
        names.append(index.names)
        offsets.append(index.offsets)
        sizes.append(index.sizes)
        labels.append(np.full(len(index.names), kit.wnids.index(wnid)))
    missing = set(kit.wnids) - {kit.wnids[int(label[0])] for label in labels if len(label)}
    if missing:
        raise DataError(
            f"{path}: has no images of {len(missing)} of the {len(kit.wnids)} classes, such as {min(missing)}; "
            "is it the archive of another task?"
        )
    index = _Index(np.concatenate(names), np.concatenate(offsets), np.concatenate(sizes))
    return _source(stream, path, kit, index, np.concatenate(labels))


def validation(path: str | os.PathLike[str], kit: Devkit) -> Source:
    """The images of the validation archive. Raises DataError."""
    path = _path(path)
    stream = _open(path)
    index = _Index.of(_images(_members(stream, 0, os.fstat(stream.fileno()).st_size, path), path), "")
    if len(index.names) != len(kit.validation):
        raise DataError(f"{path}: holds {len(index.names)} images, but {kit.path} has labels of {len(kit.validation)}")
    labels = np.empty_like(kit.validation)
    labels[np.argsort(index.names)] = kit.validation
    return _source(stream, path, kit, index, labels)


Member = tuple[str, int, int]  # name, and first byte and size of its content in the outermost archive


class _Names(Sequence[str]):
    """Short names as one array of bytes: a million Python strings would take several times as much."""

    def __init__(self, names: NDArray[np.bytes_]) -> None:
        self._names = names

    def __len__(self) -> int:
        return len(self._names)

    @overload
    def __getitem__(self, i: int) -> str: ...
    @overload
    def __getitem__(self, i: slice) -> "_Names": ...
    def __getitem__(self, i: int | slice) -> "str | _Names":
        return _Names(self._names[i]) if isinstance(i, slice) else bytes(self._names[i]).decode()


@dataclass(frozen=True)
class _Index:
    names: NDArray[np.bytes_]  # (n,)
    offsets: NDArray[np.int64]  # (n,)
    sizes: NDArray[np.int64]  # (n,)

    @classmethod
    def of(cls, members: Iterator[Member], prefix: str) -> "_Index":
        rows = list(members)
        names = np.array(
            [f"{prefix}{PurePosixPath(name).name}".encode("utf-8", "backslashreplace") for name, *_ in rows]
        )
        places = np.array([place for _, *place in rows], dtype=np.int64).reshape(-1, 2)
        return cls(names.astype(np.bytes_), places[:, 0], places[:, 1])


def _source(stream: BinaryIO, path: Path, kit: Devkit, index: _Index, labels: NDArray[np.int64]) -> Source:
    order = np.lexsort((index.names, labels))  # that of unpacked folders, whatever the archives' own
    offsets, sizes = index.offsets[order], index.sizes[order]

    def read(i: int) -> bytes:
        content = os.pread(stream.fileno(), int(sizes[i]), int(offsets[i]))
        if len(content) != sizes[i]:
            raise OSError("the archive has become shorter")
        return content

    return Source(str(path), kit.classes, _Names(index.names[order]), labels[order], sizes, read, (path,))


def _members(stream: BinaryIO, start: int, end: int, path: Path, nested: bool = False) -> Iterator[Member]:
    """The files of a tar archive that lies in the bytes start <= b < end. Raises DataError."""
    position = start
    while not (nested and position >= end):  # within another archive its end is known, with or without an end mark
        block = os.pread(stream.fileno(), tarfile.BLOCKSIZE, position)
        if len(block) == tarfile.BLOCKSIZE and not any(block):
            return
        try:
            header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            if position == 0:
                raise DataError(f"{path}: not a tar archive") from error
            problem = "ends too early; fetch it again" if len(block) < tarfile.BLOCKSIZE else "is damaged"
            raise DataError(f"{path}: {problem} (no tar header at byte {position})") from error
        content = position + tarfile.BLOCKSIZE
        size = 0 if header.type in _WITHOUT_CONTENT else header.size
        if content + size > end:
            raise DataError(f"{path}: ends too early; fetch it again ({header.name} is cut short)")
        if header.isreg() and not PurePosixPath(header.name).name.startswith("."):
            yield header.name, content, size
        position = content + -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE


def _images(members: Iterator[Member], path: Path) -> Iterator[Member]:
    for member in members:
        if member[0].endswith(".tar"):
            raise DataError(f"{path}: holds {member[0]}, not images; is it the archive of --train?")
        yield member


def _path(path: str | os.PathLike[str]) -> Path:
    return Path(os.path.expanduser(path))


def _open(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error


def _contents(path: Path, names: Sequence[str]) -> dict[str, bytes]:
    """Files of a small archive, whatever folder they are in. Raises DataError."""
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                for name in names:
                    if f"/{member.name}".endswith(f"/{name}") and (content := archive.extractfile(member)):
                        found[name] = content.read()
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise DataError(f"{path}: not a whole archive: {first_line(error)}") from error
    for name in names:
        if name not in found:
            raise DataError(f"{path}: holds no {name}; is it ILSVRC2012_devkit_t12.tar.gz?")
    return found


def _leaves(meta: bytes, path: Path) -> dict[int, tuple[str, str]]:
    """(WordNet identifier, words) by number, of the classes that images have: those without subordinate ones."""
    from scipy.io import loadmat  # not needed by anything else, and slow to import
    from scipy.io.matlab import MatReadError

    try:
        synsets = np.atleast_1d(loadmat(io.BytesIO(meta), squeeze_me=True)["synsets"])
        return {
            int(s["ILSVRC2012_ID"]): (str(s["WNID"]), str(s["words"])) for s in synsets if int(s["num_children"]) == 0
        }
    except (MatReadError, ValueError, TypeError, KeyError, IndexError, NotImplementedError, zlib.error) as error:
        raise DataError(f"{path}: {META} cannot be read: {first_line(error)}") from error
