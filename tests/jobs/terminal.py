"""Programs in a terminal of a given size, and what a person sees there: as much of a VT100 as the view uses."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
_SEQUENCE = re.compile(r"\x1b\[(\??)([\d;]*)([A-Za-z])|\x1b\]8;[^\x1b]*\x1b\\\\|([\r\n])|([^\x1b\r\n]+)")


class Screen:
    """`lines`: all that was ever written, those above the terminal's height first."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self.lines = [""]
        self.cursor_shown = True
        self._row = self._column = 0

    def feed(self, text: str) -> None:
        end = 0
        for found in _SEQUENCE.finditer(text):
            assert found.start() == end, f"not known: {text[end : found.start()]!r}"
            end = found.end()
            private, numbers, command, line, words = found.groups()
            if line == "\r":
                self._column = 0
            elif line == "\n":
                self._down()
            elif words:
                self._write(words)
            elif command:
                self._do(private + command, numbers)
        assert end == len(text)

    def _do(self, command: str, numbers: str) -> None:
        match command:
            case "A":
                top = max(0, len(self.lines) - self.height)  # what has scrolled off cannot be reached
                self._row = max(top, self._row - int(numbers or 1))
            case "K":
                assert numbers == "2"
                self.lines[self._row] = ""
            case "?h" | "?l":
                assert numbers == "25"
                self.cursor_shown = command == "?h"
            case "m":
                pass  # colours
            case _:
                raise AssertionError(f"not known: {command} {numbers}")

    def _write(self, words: str) -> None:
        for letter in words:
            if self._column == self.width:
                self._column = 0
                self._down()
            line = self.lines[self._row].ljust(self._column)
            self.lines[self._row] = line[: self._column] + letter + line[self._column + 1 :]
            self._column += 1

    def _down(self) -> None:
        self._row += 1
        if self._row == len(self.lines):
            self.lines.append("")


def run_in_terminal(
    program: str, width: int, height: int, act: Callable[[str, subprocess.Popen[bytes], int], None] | None = None
) -> tuple[Screen, int]:
    """What is to be seen at the end of a Python program, and its exit status. `act` gets all that it has written so far
    whenever there is more, its process, and the terminal, which it may write to."""
    master, slave = pty.openpty()
    set_size(slave, width, height)
    environment = {**os.environ, "TERM": "xterm-256color", "PYTHONPATH": str(ROOT)}
    for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES"):
        environment.pop(name, None)
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env=environment,
        start_new_session=True,
        preexec_fn=_own_terminal,  # noqa: PLW1509
    )
    os.close(slave)
    written = b""
    while chunk := _read(master):
        written += chunk
        if act is not None:
            act(written.decode(errors="ignore"), process, master)
    os.close(master)
    screen = Screen(width, height)
    screen.feed(written.decode())
    return screen, process.wait()


def set_size(terminal: int, width: int, height: int) -> None:
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))


def _own_terminal() -> None:
    """So that Ctrl-C reaches this process."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def _read(master: int) -> bytes:
    try:
        return os.read(master, 65536)
    except OSError:  # nobody has the other end any more
        return b""
