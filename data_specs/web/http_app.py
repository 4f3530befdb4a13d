"""Checks of every request to the HTTP servers (`wenlan-train serve`, `wenlan-data studio`), before a route sees it.

    Host       only the names that are served: a foreign page that points its own name at 127.0.0.1 gets 421
    Origin     a request of another site's page that changes anything gets 403; no CORS header is ever sent
    token      `Authorization: Bearer TOKEN`, or the cookie that a browser gets from the link with `?token=`; else 401
    rate       requests per minute and client, 429 with Retry-After
    body       bytes (413) and seconds (408) of a request's body, counted as it arrives
    response   Content-Security-Policy without inline script, style or foreign origin, nosniff, no framing, no referrer

Every refusal has the form that OpenAI's clients read: {"error": {"message", "type", "param", "code"}}.

Limits: rates are per process and per address, so that clients behind one proxy share theirs. TLS is a proxy's business.
Needs `starlette` and `limits` (extras serve and studio).
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import json
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

DRAINED = 64 * 2**20
"""Bytes of a refused body that are read beyond its limit."""

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
"""An ASGI application (asgi.readthedocs.io), as FastAPI and Starlette make them."""

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
"""Names by which a browser on the same machine may call a server that listens on loopback."""

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "font-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
_HEADERS = {
    b"content-security-policy": _POLICY.encode(),
    b"x-content-type-options": b"nosniff",
    b"x-frame-options": b"DENY",
    b"referrer-policy": b"no-referrer",
    b"cross-origin-opener-policy": b"same-origin",
    b"cross-origin-resource-policy": b"same-origin",
}
_SAFE = ("GET", "HEAD", "OPTIONS")
_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one request, and of one client.

    body_bytes: of a request's body. body_seconds: in which all of it must have arrived.
    per_minute: requests of one client; None for as many as it likes.
    """

    body_bytes: int = 32 * 2**20
    body_seconds: float = 30.0
    per_minute: int | None = None


def new_token() -> str:
    """Returns a token of 256 random bits, safe in a URL."""
    return secrets.token_urlsafe(32)


def is_loopback(host: str) -> bool:
    """True if a server that listens on `host` is reached from this machine alone."""
    return host in ("localhost", "::1", "[::1]") or re.fullmatch(r"127(\.\d{1,3}){3}", host) is not None


def error_body(status: int, message: str, *, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """The answer to a request that failed, as OpenAI's clients read it."""
    kind = _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def with_checks(
    app: App,
    *,
    token: str | None,
    hosts: tuple[str, ...] = LOOPBACK,
    limits: Limits | None = None,
    open_paths: tuple[str, ...] = (),
    probes: tuple[str, ...] = (),
    once: Iterable[str] = (),
) -> App:
    """Returns an application behind the checks of this module.

    token: None for a server that everyone who reaches it may use. hosts: names in the Host header, without the port;
    "*" for any. open_paths: answered without a token: a page's own files. probes: likewise, and under any name: a probe
    (`/health`) calls by an address that cannot be listed. once: further tokens, each good for one link, for a browser
    that is started with it: other users of a machine see how programs are started.
    """
    return _WithChecks(app, token, hosts, limits or Limits(), open_paths, probes, once)


class _Refused(Exception):
    """A request that goes no further. detail: seconds for Retry-After."""

    def __init__(self, status: int, message: str, code: str, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.retry_after = status, message, code, retry_after


class _WithChecks:
    def __init__(
        self,
        app: App,
        token: str | None,
        hosts: tuple[str, ...],
        limits: Limits,
        open_paths: tuple[str, ...],
        probes: tuple[str, ...],
        once: Iterable[str],
    ) -> None:
        self._app, self._token, self._limits, self._once = app, token, limits, list(once)
        self._probes, self._open = frozenset(probes), frozenset((*open_paths, *probes))
        self._hosts = frozenset(host.lower() for host in hosts)
        self._rate = None if limits.per_minute is None else _Rate(limits.per_minute)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self._app(scope, receive, send)
        if scope["type"] != "http":  # neither server speaks WebSocket
            return await send({"type": "websocket.close", "code": 1008})
        headers = {bytes(name).lower(): bytes(value) for name, value in scope["headers"]}
        answer, body = _Answer(send), _Body(self._limits, receive, waits=b"expect" in headers)
        try:
            self._check_caller(scope, headers)
            link = self._link_with_token(scope)
            if link is not None:
                return await self._give_cookie(link, scope, answer.send)
            self._check_token(scope, headers)
            self._check_rate(scope)
            body.check_declared(headers)
            await self._app(scope, body.receive, lambda message: answer.send(message, unless=body.refused))
        except Exception as error:
            refused = body.refused or error
            if answer.begun or not isinstance(refused, _Refused):
                raise
            await _refuse(refused, body, answer.send)
        else:
            if body.refused is not None and not answer.begun:
                await _refuse(body.refused, body, answer.send)

    def _check_caller(self, scope: Scope, headers: Mapping[bytes, bytes]) -> None:
        if scope["path"] in self._probes:
            return
        named = headers.get(b"host", b"").decode("latin-1").lower()
        host = re.sub(r":\d*$", "", named)
        if "*" not in self._hosts and host not in self._hosts:
            raise _Refused(421, "this server does not accept that Host header; see its option for hosts", "wrong_host")
        if scope["method"] in _SAFE:
            return
        origin = headers.get(b"origin")
        if origin is not None and urlsplit(origin.decode("latin-1")).netloc.lower() != named:
            raise _Refused(403, "pages of other sites may not request this", "foreign_origin")
        if headers.get(b"sec-fetch-site", b"same-origin") not in (b"same-origin", b"none"):
            raise _Refused(403, "pages of other sites may not request this", "foreign_origin")

    def _check_token(self, scope: Scope, headers: Mapping[bytes, bytes]) -> None:
        if self._token is None or scope["path"] in self._open:
            return
        scheme, _, given = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
        if scheme.lower() == "bearer" and _is_same_secret(given.strip(), self._token):
            return
        for part in headers.get(b"cookie", b"").decode("latin-1").split(";"):
            name, _, value = part.strip().partition("=")
            if name == self._cookie_name(scope) and _is_same_secret(value, self._cookie()):
                return
        raise _Refused(
            401, "needs the token: Authorization: Bearer TOKEN, or the link that the server printed", "token"
        )

    def _check_rate(self, scope: Scope) -> None:
        client = scope.get("client")
        if self._rate is None or client is None or scope["path"] in self._open:
            return
        wait = self._rate.wait(str(client[0]))
        if wait is not None:
            raise _Refused(429, f"more than {self._limits.per_minute} requests per minute", "rate_limit", wait)

    def _link_with_token(self, scope: Scope) -> str | None:
        """Returns the target of a link with the right token, without the token, to keep it out of history and logs."""
        if self._token is None or scope["method"] != "GET" or b"token=" not in scope["query_string"]:
            return None
        asked = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        given = [value for name, value in asked if name == "token"]
        used = [token for token in self._once if any(_is_same_secret(value, token) for value in given)]
        if not used and not any(_is_same_secret(value, self._token) for value in given):
            return None
        self._once = [token for token in self._once if token not in used]
        rest = urlencode([(name, value) for name, value in asked if name != "token"])
        path = "/" + scope["raw_path"].decode("latin-1").lstrip("/")  # of `//host` a browser would go to that host
        return f"{path}?{rest}" if rest else path

    async def _give_cookie(self, link: str, scope: Scope, send: Send) -> None:
        cookie = f"{self._cookie_name(scope)}={self._cookie()}; Path=/; HttpOnly; SameSite=Strict"
        headers = [(b"location", link.encode("latin-1")), (b"set-cookie", cookie.encode()), (b"content-length", b"0")]
        await send({"type": "http.response.start", "status": 303, "headers": headers})
        await send({"type": "http.response.body", "body": b""})

    def _cookie_name(self, scope: Scope) -> str:
        """Browsers share cookies between the ports of a host; two servers beside each other need two names."""
        server = scope.get("server")
        return f"wenlan-{server[1] if server else 0}"

    def _cookie(self) -> str:
        """Returns the cookie's value, made from the token: a leaked cookie does not give the token away."""
        assert self._token is not None
        return hmac.new(self._token.encode(), b"cookie", hashlib.sha256).hexdigest()


class _Rate:
    """Requests per minute of each client, by the package `limits` (a moving window, in memory)."""

    def __init__(self, per_minute: int) -> None:
        from limits import RateLimitItemPerMinute
        from limits.storage import MemoryStorage
        from limits.strategies import SlidingWindowCounterRateLimiter

        self._item = RateLimitItemPerMinute(per_minute)
        self._limiter = SlidingWindowCounterRateLimiter(MemoryStorage())

    def wait(self, client: str) -> int | None:
        """Seconds until the client may ask again; None if it may now."""
        if self._limiter.hit(self._item, client):
            return None
        return max(1, round(self._limiter.get_window_stats(self._item, client).reset_time - time.time()))


class _Body:
    """A request's body, counted and timed as it arrives.

    waits: whether the client sends it only when asked for it (Expect: 100-continue).
    refused: why it was cut off. An application may catch what `receive` raises and answer something of its own (FastAPI
    says 400), so that the reason is kept here.
    """

    def __init__(self, limits: Limits, receive: Receive, waits: bool) -> None:
        self._limits, self._receive, self._bytes, self._whole = limits, receive, 0, False
        self._waits = waits
        self._until: float | None = None
        self.refused: _Refused | None = None

    def check_declared(self, headers: Mapping[bytes, bytes]) -> None:
        declared = headers.get(b"content-length", b"0")
        if declared.isdigit() and int(declared) > self._limits.body_bytes:
            raise self._too_large()

    async def receive(self) -> Message:
        if self._whole:  # the next message is the client's disconnect, which may wait
            return await self._receive()
        try:
            message = await self._receive_part()
        except TimeoutError:
            text = f"the request's body did not arrive within {self._limits.body_seconds:g} s"
            self.refused = _Refused(408, text, "slow_body")
            raise self.refused from None
        if self._bytes > self._limits.body_bytes:
            self.refused = self._too_large()
            raise self.refused
        return message

    async def drain(self) -> None:
        """Read what remains of the body, and drop it, within DRAINED bytes and the time limit.

        Clients that send all of a body before they read take an answer with unread bytes behind it for a reset.
        """
        if self._waits and not self._bytes:
            return
        with contextlib.suppress(TimeoutError):
            while not self._whole and self._bytes <= self._limits.body_bytes + DRAINED:
                await self._receive_part()

    async def _receive_part(self) -> Message:
        """The next part of the body. Raises TimeoutError once the time for all of it is over."""
        now = asyncio.get_running_loop().time()
        if self._until is None:
            self._until = now + self._limits.body_seconds
        message = await asyncio.wait_for(self._receive(), max(self._until - now, 0.001))
        self._bytes += len(message.get("body", b""))
        self._whole = message["type"] != "http.request" or not message.get("more_body", False)
        return message

    def _too_large(self) -> _Refused:
        return _Refused(413, f"the request's body is larger than {self._limits.body_bytes} bytes", "body_too_large")


class _Answer:
    """Adds the headers of every answer, and knows whether one has begun."""

    def __init__(self, send: Send) -> None:
        self._send, self.begun = send, False

    async def send(self, message: Message, unless: _Refused | None = None) -> None:
        """Send a part of the answer; `unless` a refusal takes its place."""
        if unless is not None and not self.begun:
            return
        if message["type"] == "http.response.start":
            self.begun = True
            there = {bytes(name).lower() for name, _ in message.get("headers", ())}
            added = [(name, value) for name, value in _HEADERS.items() if name not in there]
            if b"cache-control" not in there:
                added.append((b"cache-control", b"no-store"))
            message = {**message, "headers": [*message.get("headers", ()), *added]}
        await self._send(message)


async def _refuse(refused: _Refused, rest: _Body, send: Send) -> None:
    """Answer with a refusal, once the rest of the request's body is read, as far as it is."""
    await rest.drain()
    body = json.dumps(error_body(refused.status, refused.message, code=refused.code)).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if refused.retry_after is not None:
        headers.append((b"retry-after", str(refused.retry_after).encode()))
    if refused.status in (408, 413):  # the rest of the body may still be on its way
        headers.append((b"connection", b"close"))
    if refused.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": refused.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _is_same_secret(given: str, own: str) -> bool:
    """True if two secrets are equal, compared in a time that does not tell how much was right."""
    return hmac.compare_digest(given.encode("utf-8", "replace"), own.encode())
