"""Schedules of small random graphs against a clock that ticks, against bounds, and against the best of all orders."""

from itertools import permutations

from hypothesis import given, settings
from hypothesis import strategies as st

from jobs import graph
from jobs.timetable import at_once, timetable, whole

Graph = dict[str, list[str]]


@st.composite
def graphs(draw: st.DrawFn) -> tuple[Graph, dict[str, float]]:
    """Up to five parts of whole lengths, each of which may wait for any of those before it."""
    names = "abcde"[: draw(st.integers(1, 5))]
    needs = {name: [other for other in names[:i] if draw(st.booleans())] for i, name in enumerate(names)}
    return needs, {name: float(draw(st.integers(0, 5))) for name in names}


def ticked(needs: Graph, lengths: dict[str, float], places: int, order: list[str]) -> float:
    """The whole's length, by a clock; in `order` those that are ready take places."""
    left, done, running, now = dict(lengths), set[str](), set[str](), 0
    while len(done) < len(needs):
        before = None
        while before != (done, running):
            before = (set(done), set(running))
            ready = [n for n in order if n not in done | running and done.issuperset(needs[n])]
            running |= set(ready[: places - len(running)])
            ended = {n for n in running if not left[n]}
            running, done = running - ended, done | ended
        for name in running:
            left[name] -= 1
        now += bool(running)
    return float(now)


@settings(max_examples=60, deadline=None)
@given(graphs(), st.integers(1, 3))
def test_parts_begin_after_those_that_they_need_and_find_a_place(
    made: tuple[Graph, dict[str, float]], places: int
) -> None:
    needs, lengths = made
    table = timetable(needs, lengths, places)
    assert {name: end - begin for name, (begin, end) in table.items()} == lengths
    for name, others in needs.items():
        assert all(table[other][1] <= table[name][0] for other in others)
    for moment, _ in table.values():
        assert sum(begin <= moment < end for begin, end in table.values()) <= places
    assert at_once(table) <= places


@settings(max_examples=60, deadline=None)
@given(graphs(), st.integers(1, 3))
def test_the_whole_is_as_long_as_a_clock_says_and_never_shorter_than_it_can_be(
    made: tuple[Graph, dict[str, float]], places: int
) -> None:
    needs, lengths = made
    paths = graph.paths(needs, lengths)
    found = whole(timetable(needs, lengths, places))
    assert found == ticked(needs, lengths, places, sorted(needs, key=lambda name: -paths[name]))
    assert found >= max(*paths.values(), sum(lengths.values()) / places)
    best = min(ticked(needs, lengths, places, list(order)) for order in permutations(needs))
    assert found <= (2 - 1 / places) * best  # Graham 1969
    assert places > 1 or found == sum(lengths.values())


@settings(max_examples=60, deadline=None)
@given(graphs())
def test_without_a_bound_the_whole_is_the_longest_path(made: tuple[Graph, dict[str, float]]) -> None:
    needs, lengths = made
    assert whole(timetable(needs, lengths)) == max(graph.paths(needs, lengths).values())


def test_the_longest_path_goes_first_and_urgency_may_be_measured_by_something_else() -> None:
    needs: Graph = {"short": [], "long": [], "after": ["long"]}
    lengths = {"short": 1.0, "long": 1.0, "after": 3.0}
    assert timetable(needs, lengths, 1) == {"long": (0, 1), "after": (1, 4), "short": (4, 5)}
    costs = {"short": 9.0, "long": 1.0, "after": 1.0}
    assert timetable(needs, lengths, 1, costs) == {"short": (0, 1), "long": (1, 2), "after": (2, 5)}
    assert at_once(timetable(needs, lengths)) == 2
