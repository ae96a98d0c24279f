"""What a cluster can give to workers, and what each of them gets of it."""

from dataclasses import dataclass
from typing import Any

import ray
import ray._private.state

from cluster.settings import ClusterSettings
from pipelines.errors import ClusterError


@dataclass(frozen=True)
class Shape:
    """What each of the `workers` gets; training goes on with as few as `least` of them.

    `cpus_given`: as the job says, and not what there is.
    """

    workers: int
    cpus: int
    gpus: int
    least: int
    cpus_given: bool = False

    def __str__(self) -> str:
        count = str(self.workers) if self.least == self.workers else f"{self.least} to {self.workers}"
        each = f"{_count(self.cpus, 'CPU')}{', 1 GPU' * self.gpus}"
        return f"1 worker with {each}" if self.workers == 1 else f"{count} workers with {each} each"


@dataclass(frozen=True)
class Node:
    cpus: int
    gpus: int


def shape(settings: ClusterSettings, at_once: int = 1) -> Shape:
    """`at_once`: how many stages and tests could go on side by side. Raises ClusterError if the cluster cannot ever
    give it to one of them, saying what it has."""
    return fit(settings, nodes(), _most(), at_once)


def fit(settings: ClusterSettings, nodes: list[Node], most: Node, at_once: int = 1) -> Shape:
    """`most`: CPUs and GPUs that the cluster has, or can grow to.

    The least workers have to find a place. With `cpus_per_worker: auto` a worker gets the most CPUs with which as many
    workers find one as can at all: those of one stage, or of as many stages as are to go on side by side. With
    `side_by_side: auto` these are all that find a GPU each, and without GPUs it is one.
    """
    least, workers = settings.workers
    gpus = settings.gpus_per_worker
    if gpus == "auto":
        gpus = 1 if most.gpus >= least else 0
    auto = settings.cpus_per_worker == "auto"
    beside = settings.side_by_side
    stages = min(at_once, (at_once if gpus else 1) if beside == "auto" else beside)
    aim = _aim(places(nodes, 1, gpus), stages, least, workers)
    # 1 where the cluster has to grow first.
    cpus = next((c for c in range(max((n.cpus for n in nodes), default=0), 0, -1) if places(nodes, c, gpus) >= aim), 1)
    wanted = cpus if auto else int(settings.cpus_per_worker)
    can_grow = most.cpus > sum(n.cpus for n in nodes) or most.gpus > sum(n.gpus for n in nodes)
    enough = places(nodes, wanted, gpus) >= least
    if not enough and not (can_grow and least * wanted <= most.cpus and least * gpus <= most.gpus):
        wants = f"{least} workers with {_count(wanted, 'CPU')}" + (f" and {gpus} GPU" if gpus else "")
        raise ClusterError(
            f"cluster.workers: {wants} each are more than the cluster can give: it has {most.cpus} CPUs "
            f"and {most.gpus} GPUs on {_count(len(nodes), 'node')}"
        )
    return Shape(workers, wanted, gpus, least, not auto)


def _aim(places: int, stages: int, least: int, workers: int) -> int:
    """How many workers are to find a place: of as many of the `stages` as find room for their least ones."""
    fitting = max(1, min(stages, places // least))
    return max(least, min(fitting * workers, places))


def fits(room: int, unseen: int, least: int, most: int) -> int:
    """With how many workers, from `least` to `most`, one more stage or test may begin now; 0: it has to wait.

    `room`: how many places are free, by the cluster's account. `unseen`: how many workers those that go on have been
    promised beyond the ones that are at work and take their places already: so that no place is promised twice while
    processes start, or start again after a crash.
    """
    free = min(most, room - unseen)
    return free if free >= least else 0


def places(nodes: list[Node], cpus: int, gpus: int) -> int:
    """How many workers find a place."""
    return sum(min(n.cpus // cpus, n.gpus // gpus) if gpus else n.cpus // cpus for n in nodes)


def describe(nodes: list[Node]) -> str:
    return f"{_count(len(nodes), 'node')}, {sum(n.cpus for n in nodes)} CPUs, {sum(n.gpus for n in nodes)} GPUs"


def nodes() -> list[Node]:
    """All that are there, and stay: one that is being drained takes no new work."""
    return [_node(node["Resources"]) for node in _staying()]


def room(on: Shape) -> int:
    """How many workers more would find a place now."""
    free = ray._private.state.available_resources_per_node()
    return places([_node(free.get(node["NodeID"], {})) for node in _staying()], on.cpus, on.gpus)


def most_places(on: Shape) -> int:
    """How many workers could find a place if there were no others, and the cluster grew as far as it can."""
    most = _most()
    whole = min(most.cpus // on.cpus, most.gpus // on.gpus) if on.gpus else most.cpus // on.cpus
    return whole if can_grow() else places(nodes(), on.cpus, on.gpus)


def can_grow() -> bool:
    """Whether an autoscaler may add to the cluster."""
    now, later = ray.cluster_resources(), ray._private.state.state.get_max_resources_from_cluster_config() or {}
    return any(later.get(kind, 0) > now.get(kind, 0) for kind in ("CPU", "GPU"))


def leaving() -> set[str]:
    """The ids of nodes that are being drained: they will be taken away."""
    return set(ray._private.state.state.get_draining_nodes())


def _staying() -> list[dict[str, Any]]:
    gone = leaving()
    return [node for node in ray.nodes() if node["Alive"] and node["NodeID"] not in gone]


def _node(resources: dict[str, float]) -> Node:
    return Node(int(resources.get("CPU", 0)), int(resources.get("GPU", 0)))


def _most() -> Node:
    """What the cluster has, or what its autoscaler may bring it to."""
    now = ray.cluster_resources()
    later = ray._private.state.state.get_max_resources_from_cluster_config() or {}
    return Node(*(int(max(now.get(kind, 0), later.get(kind, 0))) for kind in ("CPU", "GPU")))


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"
