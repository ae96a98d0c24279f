"""Who runs a job: a process, so that another one on the same machine can see whether it is still there."""

import getpass
import json
import os
import socket
import uuid
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

_PROC = Path("/proc")
_RAY_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # in which Ray tells the processes of a submitted job of it


@dataclass(frozen=True)
class Holder:
    """`boot`, `namespace`: which kernel, since when, and which of its tables of processes; "" where that is not to be
    known. `started`: of the process, in the kernel's ticks. `begun`: for people, by this machine's clock."""

    id: str
    host: str
    boot: str
    namespace: str
    pid: int
    started: str
    user: str
    begun: str
    ray_job: str | None = None

    @classmethod
    def here(cls) -> "Holder":
        """This process, as one that has not held anything before."""
        return cls(
            uuid.uuid4().hex, socket.gethostname(), _boot(), _namespace(), os.getpid(), _started(os.getpid()) or "",
            _user(), datetime.now(UTC).isoformat(timespec="seconds"), ray_job(),
        )  # fmt: skip

    @classmethod
    def of(cls, content: dict[str, Any]) -> "Holder":
        """From JSON. Raises KeyError or TypeError."""
        found = cls(**{field.name: content[field.name] for field in fields(cls)})
        texts = [value for name, value in asdict(found).items() if name not in ("pid", "ray_job")]
        if not all(isinstance(text, str) for text in texts) or not isinstance(found.pid, int):
            raise TypeError("not what `here` makes")
        return found

    def alive(self) -> bool | None:
        """Whether its process is there; None if that cannot be seen from here."""
        here = (self.host, self.boot, self.namespace) == (socket.gethostname(), _boot(), _namespace())
        if not here or not self.boot or not self.namespace or not self.started:
            return None
        return _started(self.pid) == self.started

    def __str__(self) -> str:
        submitted = f", Ray job {self.ray_job}" if self.ray_job else ""
        return f"host {self.host}, process {self.pid}{submitted}"

    @property
    def since(self) -> str:
        """`14:02:11 UTC`, with the date if that is not today's."""
        try:
            begun = datetime.fromisoformat(self.begun).astimezone(UTC)
        except ValueError:
            return "an unknown time"
        date = "" if begun.date() == datetime.now(UTC).date() else f"{begun:%Y-%m-%d} "
        return f"{date}{begun:%H:%M:%S} UTC"


def ray_job() -> str | None:
    """The submission id of the Ray job that this process is the driver of."""
    try:
        found = json.loads(os.environ.get(_RAY_JOB, ""))["metadata"]["job_submission_id"]
    except (KeyError, TypeError, ValueError):
        return None
    return found if isinstance(found, str) else None


def _boot() -> str:
    try:
        return (_PROC / "sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _namespace() -> str:
    try:
        return os.readlink(_PROC / "self/ns/pid")
    except OSError:
        return ""


def _started(pid: int) -> str | None:
    """None if there is no such process, or it has ended and its parent has not noticed."""
    try:
        stat = (_PROC / str(pid) / "stat").read_text(errors="replace")
    except OSError:
        return None
    state, *rest = stat.rpartition(")")[2].split()  # the program's name, before it, may be anything
    return None if state in ("Z", "X") else rest[18]


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # in a container the number may have no name
        return str(os.getuid())
