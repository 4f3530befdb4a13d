"""Web server of the demo: serves the corpus as two web sites on loopback, each on a fixed port.

The ports are fixed, because the URL of an image is part of a sample's identity: another port would be another dataset.
Responses have what a crawler reads on the real web: content type with charset, Last-Modified, ETag, 304 for a
conditional request, 404, and robots.txt. Folders are not listed.

Limits: HTTP/1.1, GET and HEAD of files; no ranges, no TLS.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import IO, Any

from tests.demo.packages import DemoError

HOST = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Site:
    """A folder served on a port of the loopback address."""

    name: str
    port: int

    @property
    def base_url(self) -> str:
        """URL of the site's root, with the closing slash."""
        return f"http://{HOST}:{self.port}/"


HANDBOOK = Site("handbook", 18461)
STAMPS = Site("stamps", 18462)
SITES = (HANDBOOK, STAMPS)


_CONTENT_TYPES = {  # not the machine's mime.types: the same answer everywhere
    "": "application/octet-stream",
    ".css": "text/css; charset=utf-8",
    ".gif": "image/gif",
    ".html": "text/html; charset=utf-8",
    ".jpg": "image/jpeg",
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
    ".xpm": "image/x-xpixmap",
}


class _Handler(SimpleHTTPRequestHandler):
    """Files below one folder. The base class keeps paths inside it and does Last-Modified."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # headers and body are two writes: Nagle would hold the second for 40 ms
    server_version = "wenlan-demo"
    sys_version = ""
    timeout = 30
    extensions_map = _CONTENT_TYPES

    def send_head(self) -> Any:
        """Answer 304 if the client's ETag is current, else as the base class does."""
        path = self._file()
        if path.is_file() and (tag := _etag(path)) in self.headers.get("If-None-Match", ""):
            self.send_response(HTTPStatus.NOT_MODIFIED)
            self.send_header("ETag", tag)
            self.end_headers()
            return None
        return super().send_head()

    def _file(self) -> Path:
        """The file that the request names; index.html for a folder."""
        path = Path(self.translate_path(self.path))
        return path / "index.html" if path.is_dir() else path

    def end_headers(self) -> None:
        """Add the ETag to every response that is a file."""
        path = self._file()
        if self._answered == HTTPStatus.OK and path.is_file():
            self.send_header("ETag", _etag(path))
        super().end_headers()

    def send_response(self, code: int, message: str | None = None) -> None:
        """Keep the status for end_headers."""
        self._answered = code
        super().send_response(code, message)

    def list_directory(self, path: str | os.PathLike[str]) -> IO[bytes] | None:  # type: ignore[override]
        """A folder without index.html is not listed."""
        self.send_error(HTTPStatus.FORBIDDEN, "folders are not listed")
        return None

    def log_message(self, format: str, *args: Any) -> None:
        """No log: the build reports what it fetched."""


def _etag(path: Path) -> str:
    """Strong validator from size and modification time."""
    stat = path.stat()
    return '"' + hashlib.sha256(f"{stat.st_size} {stat.st_mtime_ns}".encode()).hexdigest()[:16] + '"'


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """No traceback for a client that disconnects in the middle of a response."""


@contextmanager
def serve(corpus: Path, sites: tuple[Site, ...] = SITES) -> Iterator[None]:
    """Serve `corpus/<site name>` for each site while the context lasts.

    Raises DemoError if a folder is missing or a port is taken.
    """
    with ExitStack() as stack:
        for site in sites:
            folder = corpus / site.name
            if not folder.is_dir():
                raise DemoError(f"{folder}: is missing; make the corpus first with: python -m tests.demo corpus")
            try:
                server = _Server((HOST, site.port), partial(_Handler, directory=str(folder)))
            except OSError as e:
                if e.errno != errno.EADDRINUSE:
                    raise DemoError(f"{site.base_url}: cannot be served: {e.strerror}") from None
                raise DemoError(
                    f"port {site.port} of {HOST} is taken by another program, and the demo's {site.name} site needs "
                    "just this one: URLs are part of a sample's identity; stop that program and start again"
                ) from None
            stack.callback(server.server_close)
            Thread(target=server.serve_forever, name=f"serve-{site.name}", daemon=True).start()
            stack.callback(server.shutdown)
        yield
