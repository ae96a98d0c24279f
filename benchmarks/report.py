"""What a part of a benchmark found, written line by line as it is found: a part that is cut off leaves what it has."""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

Cell: TypeAlias = str | int | float | bool | None


@dataclass(frozen=True)
class Check:
    """`value` has to be at most `most`, and at least `least`, where these are given. `goal`: to be reached, and told of
    if it is not, but no error."""

    name: str
    value: float
    most: float | None = None
    least: float | None = None
    goal: bool = False

    @property
    def passed(self) -> bool:
        """Never, if the value is no number."""
        above = self.least is None or self.value >= self.least
        below = self.most is None or self.value <= self.most
        return math.isfinite(self.value) and above and below


@dataclass
class Findings:
    """Of one part: `tables` by their titles, each a list of rows with the same cells; `left_out`: what there was no
    time for; `error`: what ended it."""

    checks: list[Check] = field(default_factory=list)
    tables: dict[str, list[dict[str, Cell]]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    error: str | None = None

    @property
    def passed(self) -> bool:
        """Whether nothing went wrong; a goal that is missed is no error, a part without a check is one."""
        hard = [check for check in self.checks if not check.goal]
        return self.error is None and bool(hard) and all(check.passed for check in hard)


class Report:
    """Takes what one part finds."""

    def __init__(self, file: Path) -> None:
        self._file = file
        file.touch()

    def check(
        self, name: str, value: float, *, most: float | None = None, least: float | None = None, goal: bool = False
    ) -> None:
        """`name`: what was measured, with its unit. A bound is needed."""
        assert most is not None or least is not None, name
        self._write("check", asdict(Check(name, float(value), most, least, goal)))

    def row(self, table: str, **cells: Cell) -> None:
        """A line of the table with this title. All its rows have the same cells, named with their units."""
        self._write("row", {"table": table, "cells": cells})

    def note(self, text: str) -> None:
        self._write("note", {"text": text})

    def left_out(self, name: str) -> None:
        """A piece of the part, for want of time."""
        self._write("left out", {"text": name})

    def error(self, text: str) -> None:
        self._write("error", {"text": text})

    def _write(self, kind: str, content: dict[str, Any]) -> None:
        with self._file.open("a") as out:
            out.write(json.dumps({"kind": kind, **content}) + "\n")


def read(file: Path) -> Findings:
    """A last line that was cut off is left out."""
    found = Findings()
    for line in file.read_text().splitlines() if file.exists() else ():
        try:
            content = json.loads(line)
        except json.JSONDecodeError:
            continue
        kind = content.pop("kind")
        if kind == "check":
            found.checks.append(Check(**content))
        elif kind == "row":
            found.tables.setdefault(content["table"], []).append(content["cells"])
        elif kind == "note":
            found.notes.append(content["text"])
        elif kind == "left out":
            found.left_out.append(content["text"])
        else:
            found.error = "; ".join(filter(None, (found.error, content["text"])))
    return found


def text(title: str, found: Findings) -> str:
    """For people."""
    lines = [title, "=" * len(title)]
    for name, rows in found.tables.items():
        lines += ["", name, *_table(rows)]
    if found.checks:
        lines += ["", *_table([_check(check) for check in found.checks])]
    lines += [f"note: {note}" for note in found.notes]
    lines += [f"left out, for want of time: {name}" for name in found.left_out]
    if found.error is not None:
        lines += ["", f"ended by: {found.error}"]
    return "\n".join(lines)


def _check(check: Check) -> dict[str, Cell]:
    least = () if check.least is None else (f"at least {check.least:g}",)
    most = () if check.most is None else (f"at most {check.most:g}",)
    verdict = "ok" if check.passed else "missed" if check.goal else "WRONG"
    return {"check": check.name, "value": check.value, "bound": ", ".join((*least, *most)), "": verdict}


def _table(rows: Sequence[dict[str, Cell]]) -> list[str]:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    cells = [columns, *([_cell(row.get(name)) for name in columns] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    words = [all(isinstance(row.get(name), str) for row in rows) for name in columns]
    return [_aligned(line, widths, words) for line in cells]


def _aligned(line: Sequence[str], widths: Iterable[int], words: Iterable[bool]) -> str:
    parts = (c.ljust(w) if left else c.rjust(w) for c, w, left in zip(line, widths, words, strict=True))
    return "  ".join(parts).rstrip()


def _cell(value: Cell) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
