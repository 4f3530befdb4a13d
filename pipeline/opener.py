"""The opener that img2dataset's downloader fetches through: every rule of fetching images over HTTP, in one place.

img2dataset calls `urllib.request.urlopen` in threads; an opener set by `install_opener` is the one place where scheme,
addresses, redirects, user agent, robots.txt, pauses, opt-outs, bytes and total time can be held. It speaks HTTP by
`http.client` on sockets that it connects itself, inside the guard's scope, with one deadline for a request from name
lookup to the last byte: a watchdog cuts the socket when the time is up, so that a server that sends one byte a second
(in the body or in the headers) holds nobody.

Failures become reasons here, where they are known, since img2dataset keeps only their text.

Limits: pauses between requests to a host hold within one process; a build with several fetch workers asks a host up
to that many times as often. A name lookup that hangs is as slow as the resolver. No connection is used twice.
"""

from __future__ import annotations

import datetime
import http.client
import io
import socket
import ssl
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.message import Message
from typing import Any
from urllib.parse import urljoin, urlsplit

from w3lib.url import safe_url_string

from data_specs.build import BuildSpec
from pipeline import egress
from pipeline.records import DropReason

MAX_ADDRESSES = 4
"""Addresses of a name that are tried."""

_BLOCK = 1 << 16


class FetchFailed(OSError):
    """An image that was not fetched. `again`: asking once more in this build may help.

    `retry_after_s`: seconds after which a later build may ask again, None for never.
    """

    def __init__(
        self, reason: DropReason, evidence: str, *, again: bool = False, retry_after_s: float | None = None
    ) -> None:
        super().__init__(f"{reason.value}: {evidence}")
        self.reason, self.evidence = reason, evidence
        self.again, self.retry_after_s = again, retry_after_s


@dataclass(frozen=True, slots=True)
class Reply:
    """One HTTP answer; the body is unpacked and within the cap."""

    status: int
    headers: Message
    body: bytes


@dataclass(frozen=True, slots=True)
class Found:
    """What is known of an image that was fetched, beside its bytes."""

    etag: str
    fetched_at: str  # RFC 3339, UTC


class _Body(io.BytesIO):
    """What urlopen gives: a body in memory, and its headers."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(reply.body)
        self.headers, self.status = reply.headers, reply.status


class GuardedOpener(urllib.request.OpenerDirector):
    """Fetches by the rules of a spec. `found` and `failed` hold each URL's outcome."""

    def __init__(self, spec: BuildSpec) -> None:
        super().__init__()
        self._limits, self._agent = spec.egress, egress.user_agent(spec)
        self._guard = egress.guard_of(spec)
        self._tls = ssl.create_default_context()
        self._robots: dict[str, egress.Robots] = {}
        self._robots_locks: dict[str, threading.Lock] = {}
        self._next: dict[str, float] = {}  # host -> monotonic time of its next request
        self._lock = threading.Lock()
        self.found: dict[str, Found] = {}
        self.failed: dict[str, FetchFailed] = {}

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Be what `urllib.request.urlopen` uses, in all threads of this process."""
        before = vars(urllib.request)["_opener"]
        urllib.request.install_opener(self)
        try:
            yield
        finally:
            urllib.request.install_opener(before)

    def open(self, fullurl: Any, data: Any = None, timeout: float | None = None) -> Any:
        """The body of an image. Raises FetchFailed, also kept in `failed`; a lasting failure is not asked for again."""
        url = fullurl if isinstance(fullurl, str) else fullurl.full_url
        before = self.failed.get(url)
        if before is not None and not before.again:
            raise before
        try:
            reply = self._fetch(url)
        except FetchFailed as e:
            self.failed[url] = e
            raise
        self.failed.pop(url, None)
        now = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
        self.found[url] = Found(str(reply.headers.get("ETag") or "")[:200], now)
        return _Body(reply)

    def _fetch(self, url: str) -> Reply:
        """Follow redirects to an image, each hop under all rules."""
        for _ in range(self._limits.max_redirects + 1):
            robots = self._robots_of(url)
            if not robots.allows(url):
                if robots.unreachable:
                    raise FetchFailed(DropReason.ROBOTS_UNREACHABLE, robots.refusal(url), retry_after_s=0.0)
                raise FetchFailed(DropReason.ROBOTS_DISALLOWED, robots.refusal(url))
            self._wait(urlsplit(url).netloc, robots.delay_s)
            reply = self._exchange(url, self._limits.max_image_bytes)
            if outs := egress.opt_outs(map(str, reply.headers.get_all("X-Robots-Tag", []))):
                raise FetchFailed(DropReason.OPT_OUT, f"X-Robots-Tag: {', '.join(outs)}")
            if not (300 <= reply.status < 400 and reply.headers.get("Location")):
                return _wanted(reply)
            url = _target(url, reply)
        raise FetchFailed(DropReason.TOO_MANY_REDIRECTS, f"more than {self._limits.max_redirects}, then {url}")

    def _wait(self, host: str, delay_s: float) -> None:
        """Take the host's next turn and sleep until it comes."""
        with self._lock:
            now = time.monotonic()
            start = max(now, self._next.get(host, 0.0))
            self._next[host] = start + max(delay_s, self._limits.delay_s)
        if start > now:
            time.sleep(start - now)

    def _robots_of(self, url: str) -> egress.Robots:
        """The robots.txt that rules a URL, asked for once. Raises FetchFailed for a URL that may not be reached."""
        try:
            self._guard.check_url(url)
        except egress.EgressRefused as e:
            raise FetchFailed(DropReason.EGRESS_REFUSED, str(e)) from None
        if not self._limits.obey_robots:
            return egress.Robots()
        address = egress.robots_url(url)
        with self._lock:
            lock = self._robots_locks.setdefault(address, threading.Lock())
        with lock:
            if address not in self._robots:
                self._robots[address] = self._ask_robots(address)
            return self._robots[address]

    def _ask_robots(self, address: str) -> egress.Robots:
        """Ask, twice if the failure may pass. Raises FetchFailed if the guard refuses the host."""
        for last in (False, True):
            try:
                return self._read_robots(address)
            except FetchFailed as e:
                if e.reason is DropReason.EGRESS_REFUSED:
                    raise
                if last or not e.again:
                    return egress.Robots(unreachable=e.evidence)
        raise AssertionError("the second try returns")

    def _read_robots(self, address: str) -> egress.Robots:
        url = address
        for _ in range(egress.MAX_ROBOTS_REDIRECTS + 1):
            reply = self._exchange(url, egress.MAX_ROBOTS_BYTES, whole=False)
            if not (300 <= reply.status < 400 and reply.headers.get("Location")):
                if reply.status >= 500:
                    raise FetchFailed(DropReason.HTTP_STATUS, f"status {reply.status}", again=True)
                return egress.robots_of(reply.status, reply.body)
            url = _target(url, reply)
        return egress.Robots(unreachable="too many redirects")

    def _exchange(self, url: str, cap: int, whole: bool = True) -> Reply:
        """One guarded GET. Raises FetchFailed; with `whole` also if the body is larger than `cap`, else it is cut."""
        seconds = self._limits.timeout_s
        with egress.guarded(self._guard) as scope, _Deadline(seconds) as deadline:
            try:
                self._guard.check_url(url)
                reply = self._speak(url, cap, whole, deadline)
                if deadline.cut:  # to http.client a cut socket may look like the end of headers or body
                    raise TimeoutError
                return reply
            except FetchFailed:
                raise
            except egress.BodyTooLarge as e:
                raise FetchFailed(DropReason.TOO_LARGE, str(e)) from None
            except Exception as e:
                if scope.refused or isinstance(e, egress.EgressRefused):
                    refusal = scope.refused[0] if scope.refused else str(e)
                    raise FetchFailed(DropReason.EGRESS_REFUSED, refusal) from None
                if deadline.cut or isinstance(e, TimeoutError):
                    evidence = f"not done after {seconds:g} s"
                    raise FetchFailed(DropReason.TIMEOUT, evidence, again=True, retry_after_s=0.0) from None
                if isinstance(e, OSError | http.client.HTTPException | ValueError):
                    evidence = " ".join(str(e).split()) or type(e).__name__
                    raise FetchFailed(DropReason.CONNECTION, evidence, again=True, retry_after_s=0.0) from None
                raise

    def _speak(self, url: str, cap: int, whole: bool, deadline: _Deadline) -> Reply:
        found = urlsplit(url)
        secure, host = found.scheme == "https", found.hostname or ""
        port = found.port or (443 if secure else 80)
        sock: socket.socket = _connect(host, port, deadline)
        try:
            if secure:
                sock = self._tls.wrap_socket(sock, server_hostname=host, do_handshake_on_connect=False)
                deadline.watch(sock)
                sock.do_handshake()
            connection = (
                http.client.HTTPSConnection(host, found.port, context=self._tls)
                if secure
                else http.client.HTTPConnection(host, found.port)
            )
            connection.sock = sock
            target = (found.path or "/") + (f"?{found.query}" if found.query else "")
            headers = {"User-Agent": self._agent, "Accept": "image/*,*/*;q=0.5", "Accept-Encoding": "identity"}
            connection.request("GET", target, headers={**headers, "Connection": "close"})
            with connection.getresponse() as response:
                body = _read(response, cap, whole)
                return Reply(response.status, response.headers, body)
        finally:
            sock.close()


class _Deadline:
    """Cuts the watched socket when the time is up, whatever its reader is waiting for, and then says so in `cut`."""

    def __init__(self, seconds: float) -> None:
        self.cut = False
        self._end = time.monotonic() + seconds
        self._sock: socket.socket | None = None
        self._lock = threading.Lock()
        self._timer = threading.Timer(seconds, self._cut)
        self._timer.daemon = True

    def __enter__(self) -> _Deadline:
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        with self._lock:
            self._sock = None

    def left(self) -> float:
        """Seconds. Raises TimeoutError if none is left."""
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return left

    def watch(self, sock: socket.socket) -> None:
        sock.settimeout(self.left())
        with self._lock:
            self._sock = sock

    def _cut(self) -> None:
        with self._lock:
            self.cut = True
            if self._sock is not None:
                try:
                    socket.socket.shutdown(
                        self._sock, socket.SHUT_RDWR
                    )  # not SSLSocket's, which is not for two threads
                except OSError:
                    return  # closed already


def _connect(host: str, port: int, deadline: _Deadline) -> socket.socket:
    """A connected and watched socket. Raises OSError of the last address tried; the guard's hook judges each."""
    last: OSError = OSError(f"{host} has no address")
    for family, kind, protocol, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[:MAX_ADDRESSES]:
        sock = socket.socket(family, kind, protocol)
        try:
            deadline.watch(sock)
            sock.connect(address)
        except OSError as e:
            sock.close()
            last = e
            continue
        return sock
    raise last


def _read(response: http.client.HTTPResponse, cap: int, whole: bool) -> bytes:
    """The body, unpacked. Nothing is read of an answer that is no image and no robots.txt."""
    if response.status != 200:
        return b""
    announced = response.headers.get("Content-Length", "")
    if whole and announced.isdigit() and int(announced) > cap:
        raise egress.BodyTooLarge(f"{announced} bytes announced, {cap} are allowed")
    body = bytearray()
    while len(body) <= cap and (block := response.read1(_BLOCK)):
        body += block
    if len(body) > cap:
        if whole:
            raise egress.BodyTooLarge(f"more than {cap} bytes")
        del body[cap:]
    elif response.length:
        raise ConnectionError(f"the body ended {response.length} bytes early")
    try:
        return egress.unpacked(bytes(body), str(response.headers.get("Content-Encoding", "")), cap)
    except egress.BodyTooLarge:
        if whole:
            raise
        return b""


def _wanted(reply: Reply) -> Reply:
    """The reply if it is a 200. Raises FetchFailed."""
    if reply.status == 200:
        return reply
    evidence = f"status {reply.status}"
    if reply.status < 500 and reply.status not in (408, 425, 429):
        raise FetchFailed(DropReason.HTTP_STATUS, evidence)
    wait = egress.retry_after_seconds(reply.headers.get("Retry-After"))
    raise FetchFailed(DropReason.HTTP_STATUS, evidence, again=not wait, retry_after_s=wait or 0.0)


def _target(url: str, reply: Reply) -> str:
    """Where a redirect leads. Raises FetchFailed."""
    location = str(reply.headers["Location"]).strip()
    try:
        return str(safe_url_string(urljoin(url, location))).partition("#")[0]
    except ValueError as e:
        raise FetchFailed(DropReason.BAD_URL, f"redirect to {location[:100]}: {e}") from None
