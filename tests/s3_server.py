"""S3 servers on loopback, for tests and drills, and a proxy that counts the requests to them and injects faults.

    with moto() as server, Proxy(server.url) as proxy:
        environment = server.environment(proxy.url)  # for processes; `server.entered(proxy.url)` for this one
        server.make_bucket("data")
        proxy.fail("503", share=0.01)  # until `proxy.heal()`, or for `seconds`
        proxy.requests  # what was asked of the server

Both servers check signatures. moto honours conditional writes (If-None-Match, If-Match) and refuses small parts; nanio
ignores conditions without a word, as a number of stores do. (So does Ceph's gateway over SQLite, Debian's `radosgw`,
which also answers a request for a range with another range, and so is of no use here.)
"""

from __future__ import annotations

import contextlib
import http.client
import json
import logging
import os
import random
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from tests.processes import free_ports

REGION = "us-east-1"

FaultKind = Literal["503", "500", "reset", "lost"]
"""503: SlowDown. 500: InternalError. reset: the connection breaks before the server hears of the request. lost: after
the server has answered, so that what was asked for is done and nobody is told."""


@dataclass(frozen=True)
class Server:
    """A running S3 server: its address, and the one key that it knows."""

    url: str
    key: str
    secret: str

    def environment(self, url: str = "") -> dict[str, str]:
        """Environment variables that lead to the server; `url`: through a proxy in front of it."""
        return {
            "AWS_ENDPOINT_URL": url or self.url,
            "AWS_ACCESS_KEY_ID": self.key,
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_EC2_METADATA_DISABLED": "true",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }

    @contextlib.contextmanager
    def entered(self, url: str = "") -> Iterator[None]:
        """This process asks the server (through a proxy at `url`), as long as the block runs."""
        import fsspec

        with pytest.MonkeyPatch.context() as patch:
            for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
                patch.delenv(name)
            for name, value in self.environment(url).items():
                patch.setenv(name, value)
            fsspec.get_filesystem_class("s3").clear_instance_cache()
            yield
            fsspec.get_filesystem_class("s3").clear_instance_cache()

    def client(self) -> Any:
        """boto3's client of the server."""
        import boto3

        keys = {"aws_access_key_id": self.key, "aws_secret_access_key": self.secret, "region_name": REGION}
        return boto3.client("s3", endpoint_url=self.url, **keys)

    def make_bucket(self, name: str) -> str:
        """Make a bucket; returns its URL."""
        self.client().create_bucket(Bucket=name)
        return f"s3://{name}"


@dataclass(frozen=True)
class Remote:
    """A bucket that is asked through a proxy, by this process and those that it starts. url: of the bucket."""

    server: Server
    proxy: Proxy
    url: str


@contextlib.contextmanager
def remote(folder: Path, start: Callable[[Path], contextlib.AbstractContextManager[Server]]) -> Iterator[Remote]:
    """A bucket on a server of its own: `moto` or `nanio`. folder: for the server's files and log."""
    with start(folder) as server, Proxy(server.url) as proxy, server.entered(proxy.url):
        yield Remote(server, proxy, server.make_bucket("data"))


@contextlib.contextmanager
def _process(command: list[str], log: Path, port: int, **environment: str) -> Iterator[str]:
    """Run a server as a process until the block ends; its URL once it listens."""
    with log.open("ab") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env={**os.environ, **environment})
    try:
        until = time.monotonic() + 120
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            said = log.read_text(errors="replace")[-2000:]
            assert process.poll() is None, said
            assert time.monotonic() < until, f"{command[0]} does not listen: {said}"
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def hasten_moto() -> None:
    """Let moto's server, in this process, answer in two thirds of the time.

    For every request it looks on the disk which of 200 services it has, and writes a line of log.
    """
    from moto import backends

    services = frozenset(backends.list_of_moto_modules())
    backends.list_of_moto_modules = lambda: services
    logging.getLogger("werkzeug").setLevel(logging.ERROR)


_MOTO = """
import sys
from moto.server import main
from tests.s3_server import hasten_moto
hasten_moto()
main(sys.argv[1:])
"""


@contextlib.contextmanager
def moto(folder: Path) -> Iterator[Server]:
    """moto's server in a process of its own, which knows one user and refuses every other signature.

    folder: for its log. Skips where moto is not installed.
    """
    pytest.importorskip("s3fs", reason="s3fs is not installed: pip install 'wenlan[s3]'")
    boto3 = pytest.importorskip("boto3")
    pytest.importorskip("moto.server", reason="moto[server] is not installed: no S3 server to test against")
    [port] = free_ports(1)
    command = [sys.executable, "-c", _MOTO, "-H", "127.0.0.1", "-p", str(port)]
    # The first three requests, which make the user, are let through.
    with _process(command, folder / "moto.log", port, INITIAL_NO_AUTH_ACTION_COUNT="3") as url:
        keys = {"aws_access_key_id": "first", "aws_secret_access_key": "first", "region_name": REGION}
        iam = boto3.client("iam", endpoint_url=url, **keys)
        iam.create_user(UserName="builder")
        made = iam.create_access_key(UserName="builder")["AccessKey"]
        every = {"Effect": "Allow", "Action": "*", "Resource": "*"}
        policy = json.dumps({"Version": "2012-10-17", "Statement": [every]})
        iam.put_user_policy(UserName="builder", PolicyName="all", PolicyDocument=policy)
        yield Server(url, made["AccessKeyId"], made["SecretAccessKey"])


@contextlib.contextmanager
def nanio(folder: Path) -> Iterator[Server]:
    """A server that checks signatures and ignores conditions. Skips where its program is not on the path."""
    program = shutil.which("nanio")
    if program is None:
        pytest.skip(
            "nanio is not installed: no S3 server without conditional writes to test against (pip install nanio)"
        )
    [port], server = free_ports(1), Server("", "AKNANIO", "a-secret-of-this-server-alone")
    command = [program, "serve", "--data-dir", str(folder / "data"), "--host", "127.0.0.1", "--port", str(port)]
    keys = {"NANIO_ACCESS_KEY": server.key, "NANIO_SECRET_KEY": server.secret}
    with _process(command, folder / "nanio.log", port, **keys) as url:
        yield Server(url, server.key, server.secret)


@dataclass(frozen=True)
class Request:
    """One request: `operation` is the method, LIST for a listing of one folder (or of one name), LIST ALL for one of
    all that lies below it; `path` is bucket/key, of a listing bucket/prefix.

    status: of the answer, 0 where the connection was broken.
    """

    operation: str
    path: str
    status: int


class Proxy:
    """Passes requests on to a server unchanged (signatures stay valid), notes them, and fails some on request."""

    def __init__(self, target: str, seed: int = 1) -> None:
        self.requests: list[Request] = []
        self._target, self._random, self._lock = urlsplit(target), random.Random(seed), threading.Lock()
        self.conditional = threading.Lock()
        """Is held by one conditional request at a time."""
        self._kind: FaultKind | None = None
        self._share = self._until = 0.0
        self._hits: Callable[[str, str], bool] = _all
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Proxy:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def fail(
        self,
        kind: FaultKind,
        share: float = 1.0,
        seconds: float = float("inf"),
        hits: Callable[[str, str], bool] | None = None,
    ) -> None:
        """Fail a share of the requests from now on. hits(operation, path): which may fail, by default all."""
        with self._lock:
            self._kind, self._share, self._until, self._hits = kind, share, time.monotonic() + seconds, hits or _all

    def heal(self) -> None:
        """Fail no more."""
        with self._lock:
            self._kind = None

    def failed(self) -> list[Request]:
        """The requests that were failed, or that the server refused with a fault of its own."""
        return [request for request in self.requests if request.status in (0, 500, 503)]

    def lists(self, operation: str = "LIST") -> list[str]:
        """bucket/prefix of every listing of one folder, or (LIST ALL) of all below one; one asked again counts once."""
        failed = self.failed()
        return [request.path for request in self.requests if request.operation == operation and request not in failed]

    def fault(self, operation: str, path: str) -> FaultKind | None:
        """The fault of one request."""
        with self._lock:
            if self._kind is None or time.monotonic() > self._until or not self._hits(operation, path):
                return None
            return self._kind if self._random.random() < self._share else None

    def note(self, operation: str, path: str, status: int) -> None:
        with self._lock:
            self.requests.append(Request(operation, path, status))

    def connection(self) -> http.client.HTTPConnection:
        """A connection to the server."""
        return http.client.HTTPConnection(self._target.hostname or "", self._target.port, timeout=300)


def _all(operation: str, path: str) -> bool:
    return True


def asked(method: str, target: str) -> tuple[str, str]:
    """(operation, bucket/key) of a request; of a listing the prefix stands for the key."""
    parts = urlsplit(target)
    path, query = unquote(parts.path).strip("/"), parse_qs(parts.query, keep_blank_values=True)
    if method == "GET" and "/" not in path:
        is_one = query.get("delimiter", [""])[0] or query.get("max-keys") == ["1"]
        return "LIST" if is_one else "LIST ALL", f"{path}/{query.get('prefix', [''])[0]}"
    return method, path


_BETWEEN_TWO = ("connection", "keep-alive", "transfer-encoding", "proxy-connection", "expect")
"""Headers that are about one connection (RFC 9110, 7.6.1), in lower case; the body is passed on in one piece."""


def _handler(proxy: Proxy) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def setup(self) -> None:
            super().setup()
            self.upstream = proxy.connection()

        def finish(self) -> None:
            with contextlib.suppress(OSError):  # the connection was broken on purpose
                super().finish()
            self.upstream.close()

        def log_message(self, *_: object) -> None:
            pass

        def _pass_on(self) -> None:
            body = self._body()
            operation, path = asked(self.command, self.path)
            kind = proxy.fault(operation, path)
            if kind in ("503", "500"):
                code = "SlowDown" if kind == "503" else "InternalError"
                error = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>a drill</Message></Error>".encode()
                proxy.note(operation, path, int(kind))
                self._answer(int(kind), {"Content-Type": "application/xml"}, error)
                return
            if kind != "reset":
                headers = {n: v for n, v in self.headers.items() if n.lower() not in _BETWEEN_TWO}
                # moto looks whether a condition holds, and then writes, in threads: a store does both at once
                is_conditional = bool({"if-match", "if-none-match"} & {name.lower() for name in headers})
                alone: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
                if is_conditional:
                    alone = proxy.conditional
                with alone:
                    self.upstream.request(self.command, self.path, body, {**headers, "Content-Length": str(len(body))})
                    answer = self.upstream.getresponse()
                    content = answer.read()
            if kind is not None:
                proxy.note(operation, path, 0)
                # closed with a reset: SO_LINGER of no seconds (socket(7))
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()
                self.close_connection = True
                return
            proxy.note(operation, path, answer.status)
            self._answer(answer.status, dict(answer.getheaders()), content)

        def _body(self) -> bytes:
            if "chunked" not in self.headers.get("Transfer-Encoding", "").lower():
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))
            body = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            while self.rfile.readline().strip():
                pass
            return body

        def _answer(self, status: int, headers: Mapping[str, str], content: bytes) -> None:
            self.send_response_only(status)
            of_head = self.command == "HEAD" or status in (204, 304)
            for name, value in headers.items():
                if name.lower() not in _BETWEEN_TWO and (of_head or name.lower() != "content-length"):
                    self.send_header(name, value)
            if not of_head:
                self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _pass_on

    return Handler
