"""What a cluster can give to workers, and what each of them gets of it."""

import sys
from dataclasses import dataclass
from typing import Any

import ray
import ray._private.state
import ray._private.worker
from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply

from cluster.settings import ClusterSettings
from pipelines.errors import ClusterError

_ANSWER_SECONDS = 30


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


def fit(settings: ClusterSettings, nodes: list[Node], most: Node | None, at_once: int = 1) -> Shape:
    """`most`: CPUs and GPUs that the cluster has, or can grow to; None: it grows, and nobody says how far, so that
    numbers are taken at their word.

    The least workers have to find a place. With `cpus_per_worker: auto` a worker gets the most CPUs with which as many
    workers find one as can at all: those of one stage, or of as many stages as are to go on side by side. With
    `side_by_side: auto` these are all that find a GPU each, and without GPUs it is one.
    """
    least, workers = settings.workers
    gpus = settings.gpus_per_worker
    there = Node(sum(n.cpus for n in nodes), sum(n.gpus for n in nodes))
    if gpus == "auto":
        gpus = 1 if (most or there).gpus >= least else 0
    auto = settings.cpus_per_worker == "auto"
    beside = settings.side_by_side
    stages = min(at_once, (at_once if gpus else 1) if beside == "auto" else beside)
    aim = _aim(places(nodes, 1, gpus), stages, least, workers)
    # 1 where the cluster has to grow first.
    cpus = next((c for c in range(max((n.cpus for n in nodes), default=0), 0, -1) if places(nodes, c, gpus) >= aim), 1)
    wanted = cpus if auto else int(settings.cpus_per_worker)
    if places(nodes, wanted, gpus) < least:
        _check_growth(settings, there, most, Node(least * wanted, least * gpus), len(nodes))
    return Shape(workers, wanted, gpus, least, not auto)


def _check_growth(settings: ClusterSettings, there: Node, most: Node | None, wanted: Node, nodes: int) -> None:
    """Whether a cluster without room for the least workers can come to have it: `wanted`, by all of them together.
    Raises ClusterError."""
    least = settings.workers[0]
    if most is None:
        names = [name for name in ("cpus_per_worker", "gpus_per_worker") if getattr(settings, name) == "auto"]
        if names:
            raise ClusterError(
                f"cluster.{' and cluster.'.join(names)}: auto goes by the nodes that are there, which have no room for "
                f"{_count(least, 'worker')}, and this cluster grows without saying what into: give "
                f"{'a number' if len(names) == 1 else 'numbers'}"
            )
        return
    grows = most.cpus > there.cpus or most.gpus > there.gpus
    if not (grows and wanted.cpus <= most.cpus and wanted.gpus <= most.gpus):
        each = _count(wanted.cpus // least, "CPU") + (f" and {wanted.gpus // least} GPU" if wanted.gpus else "")
        raise ClusterError(
            f"cluster.workers: {least} workers with {each} each are more than the cluster can give: it has "
            f"{most.cpus} CPUs and {most.gpus} GPUs on {_count(nodes, 'node')}"
        )


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
    if not can_grow():
        return places(nodes(), on.cpus, on.gpus)
    most = _most()
    if most is None:
        return sys.maxsize
    return min(most.cpus // on.cpus, most.gpus // on.gpus) if on.gpus else most.cpus // on.cpus


def can_grow() -> bool:
    """Whether an autoscaler may add to the cluster."""
    most, now = _most(), _node(ray.cluster_resources())
    return most is None or most.cpus > now.cpus or most.gpus > now.gpus


def leaving() -> set[str]:
    """The ids of nodes that are being drained: they will be taken away."""
    return set(ray._private.state.state.get_draining_nodes())


def _staying() -> list[dict[str, Any]]:
    gone = leaving()
    return [node for node in ray.nodes() if node["Alive"] and node["NodeID"] not in gone]


def _node(resources: dict[str, float]) -> Node:
    return Node(int(resources.get("CPU", 0)), int(resources.get("GPU", 0)))


def _most() -> Node | None:
    """What the cluster has, or what its autoscaler may bring it to; None: that has not said."""
    later = ray._private.state.state.get_max_resources_from_cluster_config()
    if later is None and _autoscaled():
        return None
    now, then = _node(ray.cluster_resources()), _node(later or {})
    return Node(max(now.cpus, then.cpus), max(now.gpus, then.gpus))


def _autoscaled() -> bool:
    """Whether an autoscaler looks after the cluster: Ray's second version, as on Kubernetes, reports on what it does,
    though not on what it may do."""
    reply = GetClusterStatusReply()
    reply.ParseFromString(ray._private.worker.global_worker.gcs_client.get_cluster_status(timeout_s=_ANSWER_SECONDS))
    return reply.autoscaling_state.autoscaler_state_version > 0


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"
