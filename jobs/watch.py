"""What a person sees of a run: in a terminal lines that scroll by above a live view, in logs the lines alone."""

import sys
import threading
import time
import warnings
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from jobs import screen, told
from jobs.board import Board
from jobs.line import Phase
from jobs.screen import Screen

_SILENT_SECONDS = 60.0  # after which a log gets a line of what goes on
_PICTURES_A_SECOND = 4


class Watch:
    """Takes the records of workers, from any thread. `board`: the nodes of a job, if there is one.

    As a context, Python's warnings are lines of it, too, and the live view ends with the block, however that ends.
    """

    def __init__(self, board: Board | None = None, console: Console | None = None) -> None:
        """`console`: a terminal that is drawn on; without one, standard output, if that is one."""
        self.board = board if board is not None else Board()
        self._console = console or Console()
        self._drawn = console is not None or (sys.stdout.isatty() and self._console.is_interactive)
        self._screen = Screen(self.board.snapshot)
        self._live: Live | None = None
        self._lock = threading.Lock()
        self._over = False
        self._piece: str | None = None
        self._unreadable: set[str] = set()
        self._said: dict[str, float] = {}  # when there was a line of each node

    def say(self, line: str = "") -> None:
        """A line of its own, above the live view."""
        try:
            if self._drawn:
                harmless = "\n".join(map(screen.harmless, line.split("\n")))
                self._console.print(Text(harmless), soft_wrap=True)
            else:
                sys.stdout.write(f"{line}\n")
                sys.stdout.flush()
        except OSError:  # a log on a full disk, a pipe that was closed: no reason to end work
            return

    def hear(self, name: str, record: Mapping[str, Any], now: float | None = None) -> None:
        """A record of the node `name` (see `cluster.records`)."""
        at = time.time() if now is None else now
        self.board.hear(name, record, at)
        self._show()
        for line in self._lines(name, record, at):
            self._said[name] = at
            self.say(line)

    def set(self, name: str, phase: Phase, reason: str = "") -> None:
        """The node is in this phase now, for that reason; a line tells of its end."""
        self.board.set(name, phase, reason)
        self._show()
        line = self.board.line(name)
        if line is not None and (text := told.end(line)):
            self.say(text)

    # For verbs that do one piece of work

    def begin(self, what: str, total: int) -> None:
        """A bar of `total` images; of a job's test beside those of its line."""
        known = self.board.line(what) is not None
        self.board.begin(what, total)
        if not known:
            self._piece = what
        self._show()

    def listen(self, record: Mapping[str, Any]) -> None:
        """A record of what was begun last."""
        self.hear(record.get("stage") or self._piece or "", record)

    def done(self) -> None:
        """The bar that was begun goes away."""
        if self._piece is not None:
            self.board.remove(self._piece)
            self._piece = None
            self.close()

    # The view

    def close(self) -> None:
        """The live view ends; what it showed last stays, unless that is nothing."""
        with self._lock:
            live, self._live = self._live, None
        if live is not None:
            self._screen.whole = True
            live.transient = not self.board.snapshot().lines
            live.stop()
            self._screen.whole = False

    def __enter__(self) -> "Watch":
        self._before = warnings.showwarning
        warnings.showwarning = self._warn
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        warnings.showwarning = self._before
        self._over = True
        self.close()

    def _warn(self, message: Warning | str, *_: object, **__: object) -> None:
        if self._drawn:
            self.say(f"warning: {message}")
        else:
            print(f"warning: {message}", file=sys.stderr, flush=True)

    def _show(self) -> None:
        with self._lock:
            if self._drawn and self._live is None and not self._over:
                self._live = Live(
                    console=self._console,
                    get_renderable=lambda: self._screen,
                    refresh_per_second=_PICTURES_A_SECOND,
                    vertical_overflow="crop",
                )
                self._live.start()

    def _lines(self, name: str, record: Mapping[str, Any], now: float) -> list[str]:
        """What is to be said of a record: in a terminal not what the view shows."""
        kind, line = record["kind"], self.board.line(name)
        assert line is not None
        if kind == "unreadable":
            if record["name"] in self._unreadable:
                return []
            self._unreadable.add(record["name"])
        if (text := told.record(name, record)) is not None:
            return [] if self._drawn and kind == "point" else [text]
        silent = now - self._said.setdefault(name, now)
        if self._drawn or kind not in ("tick", "point", "tested") or silent < _SILENT_SECONDS:
            return []
        return [told.progress(line)]
