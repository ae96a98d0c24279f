"""The server that forks the tests' Ray workers."""

import json
import os
import socket
from contextlib import ExitStack

from tests.forks import _SOCKET, forking


def test_clients_that_are_killed_half_way_do_not_end_it() -> None:
    with forking(), ExitStack() as open_ones:
        place = os.environ[_SOCKET]
        for said in (None, b"", b'{"arguments": ['):
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(place)
                if said is not None:
                    socket.send_fds(client, [b"."], [0, 1, 2])
                    client.sendall(said)
        read, write = os.pipe()
        worker = open_ones.enter_context(os.fdopen(read))
        whole = {"arguments": ["--no-such-option"], "environment": dict(os.environ), "folder": os.getcwd()}
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(place)
            socket.send_fds(client, [b"."], [write, write, write])
            client.sendall(json.dumps(whole).encode())
        os.close(write)
        assert "default_worker.py: error:" in worker.read()
