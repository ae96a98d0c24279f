"""Bytes that were sent, as the kernel counts them."""

import socket
import struct
from pathlib import Path

_BYTES_SENT = 200  # where tcpi_bytes_sent lies in struct tcp_info: linux/tcp.h, since Linux 4.19
_INFO_BYTES = 256


def by_connections() -> int:
    """By this process, over the TCP connections that are open now; without headers."""
    total = 0
    for path in Path("/proc/self/fd").iterdir():
        if path.exists() and path.is_socket():
            with socket.socket(fileno=socket.dup(int(path.name))) as found:
                if found.family in (socket.AF_INET, socket.AF_INET6) and found.type == socket.SOCK_STREAM:
                    info = found.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO_BYTES)
                    total += struct.unpack_from("Q", info, _BYTES_SENT)[0]
    return total


def by_interface(name: str) -> int:
    """Through a network interface of this process' namespace, by whatever process; with headers."""
    return int(Path(f"/sys/class/net/{name}/statistics/tx_bytes").read_text())
