"""Kinds of arguments of the benchmarks' command lines: what cannot be is told of before anything starts."""

import argparse
from collections.abc import Callable
from pathlib import Path


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
    def read(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text}: is no whole number") from None
        _check(number, least, most)
        return number

    return read


def number(least: float, most: float) -> Callable[[str], float]:
    def read(text: str) -> float:
        try:
            found = float(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text}: is no number") from None
        _check(found, least, most)
        return found

    return read


def _check(found: float, least: float, most: float) -> None:
    if not least <= found <= most:
        raise argparse.ArgumentTypeError(f"{found:g}: at least {least:g}, at most {most:g}")
