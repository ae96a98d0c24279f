"""The program that creates the Secrets, against a stand-in of the API server over TLS."""

import ast
import re
import socket
import subprocess
import sys
import threading
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from kubernetes_validate import validate

from k8s import bootstrap
from tests.k8s.api_server import NAMESPACE, PATH, TOKEN, ApiServer, Authority

ROOT = Path(__file__).parent.parent.parent
KEYS = {"postgresql": {"password"}, "redis": {"password"}, "mlflow": {"username", "password", "secret-key"}}


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls") / "ours")


@pytest.fixture
def account(authority: Authority, tmp_path: Path) -> Path:
    """The folder that kubelet mounts."""
    folder = tmp_path / "serviceaccount"
    folder.mkdir()
    (folder / "token").write_text(TOKEN)
    (folder / "namespace").write_text(NAMESPACE)
    (folder / "ca.crt").write_bytes(authority.certificate.read_bytes())
    return folder


@pytest.fixture
def api(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> Iterator[ApiServer]:
    with ApiServer(authority).running() as server:
        reach(server, monkeypatch)
        yield server


class Clock:
    """Stands for the module `time`: pauses are noted, and over at once."""

    def __init__(self) -> None:
        self.now, self.pauses = 0.0, list[float]()
        self.meanwhile: Callable[[], object] = lambda: None

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.pauses.append(seconds)
        self.meanwhile()


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(bootstrap, "time", clock)
    return clock


def reach(server: ApiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", server.host)
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(server.port))


def run(account: Path, *, limit: float = 60.0) -> int:
    return bootstrap.main(["--account", str(account), "--limit", str(limit)])


def values(server: ApiServer) -> list[str]:
    """All that was ever sent as a value, but the user's name."""
    sent = [value for *_, body in server.requests for value in body["stringData"].values()]
    return [value for value in sent if value != "admin"]


def error_line(capsys: pytest.CaptureFixture[str], server: ApiServer | None = None) -> str:
    """The one line on stderr; no value was printed anywhere."""
    printed = capsys.readouterr()
    (line,) = printed.err.splitlines()
    for value in values(server) if server else ():
        for form in (value, b64encode(value.encode()).decode()):
            assert form not in printed.out + printed.err
    assert TOKEN not in printed.out + printed.err
    return line


def test_it_creates_each_secret_once_and_a_second_run_leaves_every_byte(
    api: ApiServer, account: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(account) == 0
    assert {name: set(stored["data"]) for name, stored in api.secrets.items()} == KEYS
    assert capsys.readouterr().out.splitlines() == [f"Secret {name}: created" for name in KEYS]
    first = {name: dict(stored["data"]) for name, stored in api.secrets.items()}
    assert run(account) == 0
    assert {name: stored["data"] for name, stored in api.secrets.items()} == first
    printed = capsys.readouterr()
    assert printed.out.splitlines() == [f"Secret {name}: is there already; left as it is" for name in KEYS]
    assert printed.err == ""
    assert {(method, path, token) for method, path, token, _ in api.requests} == {("POST", PATH, f"Bearer {TOKEN}")}
    assert len(api.requests) == 2 * len(KEYS)


def test_it_runs_as_a_program_of_its_own(api: ApiServer, account: Path) -> None:
    command = [sys.executable, "-m", "k8s.bootstrap", "--account", str(account)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stderr, ended.stdout.count("created")) == (0, "", 3)
    assert set(api.secrets) == set(KEYS)
    api.allowed.clear()
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stdout, len(ended.stderr.splitlines())) == (1, "", 1)


def test_what_it_sends_is_a_secret_to_kubernetes(api: ApiServer, account: Path) -> None:
    run(account)
    assert len(api.requests) == len(KEYS)
    for *_, body in api.requests:
        validate(body, "1.36", strict=True)
        assert body["type"] == "Opaque"
        assert body["metadata"]["namespace"] == NAMESPACE
        assert body["metadata"]["labels"]["app.kubernetes.io/part-of"] == "verydeep"


def test_values_are_long_of_letters_and_digits_and_never_the_same(api: ApiServer, account: Path) -> None:
    for _ in range(5):
        run(account)
        api.secrets.clear()
    drawn = values(api)
    assert len(drawn) == 5 * 4 == len(set(drawn))
    assert all(re.fullmatch("[A-Za-z0-9]{32,}", value) for value in drawn)
    assert set("".join(bootstrap.drawn() for _ in range(100))) == set(bootstrap.CHARACTERS)
    assert {body["stringData"].get("username") for *_, body in api.requests} == {None, "admin"}


@pytest.mark.parametrize("name", KEYS)
def test_a_secret_of_ones_own_is_left_and_the_others_are_created(
    name: str, api: ApiServer, account: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    api.put(name, {"password": "mine"})
    assert run(account) == 0
    assert api.secrets[name]["data"] == {"password": b64encode(b"mine").decode()}
    assert set(api.secrets) == set(KEYS)
    told = {line.split(":")[0].removeprefix("Secret "): line for line in capsys.readouterr().out.splitlines()}
    assert {other for other, line in told.items() if line.endswith("created")} == set(KEYS) - {name}


def test_a_secret_that_another_creates_meanwhile_is_left(api: ApiServer, account: Path) -> None:
    api.before = lambda name: api.put(name, {"password": "theirs"}) if name == "redis" else None
    assert run(account) == 0
    assert api.secrets["redis"]["data"] == {"password": b64encode(b"theirs").decode()}


def test_of_two_that_run_at_once_each_secret_has_one_creator(
    api: ApiServer, account: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    threads = [threading.Thread(target=run, args=(account,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = capsys.readouterr().out.splitlines()
    assert sorted(line for line in lines if line.endswith("created")) == sorted(
        f"Secret {name}: created" for name in KEYS
    )
    assert len(lines) == 4 * len(KEYS)


def test_without_the_permission_it_says_which_and_creates_nothing(
    api: ApiServer, account: Path, capsys: pytest.CaptureFixture[str], clock: Clock
) -> None:
    api.allowed = {"get", "list", "update"}
    assert run(account) == 1
    line = error_line(capsys, api)
    assert "needs the verb create on secrets" in line
    assert f'User "system:serviceaccount:{NAMESPACE}:bootstrap" cannot create resource "secrets"' in line
    assert (api.secrets, len(api.requests), clock.pauses) == ({}, 1, [])


@pytest.mark.parametrize("code", [401, 404, 409, 422, 429, 500, 503])
def test_what_passes_is_waited_for(code: int, api: ApiServer, account: Path, clock: Clock) -> None:
    left = [1, 2, 3]

    def refuse(name: str) -> tuple[int, str, dict[str, str]] | None:
        return (code, "not yet", {"Retry-After": "7"} if code == 429 else {}) if left and left.pop() else None

    api.refuse = refuse
    if code == 409:  # of a quota that is written to by several: not AlreadyExists
        api.answer = conflicting(api.answer)  # type: ignore[method-assign]
    assert run(account) == 0
    assert set(api.secrets) == set(KEYS)
    assert clock.pauses == ([7.0, 7.0, 7.0] if code == 429 else [1.0, 2.0, 4.0])


def conflicting(answer: Any) -> Any:
    def changed(*request: Any) -> Any:
        code, body, headers = answer(*request)
        return code, {**body, "reason": "Conflict"} if code == 409 else body, headers

    return changed


def test_a_server_that_is_not_there_yet_is_waited_for(
    authority: Authority, account: Path, monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(port))
    with ExitStack() as stack:
        servers: list[ApiServer] = []

        def third_time() -> None:
            if len(clock.pauses) == 3:
                servers.append(stack.enter_context(ApiServer(authority, port=port).running()))

        clock.meanwhile = third_time
        assert run(account) == 0
        assert (clock.pauses, set(servers[0].secrets)) == ([1.0, 2.0, 4.0], set(KEYS))


def test_a_server_that_never_comes_is_given_up_with_one_line(
    account: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], clock: Clock
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(port))
    assert run(account, limit=120) == 1
    assert re.fullmatch(
        rf"bootstrap: the API server at 127.0.0.1:{port} does not answer: .*; given up", error_line(capsys)
    )
    assert 110 <= sum(clock.pauses) <= 120
    assert max(clock.pauses) == 10


@pytest.mark.parametrize("code", [401, 404, 409, 422, 429, 500])
def test_what_lasts_is_given_up_with_one_line(
    code: int, api: ApiServer, account: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    api.refuse = lambda _: (code, "a policy's\nreason", {})
    api.answer = conflicting(api.answer)  # type: ignore[method-assign]
    assert run(account, limit=5) == 1
    line = error_line(capsys, api)
    assert f"HTTP {code}, a policy's reason; given up" in line
    assert len(api.requests) == 3  # at 0, 1 and 3 seconds; the next would be at 7
    assert api.secrets == {}


def test_a_refusal_that_quotes_the_values_does_not_bring_them_into_the_log(
    api: ApiServer, account: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def quoting(_: str) -> tuple[int, str, dict[str, str]]:
        said = api.requests[-1][3]["stringData"]
        return 403, " ".join(f"{value} {b64encode(value.encode()).decode()}" for value in said.values()), {}

    api.refuse = quoting
    api.put("postgresql", {})
    assert run(account) == 1
    assert "HTTP 403, ... ..." in error_line(capsys, api)


def test_a_server_of_another_authority_is_told_nothing(
    account: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    clock: Clock,
) -> None:
    with ApiServer(Authority(tmp_path / "theirs")).running() as server:
        reach(server, monkeypatch)
        assert run(account) == 1
    assert "is not who ca.crt vouches for" in error_line(capsys)
    assert (server.requests, clock.pauses) == ([], [])


def test_a_certificate_for_another_address_is_refused(
    tmp_path: Path, account: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    elsewhere = Authority(tmp_path / "elsewhere", addresses=("127.0.0.9",))
    (account / "ca.crt").write_bytes(elsewhere.certificate.read_bytes())
    with ApiServer(elsewhere).running() as server:
        reach(server, monkeypatch)
        assert run(account) == 1
    assert "is not who ca.crt vouches for" in error_line(capsys)
    assert server.requests == []


def test_a_redirect_is_not_followed_with_the_token(
    api: ApiServer, authority: Authority, account: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with ApiServer(authority).running() as other:
        api.refuse = lambda _: (307, "elsewhere", {"Location": f"https://127.0.0.1:{other.port}{PATH}"})
        assert run(account) == 1
    assert "HTTP 307" in error_line(capsys, api)
    assert (len(api.requests), other.requests) == (1, [])


def test_a_token_that_is_replaced_while_it_waits_is_taken(api: ApiServer, account: Path) -> None:
    api.token = "a-newer-one"
    api.refuse = lambda _: (account / "token").write_text(api.token) and None
    assert run(account) == 0
    assert [token for _, _, token, _ in api.requests[:2]] == [f"Bearer {TOKEN}", "Bearer a-newer-one"]


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6 here")
def test_a_host_of_ipv6(authority: Authority, account: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        server = ApiServer(authority, host="::1")
    except OSError:
        pytest.skip("no address ::1 here")
    with server.running():
        reach(server, monkeypatch)
        assert run(account) == 0
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "[::1]")
        assert run(account) == 0
    assert set(server.secrets) == set(KEYS)


@pytest.mark.parametrize("file", ["token", "namespace", "ca.crt"])
def test_a_pod_without_its_account_is_told_so(
    file: str, api: ApiServer, account: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (account / file).unlink()
    assert run(account) == 1
    assert f"{file} cannot be read or is empty; the pod needs automountServiceAccountToken" in error_line(capsys)
    assert api.requests == []


def test_outside_of_a_pod_it_says_so(
    account: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    assert run(account) == 1
    assert "this runs in a pod" in error_line(capsys)


def test_it_needs_only_the_standard_library() -> None:
    tree = ast.parse(Path(bootstrap.__file__).read_text())
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {"ssl", "http.client"} <= names
    assert {name.split(".")[0] for name in names} <= sys.stdlib_module_names
