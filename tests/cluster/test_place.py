"""What workers get of a cluster."""

import pytest
from pydantic import ValidationError

from cluster.place import Node, Shape, fit
from cluster.settings import ClusterSettings
from pipelines.errors import ClusterError


def fitted(nodes: list[Node], most: Node | None = None, **cluster: object) -> Shape:
    whole = most or Node(sum(n.cpus for n in nodes), sum(n.gpus for n in nodes))
    return fit(ClusterSettings.model_validate(cluster), nodes, whole)


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


@pytest.mark.parametrize("wrong", [0, [0, 2], [3, 2], [1, 2, 3], "two", 1.5, [1.0, 2.0], True])
def test_workers_are_a_number_or_a_least_and_a_most(wrong: object) -> None:
    with pytest.raises(ValidationError):
        ClusterSettings.model_validate({"workers": wrong})
    assert ClusterSettings(workers=3).workers == (3, 3)  # type: ignore[arg-type]
