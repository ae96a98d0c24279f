"""A real `mlflow server` on PostgreSQL, to be killed and started again."""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

import psycopg2
import pytest

PATIENCE_SECONDS = 300  # it was seen to take 130 to start, beside twenty busy processes


_KEPT: list[socket.socket] = []


def kept_port() -> int:
    """Kept for this process as long as it lives: bound, so that no other process is given it, between a server's end
    and its next start neither; a server that sets SO_REUSEADDR, as all do, may listen at it, since nobody does."""
    kept = socket.socket()
    kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    kept.bind(("127.0.0.1", 0))
    _KEPT.append(kept)
    return int(kept.getsockname()[1])


def binary(name: str) -> str:
    """Of PostgreSQL; the newest one. Skips the test if there is none."""
    there = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=lambda file: float(file.parts[-3]))
    found = str(there[-1]) if there else shutil.which(name)
    if found is None:
        pytest.skip("PostgreSQL's initdb and postgres are not installed (Debian: postgresql)")
    return found


class Postgres:
    """Its files lie in a folder of their own below /tmp, and it refuses to be run by root. Whoever connects is believed
    to be who he says, or has to know the `password` of the user mlflow."""

    def __init__(self, password: str | None = None) -> None:
        self.port = kept_port()
        self._as: list[str] = []
        initdb, self._postgres = binary("initdb"), binary("postgres")
        self.folder = Path(tempfile.mkdtemp(prefix="vd-pg-"))
        if os.getuid() == 0:
            try:
                user = pwd.getpwnam("postgres")
            except KeyError:
                pytest.skip("PostgreSQL does not run as root, and there is no user postgres")
            os.chown(self.folder, user.pw_uid, user.pw_gid)
            self._as = ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
        command = [*self._as, initdb, "-D", str(self.folder / "data"), "-U", "mlflow", "--no-sync"]
        trust = ["-A", "trust"]
        if password is not None:
            (self.folder / "password").write_text(password)
            trust = ["-A", "scram-sha-256", f"--pwfile={self.folder}/password"]
        subprocess.run([*command, *trust], check=True, capture_output=True, cwd="/")
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        return f"postgresql+psycopg2://mlflow@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        told = ["-D", str(self.folder / "data"), "-p", str(self.port), "-k", str(self.folder), "-h", "127.0.0.1"]
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [*self._as, self._postgres, *told, "-c", "fsync=off"], stdout=log, stderr=log, cwd="/"
            )
        wait_for(self._answers)

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self.folder / "server.log").read_text()[-2000:]
        asked = [binary("pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self.port)]
        return subprocess.run(asked, check=False).returncode == 0  # it listens before it lets anybody in

    def read_only(self, on: bool) -> None:
        """As with a full disk, or after a change to a replica."""
        with closing(psycopg2.connect(self.uri.replace("+psycopg2", ""))) as connection:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(f"ALTER SYSTEM SET default_transaction_read_only = {'on' if on else 'off'}")
                cursor.execute("SELECT pg_reload_conf()")

    def stop(self) -> None:
        """At once, as after a crash."""
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait()
            self._process = None


class Server:
    def __init__(self, folder: Path, database: Postgres) -> None:
        self.port, self.database = kept_port(), database
        self.uri = f"http://127.0.0.1:{self.port}"
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Without waiting for it."""
        if self._process is not None:
            return
        quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        places = ["--backend-store-uri", self.database.uri, "--artifacts-destination", str(self._folder / "artifacts")]
        with (self._folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [*command, *places, "--workers", "1"],
                env={**os.environ, **quiet},
                cwd=self._folder,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def up(self) -> None:
        """Started, and answering."""
        self.start()
        wait_for(self._answers)

    def down(self) -> None:
        """Killed, with all its processes."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self._folder / "server.log").read_text()[-2000:]
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except (OSError, urllib.error.URLError):
            return False


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)
