"""The driver's side: what the cluster can give, and stages and tests carried out on it."""

import logging
import os
import re
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from cluster.evaluate import Evaluation
from cluster.metrics import Totals
from cluster.settings import ClusterSettings
from cluster.train import Stage
from pipelines.errors import ClusterError, TrainingError, first_line

# Ray reads these when it is imported or started. Without an explicit mode a local Ray makes an authentication token
# that the next `ray start` asks for and `ray job submit` does not send; the poll is every 2 s by default, and a
# worker's end is noticed at the next one.
_ENVIRONMENT = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
for _name, _value in _ENVIRONMENT.items():
    os.environ.setdefault(_name, _value)

import ray  # noqa: E402
import ray.exceptions  # noqa: E402
import ray.train  # noqa: E402
from ray.train.torch import TorchTrainer  # noqa: E402
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy  # noqa: E402

from cluster.worker import evaluate_worker, train_worker  # noqa: E402

Listen = Callable[[dict[str, Any]], None]

_POLL_SECONDS = 0.25
_QUIET_SECONDS = 60  # after which a person is told that workers say nothing; then after twice as long, and so on


@dataclass(frozen=True)
class Shape:
    """What each of the `workers` gets."""

    workers: int
    cpus: int
    gpus: int


@dataclass(frozen=True)
class Node:
    cpus: int
    gpus: int


def connect(address: str | None = None) -> str:
    """To the cluster that RAY_ADDRESS names or that was started on this machine, or to a local Ray of our own; with
    `address` "local" to one of our own in any case.

    Returns a description of it. Raises ClusterError if it cannot be reached.
    """
    if not ray.is_initialized():
        try:
            ray.init(address, log_to_driver=False, logging_level=logging.WARNING)
        except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
            raise ClusterError(f"the Ray cluster cannot be reached: {first_line(error)}") from error
    for name in ("ray.train", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)
    nodes = _nodes()
    cpus, gpus = sum(n.cpus for n in nodes), sum(n.gpus for n in nodes)
    return f"{len(nodes)} node{'s' * (len(nodes) != 1)}, {cpus} CPUs, {gpus} GPUs"


def shape(settings: ClusterSettings) -> Shape:
    """Raises ClusterError if the cluster cannot ever give it, saying what it has."""
    return fit(settings, _nodes(), _most())


def fit(settings: ClusterSettings, nodes: list[Node], most: Node) -> Shape:
    """`most`: CPUs and GPUs that the cluster has, or can grow to."""
    workers = settings.workers
    gpus = settings.gpus_per_worker
    if gpus == "auto":
        gpus = 1 if most.gpus >= workers else 0
    auto = settings.cpus_per_worker == "auto"
    # The most CPUs a worker can have so that all find a place; 1 where the cluster has to grow first.
    cpus = next(
        (c for c in range(max((n.cpus for n in nodes), default=0), 0, -1) if _places(nodes, c, gpus) >= workers), 1
    )
    wanted = cpus if auto else int(settings.cpus_per_worker)
    can_grow = most.cpus > sum(n.cpus for n in nodes) or most.gpus > sum(n.gpus for n in nodes)
    enough = _places(nodes, wanted, gpus) >= workers
    if not enough and not (can_grow and workers * wanted <= most.cpus and workers * gpus <= most.gpus):
        wants = f"{workers} workers with {wanted} CPU{'s' * (wanted != 1)}" + (f" and {gpus} GPU" if gpus else "")
        raise ClusterError(
            f"cluster.workers: {wants} each are more than the cluster can give: it has {most.cpus} CPUs "
            f"and {most.gpus} GPUs on {len(nodes)} node{'s' * (len(nodes) != 1)}"
        )
    return Shape(workers, wanted, gpus)


def _places(nodes: list[Node], cpus: int, gpus: int) -> int:
    return sum(min(n.cpus // cpus, n.gpus // gpus) if gpus else n.cpus // cpus for n in nodes)


def _nodes() -> list[Node]:
    resources = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [Node(int(r.get("CPU", 0)), int(r.get("GPU", 0))) for r in resources]


def _most() -> Node:
    """What the cluster has, or what its autoscaler may bring it to."""
    now = ray.cluster_resources()
    later = ray._private.state.state.get_max_resources_from_cluster_config() or {}
    return Node(*(int(max(now.get(kind, 0), later.get(kind, 0))) for kind in ("CPU", "GPU")))


def train_stage(stage: Stage, on: Shape, max_failures: int, listen: Listen, synchronise: bool = False) -> None:
    """Trains one stage to its end; `listen` gets the records of worker 0. Raises TrainingError."""
    scratch = stage.folder / "ray"
    with _mailbox(listen) as mailbox:
        trainer = TorchTrainer(
            train_worker,
            train_loop_config={
                "stage": stage,
                "mailbox": mailbox,
                "threads": on.cpus,
                "synchronise": synchronise,
            },
            scaling_config=ray.train.ScalingConfig(
                num_workers=on.workers,
                use_gpu=on.gpus > 0,
                resources_per_worker={"CPU": on.cpus, **({"GPU": on.gpus} if on.gpus else {})},
            ),
            # Checkpoints are our own: Ray registers one only at its next poll, and forgets it if the driver dies first.
            run_config=ray.train.RunConfig(
                name=f"attempt-{uuid.uuid4().hex[:8]}",
                storage_path=str(scratch),
                failure_config=ray.train.FailureConfig(max_failures=max_failures),
            ),
        )
        interrupt = signal.getsignal(signal.SIGINT)
        try:
            result = trainer.fit()
        except SystemExit as error:  # Ray's own answer to Ctrl-C
            raise KeyboardInterrupt from error
        except (ray.train.TrainingFailedError, ray.exceptions.RayError) as error:
            raise TrainingError(f"stage {stage.name}: {_reason(error)}") from error
        finally:
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGINT, interrupt)  # Ray's handler would outlive the training
    if result.return_value is not None:
        raise TrainingError(result.return_value)


def run_evaluation(test: Evaluation, on: Shape, rows: int, listen: Listen) -> Totals:
    """One net on one data set of `rows` images, over all workers. Raises TrainingError if an image was left out."""
    with _mailbox(listen) as mailbox:
        task = ray.remote(evaluate_worker).options(num_cpus=on.cpus, num_gpus=on.gpus, max_retries=3)
        parts = [task.remote(test, rank, on.workers, on.cpus, mailbox) for rank in range(on.workers)]
        try:
            totals = sum(ray.get(parts), Totals(0, 0.0, 0, 0))
        except ray.exceptions.RayError as error:
            raise TrainingError(f"the test of {test.checkpoint}: {_reason(error)}") from error
    if totals.images != rows:
        raise TrainingError(f"{test.data}: {totals.images} of {rows} images were tested")
    return totals


def _reason(error: BaseException) -> str:
    """The line that names an error of ours, or else the last one; the whole is in Ray's logs."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    ours = [line for line in lines if re.match(r"pipelines\.errors\.\w+: ", line)]
    return ours[0].partition(": ")[2] if ours else lines[-1] if lines else type(error).__name__


class _Mailbox:
    """An actor on the driver's node: records from workers, in the order in which they came."""

    def __init__(self) -> None:
        self._records: list[dict[str, Any]] = []

    def put(self, record: dict[str, Any]) -> None:
        self._records.append(record)

    def take(self) -> list[dict[str, Any]]:
        records, self._records = self._records, []
        return records


@contextmanager
def _mailbox(listen: Listen) -> Iterator[Any]:
    """A mailbox that is emptied into `listen`, on a thread, until the block ends."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor = ray.remote(_Mailbox).options(num_cpus=0, scheduling_strategy=here).remote()
    ended = threading.Event()

    def deliver() -> None:
        heard, patience = time.monotonic(), _QUIET_SECONDS
        while True:
            last = ended.wait(_POLL_SECONDS)
            for record in ray.get(actor.take.remote()):
                listen(record)
                heard, patience = time.monotonic(), _QUIET_SECONDS
            if time.monotonic() - heard > patience:
                listen({"kind": "quiet", "seconds": patience})
                patience *= 2
            if last:
                return

    thread = threading.Thread(target=deliver, name="mailbox", daemon=True)
    thread.start()
    try:
        yield actor
    finally:
        ended.set()
        thread.join()
        ray.kill(actor)


def disconnect() -> None:
    ray.shutdown()
