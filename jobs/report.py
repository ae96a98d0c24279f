"""The table of a job's tests: on the screen, as CSV and as Markdown."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass

from cluster.metrics import Totals

_HEAD = ("test", "model", "net", "S", "Q", "images", "top-1 error %", "top-5 error %", "right %")


@dataclass(frozen=True)
class Row:
    """One net's result in one test. `scale` is S in training, `scales` are the Q of the test."""

    test: str
    model: str
    net: str
    scale: tuple[int, int]
    scales: tuple[int, ...]
    totals: Totals

    def cells(self) -> tuple[str, ...]:
        low, high = self.scale
        t = self.totals
        return (
            self.test,
            self.model,
            self.net,
            str(low) if low == high else f"{low}-{high}",
            " ".join(str(q) for q in self.scales),
            str(t.images),
            f"{100 * (1 - t.accuracy):.2f}",
            f"{100 * (1 - t.accuracy5):.2f}",
            f"{100 * t.accuracy:.2f}",
        )


def text(rows: Sequence[Row]) -> str:
    """Aligned columns, numbers to the right."""
    table = [_HEAD, *(row.cells() for row in rows)]
    widths = [max(len(line[i]) for line in table) for i in range(len(_HEAD))]
    lines = [
        "  ".join(
            cell.ljust(w) if i < 3 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in table
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def markdown(rows: Sequence[Row]) -> str:
    lines = [_HEAD, ("---",) * 3 + ("---:",) * (len(_HEAD) - 3), *(row.cells() for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def as_csv(rows: Sequence[Row]) -> str:
    return csv_text([(*_HEAD, "unreadable"), *((*row.cells(), str(row.totals.unreadable)) for row in rows)])


def csv_lines(text: str) -> list[list[str]]:
    """Without the head."""
    return list(csv.reader(io.StringIO(text)))[1:]


def csv_text(lines: Sequence[Sequence[str]]) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(lines)
    return out.getvalue()
