"""A stand-in of Kubernetes' API server: Secrets of one namespace, over real TLS, with the answers of the real one."""

import datetime
import ipaddress
import json
import socket
import ssl
import threading
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

NAMESPACE, TOKEN = "verydeep", "a-token-of-the-account"
PATH = f"/api/v1/namespaces/{NAMESPACE}/secrets"
REASONS = {
    401: "Unauthorized",
    403: "Forbidden",
    404: "NotFound",
    409: "AlreadyExists",
    422: "Invalid",
    429: "TooManyRequests",
    500: "InternalError",
    503: "ServiceUnavailable",
}
FORBIDDEN = (
    f'secrets is forbidden: User "system:serviceaccount:{NAMESPACE}:bootstrap" cannot create resource "secrets" '
    f'in API group "" in the namespace "{NAMESPACE}"'
)


class Authority:
    """A certificate authority, made for a test, and what it vouches for: 127.0.0.1 and ::1."""

    def __init__(self, folder: Path, addresses: tuple[str, ...] = ("127.0.0.1", "::1")) -> None:
        key, own = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "authority")])
        now = datetime.datetime.now(datetime.UTC)

        def certificate(subject: x509.Name, of: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
            return (
                x509.CertificateBuilder(name, subject, of.public_key(), x509.random_serial_number())
                .not_valid_before(now - datetime.timedelta(days=1))
                .not_valid_after(now + datetime.timedelta(days=1))
            )

        identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
        root = certificate(name, key).add_extension(x509.BasicConstraints(True, None), True)
        root = root.add_extension(identifier, False).add_extension(
            x509.KeyUsage(True, False, False, False, False, True, True, False, False), True
        )
        named = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address)) for address in addresses])
        leaf = certificate(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "server")]), own)
        leaf = leaf.add_extension(named, False).add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), False
        )
        folder.mkdir()
        self.certificate, self.chain = folder / "ca.crt", folder / "server.pem"
        self.certificate.write_bytes(root.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
        self.chain.write_bytes(
            own.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
            + leaf.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
        )


class ApiServer:
    """`secrets`: what is stored, data in base64 as Kubernetes has it; `requests`: method, path, token, body of each."""

    def __init__(self, authority: Authority, host: str = "127.0.0.1", port: int = 0) -> None:
        self.secrets: dict[str, dict[str, Any]] = {}
        self.requests: list[tuple[str, str, str, dict[str, Any]]] = []
        self.token = TOKEN
        self.allowed = {"create"}  # the verbs on secrets of the account's Role
        self.refuse: Callable[[str], tuple[int, str, dict[str, str]] | None] = lambda _: None
        self.before: Callable[[str], None] = lambda _: None  # what happens while a request is on its way
        self.host = host
        self._lock = threading.Lock()
        self._http = _server(self, host, port)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(authority.chain)
        self._http.socket = context.wrap_socket(self._http.socket, server_side=True, do_handshake_on_connect=False)
        self.port = self._http.server_address[1]

    @contextmanager
    def running(self) -> Iterator["ApiServer"]:
        thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield self
        finally:
            self._http.shutdown()
            thread.join()
            self._http.server_close()

    def put(self, name: str, values: dict[str, str]) -> None:
        data = {key: b64encode(value.encode()).decode() for key, value in values.items()}
        self.secrets[name] = {"metadata": {"name": name}, "data": data}

    def answer(
        self, method: str, path: str, token: str, body: dict[str, Any]
    ) -> tuple[int, dict[str, Any], dict[str, str]]:
        with self._lock:
            self.requests.append((method, path, token, body))
            name = body.get("metadata", {}).get("name", "")
            refused = self.refuse(name)
            if refused:
                code, message, headers = refused
                return code, _status(code, message), headers
            if token != f"Bearer {self.token}":
                return 401, _status(401, "Unauthorized"), {}
            if method != "POST" or "create" not in self.allowed:
                return 403, _status(403, FORBIDDEN), {}
            if path != PATH:
                return 404, _status(404, f'namespaces "{path.split("/")[4]}" not found'), {}
            self.before(name)
            if name in self.secrets:
                return 409, _status(409, f'secrets "{name}" already exists'), {}
            self.put(name, body["stringData"])
            return 201, {"kind": "Secret", **self.secrets[name]}, {}


def _status(code: int, message: str) -> dict[str, Any]:
    reason = REASONS.get(code, "")
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "status": "Failure",
        "message": message,
        "reason": reason,
        "code": code,
    }


def _server(api: ApiServer, host: str, port: int) -> ThreadingHTTPServer:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _any(self) -> None:
            length = int(self.headers.get("Content-Length", 0))
            body = json.loads(self.rfile.read(length) or b"{}")
            code, answer, headers = api.answer(self.command, self.path, self.headers.get("Authorization", ""), body)
            content = json.dumps(answer).encode()
            self.send_response(code)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _any

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        address_family = socket.AF_INET6 if ":" in host else socket.AF_INET

        def handle_error(self, *_: object) -> None:
            pass  # a client that refuses the certificate

    return Server((host, port), Handler)
