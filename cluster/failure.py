"""Why a group of workers failed, in one line."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import ray.exceptions

from pipelines.errors import first_line

DIED = "died"  # the cause where a process has ended without a word


@dataclass(frozen=True)
class Failure:
    """`text` is for a person; `cause` is the same whenever the same thing has happened."""

    text: str
    cause: str


def failure(workers: Mapping[int, BaseException]) -> Failure:
    """Of what each worker, by rank, met with. A worker that died explains what the others met with, not vice versa."""
    dead = [f"{rank}{_process(error)}" for rank, error in sorted(workers.items()) if _died(error)]
    if dead:
        return Failure(f"worker{'s' * (len(dead) > 1)} {', '.join(dead)} died", DIED)
    if not workers:
        return Failure("the workers failed", "failed")
    rank, error = min(workers.items(), key=lambda worker: (_left_alone(worker[1]), worker[0]))
    if _left_alone(error):  # it is the other end that would have something to tell
        return Failure(f"worker {rank} lost its connection to another one", "connection")
    line = "it does not answer" if _silent(error) else f"{type(error).__name__}: {first_line(error)}"
    return Failure(f"worker {rank} failed: {line}", re.sub(r"0x[0-9a-f]+|\d+", "#", line))


def _died(error: BaseException) -> bool:
    return isinstance(_cause(error), ray.exceptions.RayActorError)


def _left_alone(error: BaseException) -> bool:
    """By gloo's and NCCL's words."""
    return bool(
        re.search(
            r"Connection (closed|reset|refused)|Timed out waiting|Application timeout|remote process exited", str(error)
        )
    )


def _silent(error: BaseException) -> bool:
    return type(error).__name__ == "WorkerHealthCheckTimeoutError"  # of Ray Train's, and private


def _cause(error: BaseException) -> BaseException:
    """What Ray Train's health check met with, of a worker that fails it."""
    cause = getattr(error, "health_check_failure", error)
    return cause if isinstance(cause, BaseException) else error


def _process(error: BaseException) -> str:
    """Which process died, and what of, as far as Ray says."""
    text = str(_cause(error))
    known = dict(re.findall(r"^\s*(pid|ip): (\S+)", text, re.MULTILINE))
    parts = [f"process {known['pid']} on {known['ip']}"] if len(known) == 2 else []
    if "due to the node running low on memory" in text:
        parts.append("its node ran out of memory")
    return f" ({'; '.join(parts)})" if parts else ""
