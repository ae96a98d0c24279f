"""Creates the Secrets that the other pods wait for, with random values: `python -m k8s.bootstrap` in a pod.

It POSTs and nothing else, so that its Role needs the verb `create` on secrets alone: it can neither read nor change a
Secret. One that is there already, of an earlier run or of one's own, is left as it is. Each Secret stands alone: what a
run that was cut off has created stays, and the next run creates the rest. No value is ever printed.

Only the standard library is used: the program holds a credential, and starts in a moment.
"""

import argparse
import http.client
import json
import secrets
import ssl
import string
import sys
import time
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from os import environ
from pathlib import Path
from urllib.parse import quote

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
RANDOM = None  # stands for a value that is drawn
SECRETS: dict[str, dict[str, str | None]] = {
    "postgresql": {"password": RANDOM},
    "redis": {"password": RANDOM},
    "mlflow": {"username": "admin", "password": RANDOM, "secret-key": RANDOM},
}
CHARACTERS = string.ascii_letters + string.digits  # no quoting in URIs, shells and configuration files
LENGTH = 40  # 238 bits
LABELS = {"app.kubernetes.io/part-of": "verydeep", "app.kubernetes.io/managed-by": "verydeep-bootstrap"}

LONGEST_REQUEST_SECONDS = 10.0
LONGEST_PAUSE_SECONDS = 10.0
# A new account's token may not be known everywhere yet (401), nor its namespace (404); policies' webhooks come up late
# (422 and 5xx); quotas are written by several at once (409 that is not AlreadyExists).
PASSING = {401, 404, 408, 409, 422, 429}


class BootstrapError(Exception):
    """Ends the program with its text, one line."""


class PassingError(Exception):
    """What may be otherwise in a moment; the server may ask for `pause_seconds`."""

    def __init__(self, text: str, pause_seconds: float = 0.0) -> None:
        super().__init__(text)
        self.pause_seconds = pause_seconds


@dataclass(frozen=True)
class Answer:
    status: int
    reason: str  # Kubernetes' word for it, such as AlreadyExists; empty where the body is no Status
    message: str
    pause_seconds: float  # the header Retry-After

    def __str__(self) -> str:
        return f"HTTP {self.status}" + (f", {self.message}" if self.message else "")


@dataclass(frozen=True)
class Api:
    """The API server as a pod reaches it, and the pod's account there."""

    host: str
    port: int
    account: Path
    tls: ssl.SSLContext = field(repr=False)

    @classmethod
    def of_pod(cls, account: Path, environment: Mapping[str, str]) -> "Api":
        try:
            host, port = environment["KUBERNETES_SERVICE_HOST"], int(environment["KUBERNETES_SERVICE_PORT"])
        except (KeyError, ValueError):
            raise BootstrapError("KUBERNETES_SERVICE_HOST and _PORT name no API server; this runs in a pod") from None
        _content(account / "ca.crt")
        try:
            tls = ssl.create_default_context(cafile=str(account / "ca.crt"))
        except ssl.SSLError as error:
            raise BootstrapError(f"{account / 'ca.crt'} holds no certificates: {_line(error)}") from None
        return cls(host.strip("[]"), port, account, tls)

    @property
    def namespace(self) -> str:
        return _content(self.account / "namespace")

    def create(self, body: dict[str, object], timeout_seconds: float) -> Answer:
        """POSTs a Secret. http.client follows no redirect and knows no proxy, so the token goes nowhere else."""
        token = _content(self.account / "token")  # kubelet replaces it from time to time
        connection = http.client.HTTPSConnection(self.host, self.port, timeout=timeout_seconds, context=self.tls)
        try:
            connection.request(
                "POST",
                f"/api/v1/namespaces/{quote(self.namespace, safe='')}/secrets",
                body=json.dumps(body),
                headers={
                    "Authorization": f"Bearer {token}",
                    "Content-Type": "application/json",
                    "Accept": "application/json",
                    "User-Agent": "verydeep-bootstrap",
                },
            )
            response = connection.getresponse()
            return _answer(response, response.read())
        except ssl.SSLCertVerificationError as error:
            raise BootstrapError(
                f"{self} is not who ca.crt vouches for, and was told nothing: {error.verify_message}"
            ) from None
        except (OSError, http.client.HTTPException) as error:
            raise PassingError(f"{self} does not answer: {_line(error)}") from None
        finally:
            connection.close()

    def __str__(self) -> str:
        return f"the API server at {f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"


def _content(file: Path) -> str:
    try:
        text = file.read_text().strip()
    except (OSError, UnicodeDecodeError):
        text = ""
    if not text:
        raise BootstrapError(f"{file} cannot be read or is empty; the pod needs automountServiceAccountToken: true")
    return text


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _answer(response: http.client.HTTPResponse, body: bytes) -> Answer:
    try:
        status = json.loads(body)
    except ValueError:
        status = None  # of a proxy in between
    if not isinstance(status, dict) or status.get("kind") != "Status":
        status = {}
    pause = response.getheader("Retry-After", "")
    return Answer(
        response.status,
        str(status.get("reason", "")),
        " ".join(str(status.get("message", "")).split()),
        float(pause) if pause.isdecimal() else 0.0,
    )


def drawn() -> str:
    return "".join(secrets.choice(CHARACTERS) for _ in range(LENGTH))


def values_of(name: str) -> dict[str, str]:
    """What the Secret is to hold, drawn anew at each call."""
    return {key: drawn() if value is RANDOM else value for key, value in SECRETS[name].items()}


def document(name: str, namespace: str, values: Mapping[str, str]) -> dict[str, object]:
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name, "namespace": namespace, "labels": LABELS},
        "type": "Opaque",
        "stringData": values,
    }


def create(api: Api, name: str, timeout_seconds: float) -> bool:
    """Creates the Secret; False if it is there. Its values live for this one attempt."""
    values = values_of(name)
    answer = api.create(document(name, api.namespace, values), timeout_seconds)
    if answer.status == http.HTTPStatus.CREATED:
        return True
    if answer.status == http.HTTPStatus.CONFLICT and answer.reason == "AlreadyExists":
        return False
    told = _without(values, str(answer))
    if answer.status == http.HTTPStatus.FORBIDDEN:
        raise BootstrapError(
            f"not allowed to create Secret {name} in namespace {api.namespace}: "
            f"the ServiceAccount needs the verb create on secrets there ({told})"
        )
    if answer.status in PASSING or answer.status >= 500:
        raise PassingError(f"{api} did not create Secret {name}: {told}", answer.pause_seconds)
    raise BootstrapError(f"{api} did not create Secret {name}: {told}")


def _without(values: Mapping[str, str], text: str) -> str:
    """Webhooks may quote what they refuse, which they see in base64."""
    for value in values.values():
        if len(value) == LENGTH:  # the user's name is no secret
            text = text.replace(value, "...").replace(b64encode(value.encode()).decode(), "...")
    return text


def persistently(api: Api, name: str, until: float) -> bool:
    """`create`, again after what passes, until that moment of the monotonic clock."""
    own_seconds = 1.0
    while True:
        try:
            return create(api, name, max(1.0, min(LONGEST_REQUEST_SECONDS, until - time.monotonic())))
        except PassingError as error:
            pause_seconds = min(LONGEST_PAUSE_SECONDS, max(own_seconds, error.pause_seconds))
            if time.monotonic() + pause_seconds > until:
                raise BootstrapError(f"{error}; given up") from None
        time.sleep(pause_seconds)
        own_seconds *= 2


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m k8s.bootstrap", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--limit", type=float, default=120.0, metavar="SECONDS", help="to try at most (default: 120)")
    parser.add_argument(
        "--account", type=Path, default=ACCOUNT, help="folder of the account's token (default: %(default)s)"
    )
    chosen = parser.parse_args(arguments)
    until = time.monotonic() + chosen.limit
    try:
        api = Api.of_pod(chosen.account, environ)
        for name in SECRETS:
            created = persistently(api, name, until)
            print(f"Secret {name}: {'created' if created else 'is there already; left as it is'}", flush=True)
    except BootstrapError as error:
        print(f"bootstrap: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
