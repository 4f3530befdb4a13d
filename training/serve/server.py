"""The server process: uvicorn with bounds on connections, headers and slow readers, and a graceful stop.

uvicorn bounds neither the time of a request's headers nor that of a client that reads no answer; `_Protocol` does. On
SIGTERM or SIGINT no connection is taken any more, requests in flight are answered within `drain_s`, and the process
ends with 0.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import logging
import signal
import socket
from collections.abc import Iterator
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from data_specs.web.http_app import App, error_body
from training.errors import ConfigError
from training.serve.options import Options

LOG = logging.getLogger(__name__)

_HEADER_BYTES = 32 * 2**10
_UNREAD_S = 30.0
"""Seconds that a client may leave an answer unread."""


def listen(host: str, port: int) -> socket.socket:
    """A socket of this address; port 0 for any free one. Raises ConfigError."""
    if not 0 <= port < 2**16:  # getaddrinfo takes what is left of it in 16 bits
        raise ConfigError("--port", f"{port} is not between 0 and 65535")
    bound = None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as e:
        if bound is not None:
            bound.close()
        raise _listen_error(host, port, e) from None
    return bound


def accept(bound: socket.socket, options: Options) -> None:
    """Let clients connect to a socket of `listen`; they wait until `run`. Raises ConfigError.

    A port that another server has bound and does not listen on yet shows only here.
    """
    try:
        bound.listen(options.connections)
    except OSError as e:
        host, port = bound.getsockname()[:2]
        raise _listen_error(host, port, e) from None


def _listen_error(host: str, port: int, e: OSError) -> ConfigError:
    hint = "; use --port 0 for a free one" if e.errno == errno.EADDRINUSE else ""
    option = "--host" if isinstance(e, socket.gaierror) else "--port"
    return ConfigError(option, f"{host}:{port}: {e.strerror or e}{hint}")


def run(app: App, bound: socket.socket, options: Options) -> None:
    """Serve until SIGTERM or SIGINT."""
    server = make_server(app, options)
    asyncio.run(server.serve(sockets=[bound]))


def make_server(app: App, options: Options) -> uvicorn.Server:
    """A server of an application, with the bounds of this module."""
    protocol = type("Protocol", (_Protocol,), {"header_s": options.header_s, "most": options.connections})
    config = uvicorn.Config(
        app,
        http=protocol,
        ws="none",
        loop="asyncio",
        lifespan="on",
        access_log=False,
        log_config=None,
        log_level="error",
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=5,
        timeout_graceful_shutdown=int(options.drain_s),
        h11_max_incomplete_event_size=_HEADER_BYTES,
    )
    return _Server(config)


class _Server(uvicorn.Server):
    """uvicorn's server, whose process ends with 0 after a signal to end."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Let SIGTERM and SIGINT end the server; a second one cancels what is in flight."""
        try:
            before = {s: signal.signal(s, self._end) for s in (signal.SIGTERM, signal.SIGINT)}
        except ValueError:  # not in the main thread: a test
            before = {}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _end(self, *_: Any) -> None:
        if self.should_exit:
            self.force_exit = True
        else:
            LOG.info("stopping: requests in flight are answered, new ones refused")
        self.should_exit = True


class _Protocol(H11Protocol):
    """A connection that ends when headers do not arrive, or an answer is not read, in time."""

    header_s = 10.0
    most = 512
    _since = 0.0
    _waiting: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a connection. Where there are too many, the one that has asked for nothing for longest makes room; if
        all are at work, the new one is refused."""
        super().connection_made(transport)
        self._since = self.loop.time()
        if len(self.connections) > self.most:
            idle = [
                one for one in self.connections if isinstance(one, _Protocol) and one is not self and one._is_idle()
            ]
            if not idle:
                transport.write(_FULL)
                transport.close()
                return
            oldest = min(idle, key=lambda one: one._since)
            self.connections.discard(oldest)  # now: its `connection_lost` is called later
            oldest.transport.abort()
        self._arm()

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        self.resume_writing()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take bytes: of a request's headers within their time."""
        if self._is_idle() and self._waiting is None:
            self._arm()
        super().data_received(data)
        if not self._is_idle():
            self._disarm()

    def send_400_response(self, msg: str) -> None:
        """Answer bytes that are not HTTP in the one form of errors."""
        self._disarm()
        self.transport.write(_NO_HTTP)
        self.transport.close()

    def pause_writing(self) -> None:
        """The client does not read: it has so long to begin again."""
        super().pause_writing()
        self._unread = self.loop.call_later(_UNREAD_S, self.transport.abort)

    def resume_writing(self) -> None:
        """The client reads again."""
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None
        super().resume_writing()

    def _is_idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _arm(self) -> None:
        self._waiting = self.loop.call_later(self.header_s, self._too_slow)

    def _disarm(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None

    def _too_slow(self) -> None:
        self._waiting = None
        if self._is_idle() and not self.transport.is_closing():
            self.transport.close()


def _raw(status: str, message: str, code: str) -> bytes:
    body = json.dumps(error_body(int(status[:3]), message, code=code)).encode()
    head = f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
    head += "retry-after: 2\r\n" if status.startswith("503") else ""
    return f"{head}connection: close\r\n\r\n".encode() + body


_NO_HTTP = _raw(
    "400 Bad Request", "not a valid HTTP/1.1 request; percent-encode non-ASCII characters in a URL", "no_http"
)
_FULL = _raw("503 Service Unavailable", "too many connections; try again later", "connections")
