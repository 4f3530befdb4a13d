"""HTTP GET for threads: connections are kept, one deadline covers a whole request, a body stays within its byte cap.

HTTP is read by `http.client`; sockets are connected here, inside the scope of the guard (`pipeline.web.guard`), which
judges each address. A request has one deadline from name lookup to the last byte: a watchdog shuts the socket when the
time is up, so that a server that sends one byte per second (in the body or in the headers) holds no thread. Sockets
have no timeouts of their own once they are connected, since each would be another system call and another contention
for Python's lock: with 32 threads those are most of what a small picture costs. For the same reason headers are not
read by `email.parser`.

Limits: HTTP/1.1; a name lookup that hangs is as slow as the resolver.
"""

from __future__ import annotations

import functools
import http.client
import re
import socket
import ssl
import threading
import time
from collections import deque
from contextlib import ExitStack
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from urllib.parse import SplitResult, urlsplit

from pipeline.web.bodies import BodyTooLarge, unpacked

MAX_ADDRESSES = 4
"""Addresses of a name that are tried."""

KEPT_S = 10.0
"""How long an idle connection is kept."""

LARGE, LARGE_AT_ONCE = 2 << 20, 6
"""Bytes from which a body is large, and how many large ones a process reads or unpacks at the same time: if all threads
meet a decompression bomb, memory must not hold a largest body for each of them."""

MAX_HEADERS, MAX_LINE = 200, 1 << 16
"""Headers of a response, and bytes per header line."""

_BLOCK = 1 << 16  # bytes read from a socket at a time
_SMALL = 1 << 16  # bytes of an unwanted body that are read so that its connection can be used again
_MOST_HOSTS = 64  # hosts with idle connections, from which on those idle for long are closed
_UNSENDABLE = re.compile(r"[^\x21-\x7e]")
_END_OF_HEADERS = re.compile(rb"(?:\A|\n)\r*\n")

Place = tuple[str, str, int]
"""Scheme, host and port that a connection leads to."""


@functools.cache
def _tls() -> ssl.SSLContext:
    """How certificates are checked: against those of this machine, which take 20 ms to read, by whoever opens https."""
    return ssl.create_default_context()


class Headers:
    """Headers of a response, in their order."""

    def __init__(self, pairs: list[tuple[str, str]]) -> None:
        self._pairs = pairs
        self._first: dict[str, str] = {}  # by name in lower case
        for name, value in pairs:
            self._first.setdefault(name.lower(), value)

    def get(self, name: str, default: str = "") -> str:
        """The first value of a header, whose name may be written in any way."""
        return self._first.get(name.lower(), default)

    def items(self) -> list[tuple[str, str]]:
        """Names, as the server wrote them, and values; a name may stand several times."""
        return self._pairs


@dataclass(frozen=True, slots=True)
class Response:
    """One HTTP response; the body is unpacked and within the cap."""

    status: int
    headers: Headers
    body: bytes


class HttpClient:
    """Sends GET requests over connections that it keeps. Safe for several threads."""

    def __init__(self) -> None:
        self._connections = _Connections()
        self._large = threading.Semaphore(LARGE_AT_ONCE)

    def get(self, url: str, headers: dict[str, str], cap: int, whole: bool, deadline: Deadline) -> Response:
        """GET, on a kept connection; on a new one where there is none, or where the server has closed it meanwhile.

        Raises OSError, http.client.HTTPException and ValueError; BodyTooLarge with `whole` if the body is larger than
        `cap` bytes, without `whole` it is cut. What fails after the deadline has struck (`deadline.cut`) may look like
        anything.
        """
        parts = urlsplit(url)
        place = _place(parts.scheme, parts.netloc)
        request = _request(place, parts, headers)
        while True:
            sock, kept = self._connections.get(place, deadline)
            keep = False
            try:
                with _ResponseReader(sock) as response:
                    try:
                        sock.sendall(request)
                        response.begin()
                    except (ConnectionError, http.client.BadStatusLine):
                        if kept and not deadline.cut:
                            continue
                        raise
                    body = _read(response, cap, whole, self._large, deadline)
                    finished = response.isclosed() or response.length == 0
                    keep = finished and not response.will_close and not deadline.cut
            finally:
                if not keep:
                    sock.close()
            if keep:
                self._connections.put(place, sock)
            return Response(response.status, response.headers, body)

    def close(self) -> None:
        """Close the connections that are kept."""
        self._connections.close()


@functools.lru_cache(maxsize=4096)
def _place(scheme: str, netloc: str) -> Place:
    """Where the connection for a URL leads to. Raises ValueError."""
    parts = SplitResult(scheme, netloc, "", "", "")
    return scheme, parts.hostname or "", parts.port or (443 if scheme == "https" else 80)


def _request(place: Place, parts: SplitResult, headers: dict[str, str]) -> bytes:
    """The bytes of a request. Raises ValueError for an address that cannot be sent as it is."""
    scheme, host, port = place
    if not host.isascii():
        host = host.encode("idna").decode("ascii")
    host = f"[{host}]" if ":" in host else host
    if port != (443 if scheme == "https" else 80):
        host = f"{host}:{port}"
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    if _UNSENDABLE.search(target + host):
        raise ValueError("the address holds characters that HTTP cannot send")
    lines = "".join(f"{name}: {value}\r\n" for name, value in {"Host": host, **headers}.items())
    return f"GET {target} HTTP/1.1\r\n{lines}\r\n".encode("ascii")


class _ResponseReader(http.client.HTTPResponse):
    """http.client's response, but for how its headers are read: `email.parser` takes as long as all else together."""

    headers: Headers  # type: ignore[assignment]

    def __init__(self, sock: socket.socket) -> None:
        buffered: Any = SimpleNamespace(makefile=lambda mode: sock.makefile(mode, _BLOCK))
        super().__init__(buffered, method="GET")

    def begin(self) -> None:
        """Read status line and headers (RFC 9112). Raises HTTPException, ConnectionError if the connection has ended.

        Does what `HTTPResponse.begin` does, and sets the same attributes, which `read` and `read1` rely on.
        """
        status = 100
        while 100 <= status < 200:  # 1xx responses come before the final one
            version, status, reason = self._read_status()  # type: ignore[attr-defined]
            headers = _read_headers(self.fp)
        self.code = self.status = status
        self.reason, self.version = reason.strip(), 10 if version == "HTTP/1.0" else 11
        self.headers = headers
        coding, length = headers.get("transfer-encoding"), headers.get("content-length")
        self.chunked = coding.strip().lower() == "chunked"
        self.chunk_left = None
        # a length that is not a plain number is as good as none: the body then ends with the connection
        self.length = int(length) if length.isdecimal() and length.isascii() and not self.chunked else None
        if status in (204, 304):
            self.length = 0
        self.will_close = self._check_close() or (self.length is None and not self.chunked)  # type: ignore[attr-defined]


def _read_headers(file: Any) -> Headers:
    """Headers up to the empty line. A line that begins with a space goes on with the one before (RFC 9112, 5.2)."""
    end = _END_OF_HEADERS.search(file.peek())
    if end is not None:  # they are all there, as nearly always
        lines = str(file.read(end.end()), "latin-1").split("\n")[:-2]
    else:
        lines = []
        while len(lines) < MAX_HEADERS and (line := file.readline(MAX_LINE + 1)).strip(b"\r\n"):
            if len(line) > MAX_LINE:
                raise http.client.LineTooLong("header line")
            lines.append(str(line, "latin-1"))
    if len(lines) >= MAX_HEADERS:
        raise http.client.HTTPException(f"more than {MAX_HEADERS} headers")
    pairs: list[tuple[str, str]] = []
    for line in lines:
        if pairs and line[0] in " \t":
            name, value = pairs.pop()
            pairs.append((name, f"{value} {line.strip()}"))
        else:
            name, _, value = line.partition(":")
            pairs.append((name.strip(), value.strip()))
    return Headers(pairs)


class _Connections:
    """Idle connections by place. Each was judged by the guard's hook when it was made."""

    def __init__(self) -> None:
        self._idle: dict[Place, deque[tuple[float, socket.socket]]] = {}
        self._lock = threading.Lock()

    def get(self, place: Place, deadline: Deadline) -> tuple[socket.socket, bool]:
        """(a connection, whether it was used before), watched by the deadline. Raises OSError."""
        with self._lock:
            idle = self._idle.get(place, ())
            while idle:
                since, sock = idle.pop()
                if time.monotonic() - since <= KEPT_S:
                    deadline.watch(sock)
                    return sock, True
                sock.close()
        return self._open(place, deadline), False

    def put(self, place: Place, sock: socket.socket) -> None:
        """Keep a connection whose response was read to its end. Those that have been idle for long are closed."""
        now = time.monotonic()
        with self._lock:
            self._idle.setdefault(place, deque()).append((now, sock))
            if len(self._idle) > _MOST_HOSTS:
                for other in [p for p, idle in self._idle.items() if not idle or now - idle[-1][0] > KEPT_S / 4]:
                    for _, old in self._idle.pop(other):
                        old.close()

    def close(self) -> None:
        """Close them all."""
        with self._lock:
            for idle in self._idle.values():
                for _, sock in idle:
                    sock.close()
            self._idle.clear()

    def _open(self, place: Place, deadline: Deadline) -> socket.socket:
        """A new connection, watched. Raises OSError."""
        scheme, host, port = place
        sock: socket.socket = _connect(host, port, deadline)
        try:
            if scheme == "https":
                sock = _tls().wrap_socket(sock, server_hostname=host, do_handshake_on_connect=False)
                deadline.watch(sock)
                sock.do_handshake()
        except BaseException:
            sock.close()
            raise
        return sock


class Deadlines:
    """One thread that cuts connections whose time is up. All deadlines are equally long, so they end in the order in
    which they began: the first that waits is always the next."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._waiting: deque[Deadline] = deque()
        self._change = threading.Lock()
        self._running = False

    def deadline(self) -> Deadline:
        """A deadline that begins now."""
        deadline = Deadline(time.monotonic() + self._seconds)
        with self._change:
            self._waiting.append(deadline)
            if not self._running:
                threading.Thread(target=self._watch, name="wenlan-deadlines", daemon=True).start()
                self._running = True
        return deadline

    def _watch(self) -> None:
        """The thread's loop; it ends when there is nothing to watch."""
        while True:
            with self._change:
                while self._waiting and self._waiting[0].done:
                    self._waiting.popleft()
                if not self._waiting:
                    self._running = False
                    return
                first = self._waiting[0]
            remaining = first.end - time.monotonic()
            if remaining > 0:
                time.sleep(min(remaining, 0.2))
            else:
                first.strike()
                with self._change:
                    self._waiting.popleft()


class Deadline:
    """The time of one request. When it is up the watched socket is shut, whatever waits for it, and `cut` is set."""

    def __init__(self, end: float) -> None:
        self.cut, self.done, self.end = False, False, end
        self._sock: socket.socket | None = None
        self._lock = threading.Lock()

    def __enter__(self) -> Deadline:
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._sock, self.done = None, True

    def remaining(self) -> float:
        """Seconds that remain. Raises TimeoutError if the time is up."""
        remaining = self.end - time.monotonic()
        if remaining <= 0:
            raise TimeoutError
        return remaining

    def watch(self, sock: socket.socket) -> None:
        """Shut this socket when the time is up. Raises TimeoutError if it is already."""
        with self._lock:
            if self.cut:
                raise TimeoutError
            self._sock = sock

    def strike(self) -> None:
        """Shut the socket: the time is up. Nothing happens to a request that is done."""
        with self._lock:
            if self.done:
                return
            self.cut = True
            if self._sock is not None:
                try:
                    # not SSLSocket's own method, which is not for two threads
                    socket.socket.shutdown(self._sock, socket.SHUT_RDWR)
                except OSError:
                    return  # closed already


def _connect(host: str, port: int, deadline: Deadline) -> socket.socket:
    """A connected and watched socket. Raises OSError of the last address tried; the guard's hook judges each."""
    last: OSError = OSError(f"{host} has no address")
    for family, kind, protocol, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[:MAX_ADDRESSES]:
        sock = socket.socket(family, kind, protocol)
        try:
            sock.settimeout(deadline.remaining())  # a socket that is not connected yet cannot be shut
            sock.connect(address)
            deadline.watch(sock)
            sock.settimeout(None)
        except OSError as e:
            sock.close()
            last = e
            continue
        return sock
    raise last


def _read(response: _ResponseReader, cap: int, whole: bool, large: threading.Semaphore, deadline: Deadline) -> bytes:
    """The body, unpacked; nothing of a response whose status is not 200.

    A body that turns out large, or is packed, waits until `large` lets it in. Raises TimeoutError if the time is up
    before.
    """
    if response.status != 200:
        if response.length is not None and response.length <= _SMALL:
            response.read()  # so that the connection can be used again
        return b""
    announced = response.headers.get("content-length", "")
    if whole and announced.isdigit() and int(announced) > cap:
        raise BodyTooLarge(f"{announced} bytes announced, {cap} are allowed")
    packed = response.headers.get("content-encoding", "")
    plain = packed.strip().lower() in ("", "identity")
    if plain and response.length is not None and response.length <= min(cap, LARGE):
        whole_body = response.read(response.length)
        if response.length:  # what is still to come, by http.client's account
            raise ConnectionError(f"the body ended {response.length} bytes early")
        return whole_body
    with ExitStack() as entered:
        body = bytearray()
        if not plain:
            _enter(large, deadline, entered)
        while plain and len(body) <= min(cap, LARGE) and (block := response.read1(_BLOCK)):
            body += block
        if len(body) > LARGE:
            _enter(large, deadline, entered)
        return _rest(response, cap, whole, packed, body)


def _enter(large: threading.Semaphore, deadline: Deadline, entered: ExitStack) -> None:
    """Wait to be one of the large bodies that are read at a time, until `entered` ends."""
    if not large.acquire(timeout=deadline.remaining()):
        raise TimeoutError
    entered.callback(large.release)


def _rest(response: http.client.HTTPResponse, cap: int, whole: bool, packed: str, body: bytearray) -> bytes:
    """The whole body, unpacked: what was read of it so far, in `body`, and the rest."""
    while len(body) <= cap and (block := response.read1(_BLOCK)):
        body += block
    if len(body) > cap:
        if whole:
            raise BodyTooLarge(f"more than {cap} bytes")
        del body[cap:]
    elif response.length:
        raise ConnectionError(f"the body ended {response.length} bytes early")
    return unpacked(bytes(body), packed, cap, whole)
