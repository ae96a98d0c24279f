"""Processes of the tests' Ray, forked from one that has imported what workers need: to start each by itself takes ten
times the CPU time that most tests are about.

A Ray that is started in `forking` begins its workers with this file, as a script, in the place of Ray's own. Each has
the arguments, environment, folder and files that Ray gave it, and a process of its own, to be killed like any other.

What such workers do not see: what they import is not imported in the environment that Ray gives them but in the tests',
before, so that what is read at import (OMP_NUM_THREADS, a `PYTHONPATH`) is the tests', and an import that fails or
takes long only in a worker is not noticed. tests/jobs/test_ray_job.py keeps Ray's own.
"""

import json
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_SOCKET = "VERYDEEP_TESTS_FORKS"
_END_SECONDS = 10


@contextmanager
def forking() -> Iterator[None]:
    """For the time in which Ray is used; `ray.init` has to be called in it."""
    import multiprocessing

    import pytest
    from ray._private import parameter

    from tests.cluster import groups  # what it has imported beforehand, too

    class Parameters(parameter.RayParams):  # type: ignore[misc]
        def update_if_absent(self, **more: Any) -> None:
            super().update_if_absent(**{**more, "worker_path": __file__})

    context = multiprocessing.get_context(groups.FORKS)
    with tempfile.TemporaryDirectory(prefix="vd") as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv(_SOCKET, f"{folder}/forks")
        patch.setattr(parameter, "RayParams", Parameters)
        theirs, ours = context.Pipe(duplex=False)
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(f"{folder}/forks")
            listening.listen(64)
            server = context.Process(target=serve, args=(listening, theirs), daemon=True)
            server.start()
        theirs.close()
        try:
            yield
        finally:
            ours.close()
            server.join(_END_SECONDS)
            server.kill()
            server.join()


def program() -> None:
    """`verydeep` with the arguments of this process, whose Ray's workers are forked. Does not return."""
    from jobs.cli import main

    with forking():
        status = main(sys.argv[1:])
    sys.exit(status)


def serve(listening: socket.socket, tests: Any) -> None:
    """Until the other end of the pipe `tests` is closed, or has died."""
    import selectors

    assert "ray" not in sys.modules, "it reads the environment as it is imported"
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them
    with selectors.DefaultSelector() as events:
        events.register(listening, selectors.EVENT_READ)
        events.register(tests, selectors.EVENT_READ)
        while all(key.fileobj is listening for key, _ in events.select()):
            client, _ = listening.accept()
            with client:
                try:
                    whole, files = _wishes(client)
                except (OSError, ValueError):  # it was killed before it had said all
                    continue
                if os.fork() == 0:
                    for own in (client, listening, tests, events):
                        own.close()
                    _become(whole, files)
                for file in files:
                    os.close(file)


def _wishes(client: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """What `hand_over` sends, with its three files. Raises OSError or ValueError if it is not whole."""
    _, files, _, _ = socket.recv_fds(client, 1, 3)
    try:
        with client.makefile("rb") as stream:
            return json.load(stream), files
    except (OSError, ValueError):
        for file in files:
            os.close(file)
        raise


def _become(whole: dict[str, Any], files: list[int]) -> None:
    """Ray's worker. Does not return."""
    import random
    import runpy
    import traceback
    from importlib.util import find_spec

    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setsid()
        for number, file in enumerate(files):
            os.dup2(file, number)
            os.close(file)
        os.environ.clear()
        os.environ.update(whole["environment"])
        os.chdir(whole["folder"])
        random.seed()
        (place,) = find_spec("ray._private.workers").submodule_search_locations  # type: ignore[misc, union-attr]
        sys.argv = [f"{place}/default_worker.py", *whole["arguments"]]
        runpy.run_path(sys.argv[0], run_name="__main__")
    except BaseException:  # of whatever kind: it ends here
        traceback.print_exc()
    finally:
        os._exit(1)


def hand_over() -> None:
    """In a process that Ray has started: another one goes on in its place."""
    whole = {"arguments": sys.argv[1:], "environment": dict(os.environ), "folder": os.getcwd()}
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(os.environ[_SOCKET])
        socket.send_fds(server, [b"."], [0, 1, 2])
        server.sendall(json.dumps(whole).encode())
        server.shutdown(socket.SHUT_WR)
        server.recv(1)  # it is there


if __name__ == "__main__":
    hand_over()
