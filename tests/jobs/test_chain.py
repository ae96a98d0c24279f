import random
import threading

from hypothesis import given
from hypothesis import strategies as st

from jobs import graph
from jobs.chain import Chain
from jobs.crew import Crew


@st.composite
def graphs(draw: st.DrawFn) -> tuple[dict[str, list[str]], dict[str, float]]:
    names = [f"p{i}" for i in range(draw(st.integers(1, 9)))]
    needs = {name: draw(st.lists(st.sampled_from(names[:i]), unique=True)) if i else [] for i, name in enumerate(names)}
    shuffled = draw(st.permutations(names))
    costs = {name: float(draw(st.integers(0, 5))) for name in names}
    return {name: needs[name] for name in shuffled}, costs


def longest(needs: dict[str, list[str]], costs: dict[str, float], name: str) -> float:
    """By trying all paths."""
    return costs[name] + max((longest(needs, costs, o) for o in needs if name in needs[o]), default=0.0)


@given(graphs())
def test_a_paths_cost_is_that_of_the_longest_of_all_paths(
    given_: tuple[dict[str, list[str]], dict[str, float]],
) -> None:
    needs, costs = given_
    assert graph.paths(needs, costs) == {name: longest(needs, costs, name) for name in needs}
    assert all(above < {*needs} for above in (graph.above(needs, name) for name in needs))


@given(graphs(), st.randoms(use_true_random=False), st.integers(1, 3), st.floats(0, 0.4))
def test_every_part_is_done_once_after_what_it_needs_or_given_up_for_what_failed(
    given_: tuple[dict[str, list[str]], dict[str, float]], rng: random.Random, places: int, risk: float
) -> None:
    needs, costs = given_
    chain, begun = Chain(needs, costs), list[str]()
    while not chain.over:
        while chain.ready and len(chain.running) < places:
            urgent = chain.ready
            assert [longest(needs, costs, n) for n in urgent] == sorted(
                (longest(needs, costs, n) for n in urgent), reverse=True
            )
            assert set(needs[urgent[0]]) <= chain.done
            begun.append(urgent[0])
            chain.begin(urgent[0])
        name = rng.choice(sorted(chain.running))
        if rng.random() < risk:
            lost = chain.fail(name, "why")
            assert all(name in graph.above(needs, other) for other in lost)
        else:
            chain.end(name)
    assert len(begun) == len(set(begun))
    assert chain.done | set(chain.failed) | set(chain.given_up) == set(needs)
    for name in needs:
        assert (name in chain.given_up) == bool(graph.above(needs, name) & set(chain.failed))
    assert all(of in graph.above(needs, name) for name, of in chain.given_up.items())


def test_what_was_done_before_is_not_begun() -> None:
    chain = Chain({"a": [], "e": ["a"], "t": ["e", "elsewhere"]}, {"a": 1, "e": 1, "t": 1}, done=["a"])
    assert chain.ready == ["e"]
    chain.begin("e")
    chain.stop("e")
    assert chain.ready == ["e"]
    assert not chain.over


def test_threads_that_end_are_told_of_once_with_their_errors() -> None:
    crew, gate, error = Crew(), threading.Event(), ValueError("no")

    def fail() -> None:
        raise error

    crew.start("waits", lambda: assert_(gate.wait(60)))
    crew.start("fails", fail)
    assert crew.ended(60) == [("fails", error)]
    assert crew.busy
    assert crew.ended(0.01) == []
    gate.set()
    assert crew.ended(60) == [("waits", None)]
    assert not crew.busy


def assert_(truth: bool) -> None:
    assert truth
