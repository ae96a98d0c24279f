"""Kinds of arguments of the benchmarks' command lines: what cannot be is told of before anything starts."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

N = TypeVar("N", int, float)


def new_file(text: str) -> Path:
    """To be written at the end, in a folder that is there already."""
    file = Path(text)
    if not file.absolute().parent.is_dir():
        raise argparse.ArgumentTypeError(f"{text}: there is no folder {file.absolute().parent}")
    if file.is_dir():
        raise argparse.ArgumentTypeError(f"{text}: is a folder")
    return file


def folder(text: str) -> Path:
    if not Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"{text}: there is no such folder")
    return Path(text)


def whole(least: int, most: int) -> Callable[[str], int]:
    return _read(int, "no whole number", least, most)


def number(least: float, most: float) -> Callable[[str], float]:
    return _read(float, "no number", least, most)


def _read(kind: Callable[[str], N], otherwise: str, least: float, most: float) -> Callable[[str], N]:
    def read(text: str) -> N:
        try:
            found = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text}: is {otherwise}") from None
        if not least <= found <= most:
            raise argparse.ArgumentTypeError(f"{found:g}: at least {least:g}, at most {most:g}")
        return found

    return read
