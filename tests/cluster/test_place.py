"""What workers get of a cluster."""

import random

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from pydantic import ValidationError

from cluster.place import Node, Shape, fit, fits, places
from cluster.settings import ClusterSettings
from pipelines.errors import ClusterError

CLUSTERS = st.lists(st.builds(Node, st.integers(1, 40), st.integers(0, 8)), min_size=1, max_size=5)


def fitted(nodes: list[Node], most: Node | None = None, at_once: int = 1, **cluster: object) -> Shape:
    whole = most or Node(sum(n.cpus for n in nodes), sum(n.gpus for n in nodes))
    return fit(ClusterSettings.model_validate(cluster), nodes, whole, at_once)


def test_workers_get_what_the_cluster_has_or_a_clear_refusal() -> None:
    assert fitted([Node(2, 0)], workers=2) == Shape(2, 1, 0, 2)
    assert fitted([Node(0, 0), Node(16, 4), Node(16, 4)], workers=8) == Shape(8, 4, 1, 8)
    assert fitted([Node(8, 0), Node(4, 0)], workers=3) == Shape(3, 4, 0, 3)
    with pytest.raises(ClusterError, match=r"9 workers with 1 CPU each .* it has 8 CPUs and 0 GPUs on 1 node$"):
        fitted([Node(8, 0)], workers=9)
    with pytest.raises(ClusterError, match="1 CPU and 1 GPU each"):
        fitted([Node(8, 1)], workers=2, gpus_per_worker=1, cpus_per_worker=1)


def test_between_a_least_and_a_most_workers_get_what_lets_most_of_them_begin() -> None:
    assert fitted([Node(2, 0)], workers=[1, 2]) == Shape(2, 1, 0, 1)
    assert fitted([Node(1, 0)], workers=[1, 2]) == Shape(2, 1, 0, 1)
    four, eight = [Node(8, 1)] * 4, [Node(8, 1)] * 8
    assert fitted(four, workers=[4, 8]) == fitted(eight, workers=[4, 8]) == Shape(8, 8, 1, 4)
    with pytest.raises(ClusterError, match=r"^cluster\.workers: 4 workers with"):
        fitted([Node(8, 1)] * 3, workers=[4, 8], gpus_per_worker=1)


def test_a_cluster_that_can_grow_is_taken_at_its_word() -> None:
    assert fitted([Node(0, 0)], Node(32, 4), workers=4) == Shape(4, 1, 1, 4)
    with pytest.raises(ClusterError, match="5 workers"):
        fitted([Node(0, 0)], Node(32, 4), workers=[5, 9], gpus_per_worker=1)


def test_a_cluster_that_grows_and_does_not_say_how_far_takes_numbers_and_refuses_auto() -> None:
    def grown(nodes: list[Node], **cluster: object) -> Shape:
        return fit(ClusterSettings.model_validate(cluster), nodes, None)

    assert grown([Node(0, 0)], workers=[8, 64], gpus_per_worker=1, cpus_per_worker=10) == Shape(64, 10, 1, 8, True)
    with pytest.raises(ClusterError, match=r"^cluster\.cpus_per_worker: auto .* no room for 2 workers, .* a number$"):
        grown([Node(0, 0)], workers=2, gpus_per_worker=1)
    with pytest.raises(ClusterError, match=r"^cluster\.cpus_per_worker and cluster\.gpus_per_worker: auto .* numbers$"):
        grown([Node(0, 0)], workers=1)
    assert grown([Node(0, 0), Node(16, 2)], workers=2) == Shape(2, 8, 1, 2), "what is there is enough"


@pytest.mark.parametrize("wrong", [0, [0, 2], [3, 2], [1, 2, 3], "two", 1.5, [1.0, 2.0], True])
def test_workers_are_a_number_or_a_least_and_a_most(wrong: object) -> None:
    with pytest.raises(ValidationError):
        ClusterSettings.model_validate({"workers": wrong})
    assert ClusterSettings(workers=3).workers == (3, 3)  # type: ignore[arg-type]


def test_stages_side_by_side_share_the_cpus() -> None:
    eight, gpus = [Node(8, 0)], [Node(16, 4), Node(16, 4)]
    assert fitted(eight, at_once=3, workers=2) == Shape(2, 4, 0, 2), "one stage takes all"
    assert fitted(eight, at_once=3, workers=2, side_by_side=2) == Shape(2, 2, 0, 2)
    assert fitted(eight, at_once=2, workers=2, side_by_side=4) == Shape(2, 2, 0, 2), "there are no more than two"
    assert fitted(eight, at_once=1, workers=2, side_by_side=4) == Shape(2, 4, 0, 2)
    assert fitted([Node(5, 0)], at_once=2, workers=3, side_by_side=2) == Shape(3, 1, 0, 3), "not room for two"
    assert fitted(eight, at_once=4, workers=2, side_by_side=2, cpus_per_worker=3) == Shape(2, 3, 0, 2, True)
    assert fitted(gpus, at_once=1, workers=2) == Shape(2, 16, 1, 2)
    assert fitted(gpus, at_once=4, workers=2) == Shape(2, 4, 1, 2), "as many as there are GPUs"
    assert fitted(gpus, at_once=4, workers=2, side_by_side=2) == Shape(2, 8, 1, 2)


@given(CLUSTERS, st.integers(1, 6), st.sampled_from(["auto", 1, 2, 3]), st.integers(1, 4), st.integers(0, 4))
def test_as_many_stages_find_room_as_with_one_cpu_a_worker_and_no_more_cpus_could_be_had(
    nodes: list[Node], at_once: int, beside: object, least: int, more: int
) -> None:
    with_gpus = sum(node.gpus for node in nodes) >= least
    assume(places(nodes, 1, int(with_gpus)) >= least)
    shape = fitted(nodes, at_once=at_once, workers=[least, least + more], side_by_side=beside)
    assert (shape.workers, shape.least, shape.gpus) == (least + more, least, int(with_gpus))
    wanted = (
        at_once if isinstance(beside, str) and with_gpus else min(at_once, beside if isinstance(beside, int) else 1)
    )
    found = {cpus: places(nodes, cpus, shape.gpus) for cpus in range(1, 42)}
    stages = min(wanted, found[1] // least)
    assert stages >= 1
    assert found[shape.cpus] >= min(found[1], stages * shape.workers) >= stages * least
    assert found[shape.cpus + 1] < min(found[1], max(least, stages * shape.workers))


@given(st.integers(0, 10_000), st.integers(1, 12), st.booleans())
def test_no_place_is_promised_twice_and_none_is_left_idle_for_good(seed: int, total: int, crashes: bool) -> None:
    """Stages of random sizes begin and end; their workers take their places some time after they were promised."""
    rng = random.Random(seed)
    waiting = [(least := rng.randint(1, total), rng.randint(least, total + 2)) for _ in range(8)]
    promised: list[list[int]] = []  # workers, those at work
    for _ in range(200):
        room = total - sum(at_work for _, at_work in promised)
        if waiting and (begun := fits(room, sum(all_ - at_work for all_, at_work in promised), *waiting[0])):
            least, most = waiting.pop(0)
            assert least <= begun <= most
            promised.append([begun, 0])
        assert sum(all_ for all_, _ in promised) <= total
        for stage in promised:
            stage[1] = rng.choice((stage[1], stage[0], 0 if crashes else stage[0]))
        if promised and rng.random() < 0.3:
            promised.pop(rng.randrange(len(promised)))
    assert not waiting


def test_where_others_use_the_cluster_their_places_are_not_promised() -> None:
    assert fits(room=1, unseen=0, least=1, most=4) == 1
    assert fits(room=1, unseen=0, least=2, most=4) == 0
    assert fits(room=4, unseen=4, least=1, most=4) == 0
    assert fits(room=1, unseen=2, least=1, most=4) == 0
