"""Which lines of a board a terminal has room for. Pure."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from jobs.line import Line, Phase

# What gives way first; those that run are shown as long as there is any room.
ORDER = (Phase.WAITING, Phase.LEFT_OUT, Phase.DONE, Phase.STOPPED, Phase.FAILED)


@dataclass(frozen=True)
class Shown:
    """`details`: rows below each line at most; `folded`: lines that have one row together; `more`: running ones for
    which there is no room at all, and one row that says so."""

    lines: list[Line]
    details: int
    folded: dict[Phase, list[Line]]
    more: int = 0


def shown(lines: Sequence[Line], details: Mapping[str, int], room: int | None) -> Shown:
    """What fits into `room` rows, or all. `details`: how many rows each line would have below it, by its name."""
    most = max(details.values(), default=0)
    if room is None:
        return Shown(list(lines), most, {})
    for kept in range(most, -1, -1):
        if (found := _fold(lines, details, kept, room)) is not None:
            return found
    running = [line for line in lines if line.phase is Phase.RUNNING]
    fits = len(running) if len(running) <= room else max(room - 1, 0)
    return Shown(running[:fits], 0, {}, len(running) - fits)


def _fold(lines: Sequence[Line], details: Mapping[str, int], kept: int, room: int) -> Shown | None:
    """As few as need be give way; None if there is no room even so."""
    heights = {line.name: 1 + min(details[line.name], kept) for line in lines}
    needed, hidden, phases = sum(heights.values()), set[str](), set[Phase]()
    for line in _giving_way(lines):
        if needed + len(phases) <= room:
            break
        needed -= heights[line.name]
        phases.add(line.phase)
        hidden.add(line.name)
    if needed + len(phases) > room:
        return None
    folded = {phase: [line for line in lines if line.name in hidden and line.phase is phase] for phase in ORDER}
    left = [line for line in lines if line.name not in hidden]
    return Shown(left, kept, {phase: each for phase, each in folded.items() if each})


def _giving_way(lines: Sequence[Line]) -> Iterator[Line]:
    """Of what waits the last first, of what has ended the first."""
    for phase in ORDER:
        found = [line for line in lines if line.phase is phase]
        yield from reversed(found) if phase is Phase.WAITING else found
