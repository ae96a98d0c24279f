"""A board as lines of a terminal: pure, of a given width and height; and as something that rich draws."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, OverflowMethod, RenderResult
from rich.text import Text

from jobs import fold, told, tree
from jobs.board import Snapshot
from jobs.line import Line, Phase

_MARKS = {
    Phase.WAITING: ("○", ".", "dim"),
    Phase.RUNNING: ("●", ">", "bold cyan"),
    Phase.DONE: ("✓", "+", "green"),
    Phase.FAILED: ("✗", "x", "bold red"),
    Phase.LEFT_OUT: ("·", "-", "dim"),
    Phase.STOPPED: ("■", "#", "yellow"),
}
_STYLES = {Phase.WAITING: "dim", Phase.LEFT_OUT: "dim", Phase.FAILED: "red", Phase.STOPPED: "yellow"}
_TOLD = (Phase.RUNNING, Phase.FAILED, Phase.STOPPED)  # at the top, if there are any
_DETAILS = 3  # lines of details below a running node, at most
_LONGEST_BAR, _SHORTEST_BAR = 40, 6
_INDENT = 4


@dataclass(frozen=True)
class Sheet:
    """What is drawn on; a `height` of None is endless. `ascii`: for terminals without more."""

    width: int
    height: int | None = None
    ascii: bool = False

    @property
    def cut(self) -> OverflowMethod:
        """What becomes of text that is too long."""
        return "crop" if self.ascii else "ellipsis"


class Screen:
    """A board as it is at the moment when rich draws it, on a terminal as large as it is then; `below`: a line below
    it."""

    def __init__(self, look: Callable[[], Snapshot], below: Callable[[], str] | None = None) -> None:
        self._look, self._below = look, below
        self.whole = False  # however high the terminal is

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        below = [Text(self._below())] if self._below else []
        for row in below if not self.whole else []:
            row.truncate(options.max_width, overflow=Sheet(0, ascii=options.ascii_only).cut)
        height = None if self.whole else max(1, console.size.height - 1 - len(below))
        sheet = Sheet(options.max_width, height, options.ascii_only)
        yield Text("\n").join([*drawn(self._look(), sheet), *below])


def drawn(board: Snapshot, sheet: Sheet) -> list[Text]:
    """The rows of the terminal, none wider than the sheet, and no more of them than its height."""
    rows = [head(board)] if board.job else []
    details = {line.name: _details(line, sheet.width)[:_DETAILS] for line in board.lines}
    room = None if sheet.height is None else sheet.height - len(rows)
    shown = fold.shown(board.lines, {name: len(each) for name, each in details.items()}, room)
    nodes = list(tree.guides(shown.lines, sheet.ascii))
    width = _Widths.of(nodes, sheet.width)
    for guide, line in nodes:
        rows.append(_row(guide, line, board, sheet, width))
        rows += details[line.name][: shown.details]
    rows += [_folded(phase, lines, sheet) for phase, lines in shown.folded.items()]
    if shown.more:
        rows.append(Text(f"  and {shown.more} more running", style="cyan"))
    rows = rows if sheet.height is None else rows[: sheet.height]
    for row in rows:
        row.plain = harmless(row.plain)
        row.truncate(sheet.width, overflow=sheet.cut)
    return rows


def harmless(text: str) -> str:
    """Without what a terminal would obey, which names of files may hold."""
    return text if text.isprintable() else "".join(letter if letter.isprintable() else " " for letter in text)


def head(board: Snapshot) -> Text:
    """`vgg-e  3 of 9 done, 2 run, 1 failed  4.2 h  8 workers on ...`"""
    counts = {phase: sum(line.phase is phase for line in board.lines) for phase in Phase}
    stand = [f"{counts[Phase.DONE]} of {len(board.lines)} done"]
    stand += [f"{counts[phase]} {phase.value}" for phase in _TOLD if counts[phase]]
    spent = told.briefly(board.now - board.since) if board.now > board.since else ""
    parts = [", ".join(stand), spent, board.where]
    return Text.assemble((board.job, "bold"), *(part for each in parts if each for part in ("  ", each)))


@dataclass(frozen=True)
class _Widths:
    """Of the columns of names, with the tree before them, and of titles, in cells."""

    name: int
    title: int

    @classmethod
    def of(cls, nodes: Sequence[tuple[str, Line]], width: int) -> "_Widths":
        names = max((cell_len(guide + line.name) for guide, line in nodes), default=0)
        titles = max((cell_len(line.title) for _, line in nodes), default=0)
        name = min(names, max(10, width // 3))
        return cls(name, min(titles, max(0, width // 2 - name)))


def _row(guide: str, line: Line, board: Snapshot, sheet: Sheet, width: _Widths) -> Text:
    mark, plain_mark, style = _MARKS[line.phase]
    row = Text.assemble((plain_mark if sheet.ascii else mark, style), " ")
    running = line.phase is Phase.RUNNING
    name = Text.assemble((guide, "dim"), (line.name, "bold" if running else _STYLES.get(line.phase, "")))
    row.append_text(_cell(name, width.name, sheet)).append("  ")
    if width.title:
        row.append_text(_cell(Text(line.title, style="" if running else "dim"), width.title, sheet)).append("  ")
    room = sheet.width - row.cell_len
    state = (
        _progress(line, room, sheet.ascii) if running else Text(_state(line, board, room), _STYLES.get(line.phase, ""))
    )
    return row.append_text(state)


def _cell(text: Text, width: int, sheet: Sheet) -> Text:
    text.truncate(width, overflow=sheet.cut, pad=True)
    return text


def _progress(line: Line, room: int, ascii_only: bool) -> Text:
    """`━━━━━────── 45 %  ≤ 5.2 h left`; a stage may end before its last epoch."""
    if not line.epoch and not line.of_images:
        return Text(line.reason or "starts")
    least = "" if line.of_images else "<" if ascii_only else "≤"
    left = "" if line.left is None else f"  {least}{told.briefly(line.left)} left"
    share = f" {100 * line.share:3.0f} %"
    bar = min(_LONGEST_BAR, room - len(share) - max(len(left), 15))  # which would move with the digits
    return Text.assemble(_bar(line.share, bar, ascii_only) if bar >= _SHORTEST_BAR else "", share, (left, "cyan"))


def _bar(share: float, width: int, ascii_only: bool) -> Text:
    done, half = divmod(round(2 * share * width), 2)
    full, part, empty = ("=", "-", "-") if ascii_only else ("━", "╸", "─")
    return Text.assemble((full * done + part * half, "cyan"), (empty * (width - done - half), "dim"))


def _state(line: Line, board: Snapshot, room: int) -> str:
    """Of one that does not run, in words: as many as there is room for, in this order; one at least."""
    seconds = line.spent(board.now)
    spent = [told.briefly(seconds)] if seconds else []
    reason = [line.reason] if line.reason else []
    match line.phase:
        case Phase.WAITING:
            return line.reason or _waits(line, board)
        case Phase.LEFT_OUT:
            return ": ".join(["left out", *reason])
        case Phase.DONE:
            parts = [*told.best(line), *reason, *spent] or ["done"]
        case _:
            after = [f"after epoch {line.epoch - (line.step < line.steps)}"] if line.epoch else []
            parts = [" ".join([line.phase.value, *after]), *spent, *([] if line.phase is Phase.FAILED else reason)]
    text = parts[0]
    for part in parts[1:]:
        text += f"  {part}" if cell_len(text) + 2 + cell_len(part) <= room else ""
    return text


def _waits(line: Line, board: Snapshot) -> str:
    ended = {other.name for other in board.lines if other.phase is Phase.DONE}
    needs = [need for need in line.needs if need not in ended]
    return f"waits for {', '.join(needs)}" if needs else "waits for room"


def _details(line: Line, width: int) -> list[Text]:
    """Of one that runs: what it is at, as many parts to a row as it takes, and what is odd about it; of one that failed
    why."""
    if line.phase is Phase.FAILED and line.reason:
        return [Text(" " * _INDENT + line.reason, style="red")]
    if line.phase is not Phase.RUNNING:
        return []
    rows = [" " * _INDENT]
    for part in told.parts(line):
        if len(rows[-1]) > _INDENT and len(rows[-1]) + len(part) > width:
            rows.append(" " * _INDENT)
        rows[-1] += part + "  "
    details = [Text(row.rstrip(), style="dim") for row in rows if row.strip()]
    if line.note or line.warnings:
        count = f"{line.warnings} warnings, the last: " if line.warnings > 1 else "warning: "
        details.append(Text(" " * _INDENT + (line.note or count + line.warning), style="yellow"))
    return details


def _folded(phase: Phase, lines: Sequence[Line], sheet: Sheet) -> Text:
    """`○ 14 waiting: e-384, e-jitter, ...`"""
    mark, plain_mark, style = _MARKS[phase]
    names = ", ".join(line.name for line in lines)
    return Text.assemble((plain_mark if sheet.ascii else mark, style), f" {len(lines)} {phase.value}: ", (names, "dim"))
