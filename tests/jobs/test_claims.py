"""With how many workers a further part of a run begins, on clusters that grow."""

from dataclasses import dataclass

import pytest

from cluster import launch, place
from cluster.mailbox import Listen
from cluster.place import Shape
from jobs.claims import Claims

ON = Shape(workers=4, cpus=8, gpus=1, least=2)


@dataclass
class Cluster:
    """`room`: places that are free now; `growth`: places of all workers when it has grown; None: it does not."""

    room: int
    growth: int | None


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    found = Cluster(0, None)
    monkeypatch.setattr(launch, "room", lambda on, test: found.room)
    monkeypatch.setattr(place, "growth", lambda on: found.growth)
    return found


def begin(claims: Claims, *names: str) -> list[Listen]:
    return [claims.add(name, claims.workers(test=False)) for name in names]


def at_work(hear: Listen, count: int) -> None:
    hear({"kind": "workers", "count": count})


def test_where_the_cluster_says_how_far_it_grows_all_that_will_fit_begins_at_once(cluster: Cluster) -> None:
    cluster.growth, claims = 10, Claims(ON)
    begin(claims, "a", "b")
    assert claims.workers(test=False) == 2, "what is left of ten"
    begin(claims, "c")
    assert (claims.workers(test=False), claims.workers(test=True)) == (0, 0), "all is promised"


def test_where_nobody_says_how_far_the_cluster_grows_one_part_at_a_time_finds_out(cluster: Cluster) -> None:
    cluster.growth, claims = place.UNKNOWN, Claims(ON)
    (first,) = begin(claims, "a")
    assert (claims.workers(test=False), claims.workers(test=True)) == (0, 0), "it has not got its workers yet"
    at_work(first, 4)
    assert claims.workers(test=False) == 4, "now the next one may ask"
    (second,) = begin(claims, "b")
    assert claims.workers(test=False) == 0
    at_work(second, 2)
    assert claims.workers(test=False) == 4, "it has what it can get"
    first({"kind": "lost"})
    assert claims.workers(test=False) == 0, "its workers have places to find first"
    at_work(first, 4)
    assert claims.workers(test=True) == 4


def test_free_places_are_taken_while_another_part_waits_for_the_cluster_to_grow(cluster: Cluster) -> None:
    cluster.growth, cluster.room, claims = place.UNKNOWN, 7, Claims(ON)
    begin(claims, "a")
    assert claims.workers(test=False) == 3, "seven are free, and four of them promised"


def test_a_cluster_that_did_not_grow_is_not_asked_again(cluster: Cluster) -> None:
    cluster.growth, claims = place.UNKNOWN, Claims(ON)
    (first,) = begin(claims, "a")
    at_work(first, 4)
    begin(claims, "b")
    claims.lacked_room()
    claims.remove("b")
    assert claims.workers(test=False) == 0
    cluster.room = 3
    assert claims.workers(test=False) == 3, "somebody else has left"
    claims.remove("a")
    cluster.room = 0
    assert claims.workers(test=False) == 4, "alone it waits for room itself"
