"""When each part of a job would begin and end, side by side with others where there is room; pure."""

from collections.abc import Mapping

from jobs import graph
from jobs.graph import Needs

Timetable = dict[str, tuple[float, float]]  # of each part when it begins and when it ends


def timetable(
    needs: Needs, lengths: Mapping[str, float], places: int | None = None, costs: Mapping[str, float] | None = None
) -> Timetable:
    """As a run does it: whatever is ready begins when a place is free, that with the longest path of work behind it
    first, of equals as written.

    `lengths`: how long each part takes. `places`: parts at a time, at most; None: as many as are ready. `costs`: what
    urgency is measured by, the lengths if they are not given.
    """
    assert places is None or places >= 1, places
    urgency = graph.paths(needs, lengths if costs is None else costs)
    waiting = sorted(needs, key=lambda name: -urgency[name])
    found: Timetable = {}
    under_way: set[str] = set()
    done: set[str] = set()
    now = 0.0
    while waiting or under_way:
        for name in [name for name in waiting if all(other in done or other not in needs for other in needs[name])]:
            if places is None or len(under_way) < places:
                found[name] = (now, now + lengths[name])
                under_way.add(name)
                waiting.remove(name)
        now = min(found[name][1] for name in under_way)
        ended = {name for name in under_way if found[name][1] <= now}
        under_way -= ended
        done |= ended
    return found


def whole(table: Timetable) -> float:
    """How long all of it takes."""
    return max((end for _, end in table.values()), default=0.0)


def at_once(table: Timetable) -> int:
    """The most parts that are under way at a time; those that take no time are not."""
    changes = sorted(
        (time, step) for begin, end in table.values() if end > begin for time, step in ((begin, 1), (end, -1))
    )
    most = now = 0
    for _, step in changes:
        now += step
        most = max(most, now)
    return most
