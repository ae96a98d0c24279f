"""Results in the shapes of the paper's tables 3 to 6, ours beside the paper's: for the screen, as Markdown, as CSV, and
as columns for MLflow. Errors are in per cent, each with its 95 % confidence interval (binomial, after Wilson 1927)."""

import csv
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from jobs import paper
from jobs.results import Result, Subject, scale_text

_Z = 1.959963984540054  # 95 % of a normal variate lie within so many deviations
_TOP5_CLASSES = 6  # with fewer, whatever a net says is among its first five
_MODES = ("dense", "multi-crop", "both")
_TITLES = {
    3: "One net, dense, at one scale",
    4: "One net, dense, averaged over scales",
    5: "One net, dense, multi-crop and both",
    6: "Nets fused",
}
_WORDS = {"test", "model", "net", "mode", "mirrored", "precision"}  # columns of text, set to the left

Value = str | int | float | None
Lines = list[tuple[str, ...]]  # of a table, the head first


@dataclass(frozen=True)
class Row:
    result: Result
    paper: paper.Entry | None


@dataclass(frozen=True)
class Table:
    """`number`: of the paper's table that it has the shape of."""

    number: int
    rows: tuple[Row, ...]

    @property
    def title(self) -> str:
        return f"{_TITLES[self.number]} (as the paper's table {self.number})"

    @property
    def lines(self) -> Lines:
        """For people: the head, then rows, without columns that say nothing, without that of the mirror images if all
        were tested alike, and without that of the precision if it is float32."""
        columns = [_cells(self.number, row) for row in self.rows]
        told = [name for name in columns[0] if any(cells[name] for cells in columns)]
        if len({cells["mirrored"] for cells in columns}) == 1:
            told.remove("mirrored")
        if {cells["precision"] for cells in columns} == {"float32"}:
            told.remove("precision")
        return [tuple(told), *(tuple(cells[name] or "-" for name in told) for cells in columns)]


def tables(results: Sequence[Result]) -> list[Table]:
    """Those that have rows. A dense test of a net that was tested in other modes at the same Q is in two of them; what
    two tests have in common is there once."""
    once = list({replace(result, test=""): result for result in reversed(results)}.values())[::-1]
    compared = {_nets(result) for result in once if len(result.subjects) == 1 and result.mode != "dense"}
    found: dict[int, list[Row]] = {number: [] for number in _TITLES}
    for result in once:
        for number in _numbers(result, compared):
            found[number].append(Row(result, paper.entry(number, result)))
    return [Table(number, tuple(_in_order(number, rows))) for number, rows in found.items() if rows]


def _numbers(result: Result, compared: set[tuple[Subject, ...]]) -> Iterator[int]:
    if len(result.subjects) > 1:
        yield 6
        return
    if result.mode == "dense":
        yield 3 if len(result.subjects[0].scales) == 1 else 4
    if _nets(result) in compared:
        yield 5


def _nets(result: Result) -> tuple[Subject, ...]:
    """What was tested, in whatever mode."""
    return tuple(replace(subject, posteriors=()) for subject in result.subjects)


def _in_order(number: int, rows: list[Row]) -> list[Row]:
    """The modes of the same nets below one another."""
    if number < 5:
        return rows
    first: dict[tuple[Subject, ...], int] = {}
    for i, row in enumerate(rows):
        first.setdefault(_nets(row.result), i)
    return sorted(rows, key=lambda row: (first[_nets(row.result)], _MODES.index(row.result.mode)))


def interval(count: int, of: int) -> tuple[float, float]:
    """The 95 % confidence interval of a share, `count` of `of` (Wilson's score interval)."""
    share, z2 = count / of, _Z * _Z
    middle = (share + z2 / (2 * of)) / (1 + z2 / of)
    reach = _Z / (1 + z2 / of) * math.sqrt(share * (1 - share) / of + z2 / (4 * of * of))
    return (0.0 if count == 0 else middle - reach), (1.0 if count == of else middle + reach)


def has_top5(result: Result) -> bool:
    return result.classes >= _TOP5_CLASSES


def _cells(number: int, row: Row) -> dict[str, str]:
    """By the columns' names. Which row of the paper's is meant is told by ours, and by the table's title."""
    result, totals = row.result, row.result.totals
    top5 = has_top5(result)
    printed = [f"{error:.1f}" for error in row.paper.errors] if row.paper else ["", ""]
    return {
        **_subject_cells(result),
        "mode": result.mode if number > 4 else "",
        "top-1 error % (95 %)": error_text(totals.images - totals.top1, totals.images),
        "top-5 error % (95 %)": error_text(totals.images - totals.top5, totals.images) if top5 else "",
        "paper top-1 %": printed[0],
        "paper top-5 %": printed[1],
        "images": str(totals.images),
        "unreadable": str(totals.unreadable or ""),
        "test": result.test,
    }


def _subject_cells(result: Result) -> dict[str, str]:
    """Of fused nets, what all have in common is named once."""
    values: dict[str, list[str]] = {
        "model": [subject.model for subject in result.subjects],
        "net": [subject.net + "-BN" * subject.batch_norm for subject in result.subjects],
        "S": [scale_text(subject.trained) for subject in result.subjects],
        "Q": [" ".join(map(str, subject.scales)) for subject in result.subjects],
        "mirrored": ["yes" if subject.mirror else "no" for subject in result.subjects],
        "precision": [subject.precision for subject in result.subjects],
    }
    return {name: " + ".join(each if name == "model" else dict.fromkeys(each)) for name, each in values.items()}


def error_text(wrong: int, images: int) -> str:
    """`1.67 (0.77 to 3.59)`"""
    low, high = interval(wrong, images)
    return f"{100 * wrong / images:.2f} ({100 * low:.2f} to {100 * high:.2f})"


def share_text(share: float) -> str:
    """`97.3 %`, not to be broken"""
    return f"{100 * share:.1f}\u00a0%"


def text(tables: Sequence[Table]) -> str:
    """Aligned columns, numbers to the right."""
    return "\n\n".join(f"{table.title}\n{_aligned(table.lines)}" for table in tables)


def _aligned(lines: Lines) -> str:
    head = lines[0]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    texts = [
        "  ".join(
            cell.ljust(w) if is_words(name) else cell.rjust(w) for name, cell, w in zip(head, line, widths, strict=True)
        ).rstrip()
        for line in lines
    ]
    return "\n".join([texts[0], "-" * max(map(len, texts)), *texts[1:]])


def is_words(column: str) -> bool:
    """Whether a column with this head is of words, and not of numbers."""
    return column in _WORDS


def markdown(tables: Sequence[Table]) -> str:
    return "\n".join(f"### {table.title}\n\n{_markdown(table.lines)}" for table in tables)


def _markdown(lines: Lines) -> str:
    rule = tuple("---" if is_words(name) else "---:" for name in lines[0])
    shown = [tuple(cell.replace("|", "\\|") for cell in line) for line in lines]
    return "".join(f"| {' | '.join(line)} |\n" for line in (shown[0], rule, *shown[1:]))


def records(tables: Sequence[Table]) -> list[dict[str, Value]]:
    """One for each row, for programs: every column in each, numbers as numbers, None where there is nothing to say."""
    return [_record(table.number, row) for table in tables for row in table.rows]


def _record(number: int, row: Row) -> dict[str, Value]:
    result, totals = row.result, row.result.totals
    low1, high1 = interval(totals.images - totals.top1, totals.images)
    low5, high5 = interval(totals.images - totals.top5, totals.images)
    top5 = {"top-5 error %": 1 - totals.accuracy5, "top-5 low %": low5, "top-5 high %": high5}
    errors = {
        **{"top-1 error %": 1 - totals.accuracy, "top-1 low %": low1, "top-1 high %": high1},
        **(top5 if has_top5(result) else dict.fromkeys(top5, None)),
    }
    paper_top1, paper_top5 = row.paper.errors if row.paper else (None, None)
    return {
        "table": number,
        "test": result.test,
        **_subject_cells(result),
        "mode": result.mode,
        "images": totals.images,
        "unreadable": totals.unreadable,
        **{name: None if share is None else round(100 * share, 4) for name, share in errors.items()},
        "loss": round(totals.loss, 6),
        "paper top-1 %": paper_top1,
        "paper top-5 %": paper_top5,
        "paper's row": row.paper.where if row.paper else None,
    }


def columns(tables: Sequence[Table]) -> dict[str, list[Value]]:
    """The records, column by column."""
    found = records(tables)
    return {name: [record[name] for record in found] for name in (found[0] if found else ())}


def as_csv(tables: Sequence[Table]) -> str:
    found = records(tables)
    lines = [["" if value is None else str(value) for value in record.values()] for record in found]
    return csv_text([list(found[0]), *lines] if found else [])


def csv_lines(text: str) -> list[list[str]]:
    """Without the head."""
    return list(csv.reader(io.StringIO(text)))[1:]


def csv_text(lines: Sequence[Sequence[str]]) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(lines)
    return out.getvalue()
