"""Process groups that find each other: gloo and NCCL use the network interface of the node's own address.

Ray leaves the choice to them, and gloo takes the one that the host's name stands for: on many systems a loopback
address, which other hosts cannot reach.
"""

import fcntl
import os
import socket
import struct
from dataclasses import dataclass
from typing import Any

import ray
from ray.train.constants import TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S
from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend

_SIOCGIFADDR = 0x8915  # <linux/sockios.h>: an interface's IPv4 address
_SHUTDOWN_SECONDS = "5"  # for workers to leave the group politely; those that are lost or hang never do


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
    """Runs in every worker before its process group is made; what a user has set is kept."""
    name = interface_of(ray.util.get_node_ip_address())
    if name is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
        os.environ.setdefault("NCCL_SOCKET_IFNAME", name)


class _Backend(_TorchBackend):  # type: ignore[misc]
    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        worker_group.execute(_choose_interface)
        super().on_start(worker_group, backend_config)

    def on_shutdown(self, worker_group: Any, backend_config: Any) -> None:
        os.environ.setdefault(TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S, _SHUTDOWN_SECONDS)  # in the controller
        super().on_shutdown(worker_group, backend_config)


@dataclass
class Torch(TorchConfig):  # type: ignore[misc]
    """Ray Train's, with the interface chosen; `timeout_s` is of every exchange between workers."""

    @property
    def backend_cls(self) -> type[_Backend]:
        return _Backend
