"""Where images come from: folders of files, and the digits of the demo. Each is names, labels and a reader."""

import errno
import io
import os
import stat
import sys
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipelines import keys
from pipelines.errors import DataError
from pipelines.keys import Purpose

_SPLIT_NAMES = {"train", "training", "val", "valid", "validation", "test"}
# Why a file cannot be read for good; whatever else it may be concerns the disk, the network or the process.
OF_THE_FILE = {
    errno.ENOENT,
    errno.EISDIR,
    errno.ENOTDIR,
    errno.EACCES,
    errno.EPERM,
    errno.ENAMETOOLONG,
    errno.ELOOP,
}
_NAMED = 10  # of folders that are passed over


@dataclass(frozen=True)
class Source:
    """`read(i)` gives the encoded bytes of image i, whose name is `names[i]` and whose class is `labels[i]`."""

    description: str
    classes: tuple[str, ...]
    names: Sequence[str]
    labels: NDArray[np.int64]  # (n,)
    sizes: NDArray[np.int64]  # (n,) bytes; 0 where they are not known before an image is read
    read: Callable[[int], bytes]
    places: tuple[Path, ...] = ()  # the folder or archive that is read, which nothing is written to

    def __len__(self) -> int:
        return len(self.names)

    def subset(self, indices: NDArray[np.int64]) -> "Source":
        return replace(
            self,
            names=tuple(self.names[i] for i in indices),
            labels=self.labels[indices],
            sizes=self.sizes[indices],
            read=lambda i: self.read(int(indices[i])),
        )


def folder(path: str | os.PathLike[str], classes: tuple[str, ...] | None = None) -> Source:
    """A folder of images: one folder per class, searched to any depth; hidden files are passed over.

    `classes`: the classes of the training set, for its validation set; by default the folders' names, sorted.
    Raises DataError.
    """
    root = Path(os.path.expanduser(path))
    if not root.is_dir():
        raise DataError(f"{root}: {'not a folder' if root.exists() else 'no such folder'}")
    folders = sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not folders:
        raise DataError(f"{root}: holds no folders; expected one folder of images for each class")
    names = tuple(_text(p.name) for p in folders)
    if classes is None and set(names) <= _SPLIT_NAMES and any(p.is_dir() for f in folders for p in f.iterdir()):
        raise DataError(
            f"{root}: its folders {', '.join(names)} look like sets, not classes; "
            f"name one as the source and another with --val, such as: {root / names[0]} --val {root / names[-1]}"
        )
    classes = names if classes is None else classes
    unknown = [name for name in names if name not in classes]
    if unknown:
        raise DataError(f"{root}: class {unknown[0]!r} is not among the training set's: {', '.join(classes[:20])}")
    files = sorted(_files_below(root, folders), key=lambda file: file.replace(os.sep, "\0"))  # folder by folder
    label = {folder.name: classes.index(name) for folder, name in zip(folders, names, strict=True)}
    labels = [label[file.split(os.sep, 1)[0]] for file in files]
    if not files:
        raise DataError(f"{root}: its {len(folders)} folders hold no files")
    return Source(
        str(root),
        classes,
        tuple(map(_text, files)),
        np.array(labels, dtype=np.int64),
        np.array([_size(root / file) for file in files], dtype=np.int64),
        lambda i: (root / files[i]).read_bytes(),
        (root,),
    )


def _size(file: Path) -> int:
    """0 for a link to nowhere and the like: reading it will tell. Raises DataError."""
    try:
        return file.stat().st_size
    except OSError as error:
        if error.errno not in OF_THE_FILE:
            _unreadable(error)
        return 0


def _text(name: str) -> str:
    """A file's name as text that can be stored, also where it is not UTF-8."""
    return name.encode("utf-8", "backslashreplace").decode()


def _files_below(root: Path, folders: Sequence[Path]) -> list[str]:
    """The files in the folders of `root`, relative to it. Links are followed after all else, and no folder is entered
    twice: other ways to it are told of.

    Raises DataError: a folder cannot be read.
    """
    seen = {root.resolve()}
    files: list[str] = []
    again: list[str] = []
    waiting = deque(sorted(folders, key=Path.is_symlink))
    while waiting:
        for parent, below, names in os.walk(waiting.popleft(), onerror=_unreadable):
            folder = Path(parent)
            within = folder.relative_to(root)
            if (resolved := folder.resolve()) in seen:
                again.append(str(within))
                below.clear()
                continue
            seen.add(resolved)
            waiting.extend(folder / name for name in sorted(below) if (folder / name).is_symlink())
            files += [
                f"{within}{os.sep}{name}" for name in names if not name.startswith(".") and _is_file(folder / name)
            ]
    if again:
        more = f" and {len(again) - _NAMED} more" if len(again) > _NAMED else ""
        named = ", ".join(map(_text, again[:_NAMED]))
        print(f"{root}: passed over, since they lead to what is in it already: {named}{more}", file=sys.stderr)
    return files


def _is_file(path: Path) -> bool:
    """Or a link that leads nowhere, which is told of when it is read; reading a pipe or a device might never end."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return True


def _unreadable(error: OSError) -> NoReturn:
    raise DataError(f"{error.filename}: cannot be read: {error.strerror or error}") from error


def split(source: Source, fraction: float, seed: int) -> tuple[Source, Source]:
    """(training, validation), `fraction` of each class in the latter, the same for the same seed.

    A class of two images or more has at least one in each. Raises DataError.
    """
    if not 0.0 < fraction < 1.0:
        raise DataError(f"--val {fraction}: a fraction lies between 0 and 1, both excluded")
    chosen = np.zeros(len(source), dtype=bool)
    for label in range(len(source.classes)):
        rows = np.flatnonzero(source.labels == label)
        if len(rows) < 2:
            continue
        n = min(max(round(fraction * len(rows)), 1), len(rows) - 1)
        chosen[rows[keys.permutation(len(rows), seed, 0, Purpose.SPLIT, label)[:n]]] = True
    if not chosen.any():
        raise DataError(f"{source.description}: no class has two images, so none can be set apart for validation")
    return source.subset(np.flatnonzero(~chosen)), source.subset(np.flatnonzero(chosen))


# The 1,797 handwritten digits that come with scikit-learn, 8 x 8 pixels of 17 levels.
_DIGITS_VALIDATION = 0.2
_DIGIT_PIXELS = 38  # the side of the drawn digit
_CANVAS_PIXELS = (46, 52)  # width and height of the image around it, smallest and largest


def digits() -> Source:
    """scikit-learn's digits, each drawn in two colours near a random place of an image of random size, as JPEG."""
    from sklearn.datasets import (
        load_digits,  # not needed by anything else, and slow to import
    )

    pixels, labels = load_digits(return_X_y=True)

    def render(i: int) -> bytes:
        return _render_digit(pixels[i].reshape(8, 8) / 16.0, i)

    names = tuple(f"{label}/{i:04d}.jpg" for i, label in enumerate(labels))
    classes, unknown = tuple(str(d) for d in range(10)), np.zeros(len(labels), np.int64)
    return Source("scikit-learn's digits", classes, names, labels.astype(np.int64), unknown, render)


def digits_split(seed: int) -> tuple[Source, Source]:
    """(training, validation) of the digits."""
    return split(digits(), _DIGITS_VALIDATION, seed)


def _render_digit(ink: NDArray[np.float64], index: int) -> bytes:
    w = keys.words(0, 0, np.array([2 * index, 2 * index + 1]), Purpose.DIGITS)
    low, high = _CANVAS_PIXELS
    width, height = (int(n) for n in low + keys.below(w[0, :2], high - low + 1))
    left = int(keys.below(w[0, 2:3], width - _DIGIT_PIXELS + 1)[0])
    top = int(keys.below(w[0, 3:4], height - _DIGIT_PIXELS + 1)[0])
    paper = np.array([200.0, 200.0, 200.0]) + keys.below(w[1, :3], 56)
    pen = np.frombuffer(w[1, 3:4].tobytes(), np.uint8)[:3] % 80
    drawn = Image.fromarray((ink * 255).round().astype(np.uint8)).resize(
        (_DIGIT_PIXELS, _DIGIT_PIXELS), Image.Resampling.BICUBIC
    )
    cover = np.zeros((height, width, 1))
    cover[top : top + _DIGIT_PIXELS, left : left + _DIGIT_PIXELS, 0] = np.asarray(drawn) / 255.0
    rgb = (paper * (1 - cover) + pen * cover).round().astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(rgb).save(out, "JPEG", quality=90)
    return out.getvalue()
