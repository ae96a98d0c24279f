"""Process groups that find each other: gloo and NCCL use the network interface of the node's own address.

Ray leaves the choice to them, and gloo takes the one that the host's name stands for: on many systems a loopback
address, which other hosts cannot reach.

What makes the group is at work in the controller, which does without torch: two seconds of CPU time at each start, and
200 MB. So torch, and the parts of Ray Train that import it, come into workers alone, as long as no module that the
controller imports has need of it (tests/test_imports.py).
"""

import fcntl
import logging
import os
import socket
import struct
from dataclasses import dataclass, field
from typing import Any

import ray
import ray.exceptions
from ray._common.network_utils import build_address
from ray._common.utils import env_integer
from ray.train._internal.utils import get_address_and_port
from ray.train.backend import Backend, BackendConfig
from ray.train.constants import TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S
from ray.train.v2._internal.util import TrainingFramework

_SIOCGIFADDR = 0x8915  # <linux/sockios.h>: an interface's IPv4 address
_LEAVE_SECONDS = 5  # for workers to leave the group politely; those that are lost or hang never do

_log = logging.getLogger(__name__)


def interface_of(address: str) -> str | None:
    """The interface of this machine that has the IPv4 `address`."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(probe, _SIOCGIFADDR, struct.pack("256s", name.encode()))
            except OSError:  # it has none
                continue
            if socket.inet_ntoa(answer[20:24]) == address:
                return name
    return None


def _choose_interface() -> None:
    """What a user has set is kept. For NCCL a name stands for all that begin with it, unless there is a = before it."""
    name = interface_of(ray.util.get_node_ip_address())
    if name is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
        os.environ.setdefault("NCCL_SOCKET_IFNAME", f"={name}")


def _join(backend: str, rank: int, size: int, meeting: str, timeout_seconds: int) -> None:
    """Runs in every worker, of all at the same time."""
    from ray.train.torch import config

    _choose_interface()
    config._set_torch_distributed_env_vars()
    config._setup_torch_process_group(backend, rank, size, meeting, timeout_seconds)


def _leave(group: bool) -> None:
    """Runs in every worker. `group`: there is one to be left."""
    from ray.train.torch import config

    config._shutdown_torch(group)


class _Backend(Backend):  # type: ignore[misc]
    share_cuda_visible_devices = True  # NCCL's ways between the GPUs of a node

    def on_start(self, worker_group: Any, backend_config: "Torch") -> None:
        backend = "nccl" if worker_group.get_resources_per_worker().get("GPU") else "gloo"
        meeting = f"tcp://{build_address(*worker_group.execute_single(0, get_address_and_port))}"
        size, seconds = len(worker_group), backend_config.timeout_s
        ray.get(
            [
                worker_group.execute_single_async(rank, _join, backend, rank, size, meeting, seconds)
                for rank in range(size)
            ]
        )

    def on_shutdown(self, worker_group: Any, backend_config: "Torch") -> None:
        seconds = backend_config.leave_seconds
        try:
            ray.get(worker_group.execute_async(_leave, len(worker_group) > 1), timeout=seconds)
        except ray.exceptions.GetTimeoutError:
            _log.warning("workers did not leave their process group within %d s", seconds)


def _leave_seconds() -> int:
    return int(env_integer(TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S, _LEAVE_SECONDS))


@dataclass
class Torch(BackendConfig):  # type: ignore[misc]
    """Workers in one process group; `timeout_s` is of every exchange between them, `leave_seconds` what they have for
    leaving it. Made in the driver, by whose environment a user can say so."""

    timeout_s: int
    leave_seconds: int = field(default_factory=_leave_seconds)

    @property
    def backend_cls(self) -> type[_Backend]:
        return _Backend

    @property
    def train_func_context(self) -> Any:
        """Around a worker's function: its GPU is the one that is meant where none is named."""
        from ray.train.torch.config import TorchConfigContextManager

        return TorchConfigContextManager

    @property
    def framework(self) -> Any:
        return TrainingFramework.TORCH
