"""A job's status on the screen: once, or until its run ends."""

import json
import sys
import time
from collections.abc import Iterator

from rich.console import Console
from rich.live import Live
from rich.text import Text

from jobs import current_run, status, told
from jobs.board import Snapshot
from jobs.current_run import Found, Standing
from jobs.screen import Screen, Sheet, drawn
from jobs.status import Status
from pipelines.errors import ClusterError
from pipelines.location import Location

_SILENT_SECONDS = 60.0  # after which a log gets a line of what goes on
_PICTURES_A_SECOND = 2


def show(found: Found) -> None:
    console = Console()
    sheet = Sheet(console.width, ascii=console.options.ascii_only)
    for row in [*drawn(found.board, sheet), Text(found.text)]:
        console.print(row, soft_wrap=True)


def follow(root: Location, patience_seconds: float, as_json: bool) -> int:
    """Until the run ends, or its driver has not been heard of for so long. Returns the exit status. Raises DataError:
    there is no such run; ClusterError: the storage cannot be read."""
    found = current_run.look(root, patience_seconds)
    if as_json or not (sys.stdout.isatty() and Console().is_interactive):
        return _logged(found, root, patience_seconds, as_json)
    if found.standing is not Standing.RUNNING:
        show(found)
        return found.exit_status
    newest = found
    screen = Screen(lambda: newest.board, lambda: newest.text)
    with Live(get_renderable=lambda: screen, refresh_per_second=_PICTURES_A_SECOND, vertical_overflow="crop"):
        for each in _founds(found, root, patience_seconds):
            newest = each
        screen.whole = True
    return newest.exit_status


def _logged(found: Found, root: Location, patience_seconds: float, as_json: bool) -> int:
    if not as_json:
        show(found)
    else:
        print(json.dumps(found.plain()), flush=True)
    said, newest = time.monotonic(), found
    for each in _founds(found, root, patience_seconds):
        silent = time.monotonic() - said >= _SILENT_SECONDS
        lines = [json.dumps(each.plain())] if as_json else list(changed(newest.board, each.board, silent))
        for line in lines:
            print(line, flush=True)
            said = time.monotonic()
        newest = each
    if newest is not found and not as_json:
        print(newest.text, flush=True)
    return newest.exit_status


def changed(before: Snapshot, after: Snapshot, silent: bool) -> Iterator[str]:
    """Lines of what is new; if there was none for long (`silent`), of what runs."""
    known = {line.name: line for line in before.lines}
    for line in after.lines:
        text = told.changes(known.get(line.name), line)
        if text is None and silent and line.since is not None:
            text = told.progress(line)
        if text is not None:
            yield text


def _founds(found: Found, root: Location, patience_seconds: float) -> Iterator[Found]:
    """What becomes of a run, look by look, until it has ended."""
    last, moved = found.status, time.monotonic()
    while found.standing is Standing.RUNNING and last is not None:
        time.sleep(current_run.pause(root))
        now = _read(root)
        if now is not None and (now.begun, now.counter) != (last.begun, last.counter):
            last, moved = now, time.monotonic()
            found = Found(Standing(now.ended.how) if now.ended else Standing.RUNNING, now.board, now)
            yield found
        elif time.monotonic() - moved > patience_seconds:
            found = Found(Standing.SILENT, last.board, last)
            yield found


def _read(root: Location) -> Status | None:
    """None while the storage cannot be read."""
    try:
        return status.read(root)
    except ClusterError:
        return None
