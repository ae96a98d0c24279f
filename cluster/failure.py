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
    found = [(_died(error), rank, error) for rank, error in sorted(workers.items())]
    dead = [(rank, where) for where, rank, _ in found if where is not None]
    if dead:
        names = ", ".join(f"{rank}{where}" for rank, where in dead)
        return Failure(f"worker{'s' * (len(dead) > 1)} {names} died", DIED)
    if not found:
        return Failure("the workers failed", "failed")
    # Of a lost connection it is the other end that has something to tell.
    _, rank, error = min(found, key=lambda f: ("onnection" in str(f[2]), f[1]))
    line = _line(error)
    return Failure(f"worker {rank} failed: {line}", re.sub(r"0x[0-9a-f]+|\d+", "#", line))


def _died(error: BaseException) -> str | None:
    """Where, if the worker's process ended or does not answer."""
    cause = getattr(error, "health_check_failure", error)
    if not isinstance(cause, ray.exceptions.RayActorError):
        return "" if type(error).__name__.startswith("WorkerHealthCheck") else None
    known = dict(re.findall(r"^\s*(pid|ip): (\S+)", str(cause), re.MULTILINE))
    parts = [f"process {known['pid']} on {known['ip']}"] if len(known) == 2 else []
    if "due to the node running low on memory" in str(cause):
        parts.append("its node ran out of memory")
    return f" ({'; '.join(parts)})" if parts else ""


def _line(error: BaseException) -> str:
    """`ValueError: text`, without the module's name."""
    return f"{type(error).__name__}: {first_line(error)}"
