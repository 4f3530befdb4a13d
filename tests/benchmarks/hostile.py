"""A server on loopback that means ill, for bench_fetch and bench_hostile: one address a trick, and a host inside."""

from __future__ import annotations

import contextlib
import gzip
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.benchmarks.harness import photos


def png(side: int, rows: int = 1_000_000) -> bytes:
    """A PNG whose header promises side x side pixels, and whose data unpacks to `rows` zero bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * rows)) + chunk(b"IEND", b"")
    )


JPEG = {"Content-Type": "image/jpeg"}


def photo() -> bytes:
    """One photo."""
    return photos()[0].read_bytes()


def answers() -> dict[str, tuple[int, dict[str, str], bytes]]:
    """What the server answers: status, headers and body by path."""
    shown = photo()
    return {
        "/file": (302, {"Location": "file:///etc/passwd"}, b""),
        "/png-bomb": (200, {"Content-Type": "image/png"}, png(32_000)),
        "/gzip-bomb": (200, {**JPEG, "Content-Encoding": "gzip"}, gzip.compress(b"\0" * 200_000_000)),
        "/noai": (200, {**JPEG, "X-Robots-Tag": "noai"}, shown),
        "/noai-among": (200, {**JPEG, "X-Robots-Tag": "noai, max-image-preview:large"}, shown),
        "/noai-for-us": (200, {**JPEG, "X-Robots-Tag": "wenlan: noindex"}, shown),
        "/reserved": (200, {**JPEG, "tdm-reservation": "1"}, shown),
        "/wrong-type": (200, JPEG, b"<!doctype html><title>login</title>"),
        "/private/x": (200, JPEG, shown),
        "/fine": (200, JPEG, shown),
        "/robots.txt": (200, {"Content-Type": "text/plain"}, b"User-agent: *\nDisallow: /private/\n"),
    }


@dataclass
class Server:
    """A running server and what it was asked."""

    port: int
    answers: dict[str, Any]
    asked: list[str] = field(default_factory=list)

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"http://{self.host}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server_of: Server

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.server_of.asked.append(self.path)
        if path == "/endless":
            self._stream(b"\xff\xd8\xff" * 20_000, 100_000, 0.0)
        elif path == "/slow":
            self._stream(b"x", 120, 1.0)
        else:
            status, headers, body = self.server_of.answers.get(path) or (404, {}, b"")
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

    def _stream(self, block: bytes, times: int, pause: float) -> None:
        """An answer that nobody announced the length of."""
        self.send_response(200)
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        for _ in range(times):
            self.wfile.write(block)
            self.wfile.flush()
            time.sleep(pause)

    def log_message(self, format: str, *args: Any) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 512

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is what this server is for."""


@contextlib.contextmanager
def hostile(answers: dict[str, Any]) -> Iterator[Server]:
    """Run one that answers so."""
    handler = type("Handler", (_Handler,), {})
    server = _Server(("127.0.0.1", 0), handler)
    handler.server_of = Server(server.server_port, answers)  # type: ignore[attr-defined]
    threading.Thread(target=lambda: server.serve_forever(poll_interval=0.05), daemon=True).start()
    try:
        yield handler.server_of  # type: ignore[attr-defined]
    finally:
        server.shutdown()
        server.server_close()
