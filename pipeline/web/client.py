"""The HTTP client of crawl and fetch: one GET at a time per call, under all rules of a spec.

Pages, images, sitemaps and the files about a host are asked for here and nowhere else (`Kind` says how their bodies are
read), so that each of them keeps to the same rules: the address guard (`pipeline.web.guard`), the pace of the host for
the whole cluster (`pipeline.web.pace`), robots.txt and tdmrep.json, takedowns and byte caps (`pipeline.web.policy`).
One deadline covers a request from name lookup to the last byte. Cookies are neither kept nor sent, proxy variables are
not read. Redirects are answers: the caller decides about the next hop, which is a request of its own.

Bodies are unpacked by ourselves within the byte cap (`pipeline.web.bodies`). A response that cannot be read is
`bad_response`, a decision about its URL alone; a host that refuses to answer is paused (`pipeline.web.pauses`).

Limits: HTTP/1.1; one event loop and one pool of connections per client; connections per host are counted per client.
"""

from __future__ import annotations

import asyncio
import re
import socket
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import urljoin, urlsplit

from data_specs.build import BuildSpec, Egress
from pipeline.rows.decisions import DropReason
from pipeline.store.takedowns import NO_TAKEDOWNS, Takedowns
from pipeline.urls import split_userinfo
from pipeline.web import guard, pauses, policy
from pipeline.web.bodies import BodyTooLarge, Undecodable, unpacked
from pipeline.web.pace import RateLimiter
from pipeline.web.pauses import HostRefusal, Pause, Pauses
from pipeline.web.policy import LASTING_S, HostRules, Retry

LARGE, LARGE_AT_ONCE = 2 << 20, 6
"""Bytes from which a body is large, and large ones that are read or unpacked at a time: where every request meets a
decompression bomb, memory must not hold a largest body for each."""

MAX_RULES = 10_000
"""Hosts whose rules are kept at a time."""

_SMALL = 1 << 16  # bytes of an unwanted body that are read so that its connection can be used again
_MAX_LINE = 1 << 16  # bytes of a header line
_UNSENDABLE = re.compile(r"[^\x21-\x7e]")


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of resource: the headers of its requests, and how its body is read.

    cap: bytes of the body, unpacked. whole: a larger body is a failure, without it the body is cut there. html: what
    declares another media type is a failure, and its body is not read.
    """

    accept: str
    encoding: str
    cap: int
    whole: bool = True
    html: bool = False


HOST_FILE = Kind("text/plain", "gzip", policy.MAX_ROBOTS_BYTES, whole=False)
"""robots.txt and its like. Cut and not refused where it is too large: its beginning forbids what it forbids."""


def page_kind(egress: Egress) -> Kind:
    return Kind(",".join(policy.HTML_TYPES), "gzip", egress.max_page_bytes, html=True)


def image_kind(egress: Egress) -> Kind:
    return Kind("image/*,*/*;q=0.5", "identity", egress.max_image_bytes)


@dataclass(frozen=True, slots=True)
class Response:
    """One HTTP response. `body` is unpacked, within the cap, and empty unless the status is 200."""

    status: int
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""

    def header(self, name: str) -> str:
        """The first value of a header, by its name in lower case; "" if missing."""
        return next((value for key, value in self.headers if key.lower() == name), "")

    @property
    def location(self) -> str:
        """The address that a redirect leads to, "" for any other response."""
        location = self.header("location")
        return location if policy.is_redirect(self.status, location) else ""


_NEVER = Retry(False)
_UNANSWERED = frozenset({DropReason.TIMEOUT, DropReason.DNS, DropReason.CONNECTION})
_THREADS = 64
"""Threads for name lookups and unpacking. A lookup that nothing answers holds its thread for half a minute."""


class RequestFailed(Exception):
    """A request that was not sent, or brought nothing usable.

    retry: whether asking again may help, and when. retry_after_s: seconds after which a later build may ask again.
    status: of the response, 0 where no head of one came.
    """

    def __init__(
        self,
        reason: DropReason,
        evidence: str,
        retry: Retry = _NEVER,
        retry_after_s: float = LASTING_S,
        status: int = 0,
    ) -> None:
        super().__init__(reason, evidence)
        self.reason, self.evidence, self.retry, self.status = reason, evidence, retry, status
        self.retry_after_s = retry.wait_s if retry.transient else retry_after_s

    def __str__(self) -> str:
        return f"{self.reason.value}: {self.evidence}"

    @property
    def host_is_down(self) -> bool:
        """True if the host may be down: no answer, or a status that says so."""
        return policy.is_outage(self.status) if self.status else self.reason in _UNANSWERED

    @property
    def refusal(self) -> HostRefusal | None:
        """The host's refusal to answer; None if it answered, whatever became of the answer, or was not asked."""
        refused = policy.is_refusal(self.status) if self.status else self.reason in _UNANSWERED
        if refused or (self.retry.transient and self.retry.pause_s):
            return HostRefusal(self.reason, self.status, self.retry.pause_s)
        return None


class HostPaused(RequestFailed):
    """A request that was not sent, since its host is down and paused."""

    def __init__(self, pause: Pause) -> None:
        super().__init__(pause.refusal.reason, f"{pause.refusal}; the host is paused", Retry(True))


def status_failure(response: Response) -> RequestFailed:
    retry = policy.retry_of(policy.is_transient(response.status), response.header("retry-after"))
    return RequestFailed(DropReason.HTTP_STATUS, f"status {response.status}", retry, status=response.status)


class Client:
    """Sends the requests of one spec. Used from one event loop.

    rules: of hosts that were asked for them before, by address of robots.txt; added to, so that the clients of one
    build ask each host once. takedowns: URLs and domains that are not asked for, whatever leads there. waits: whether
    requests wait for a host that is down; without it they fail while it is paused. show: takes each pause that begins.
    """

    def __init__(
        self,
        spec: BuildSpec,
        takedowns: Takedowns = NO_TAKEDOWNS,
        rules: dict[str, HostRules] | None = None,
        waits: bool = True,
        show: Callable[[Pause], None] = pauses.show,
    ) -> None:
        self._egress, self._takedowns = spec.egress, takedowns
        self._policy, self._guard = policy.policy_of(spec), guard.guard_of(spec)
        self._rules = {} if rules is None else rules
        self._unreachable: dict[str, HostRules] = {}  # as `_rules`; the next client asks these hosts again
        self._refused: dict[str, str] = {}  # by address of robots.txt: why the guard refuses the host itself
        self._rules_locks: dict[str, asyncio.Lock] = {}
        self._limiter = RateLimiter()
        self._connections: dict[str, asyncio.Semaphore] = {}  # by host: how many more may be open
        self._large = asyncio.Semaphore(LARGE_AT_ONCE)
        self._waits, self._show, self._pauses = waits, show, Pauses(self.outage)
        self._session: Any = None

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def get(self, url: str, kind: Kind, headers: Mapping[str, str] | None = None) -> Response:
        """Send one request, if takedowns and the rules of its host allow it, at the pace of the host.

        headers: beside those of every request. Raises RequestFailed.
        """
        delay_s = await self._delay_of(url, kind)
        try:
            response = await self._send_paced(url, kind, delay_s, headers, skips=not self._waits)
        except HostPaused:
            raise
        except RequestFailed as e:
            await self._update_pauses(url, e)
            raise
        await self._update_pauses(url, None if response.status == 200 else status_failure(response))
        return response

    async def _delay_of(self, url: str, kind: Kind) -> float:
        """Seconds between two requests to a URL's host. Raises RequestFailed if it may not be asked for."""
        self._check_takedowns(url, kind)
        rules = await self.rules_of(url)
        if refusal := self._policy.refusal(rules, url):
            raise RequestFailed(refusal.reason, refusal.evidence, retry_after_s=refusal.retry_after_s)
        return self._policy.delay_s(rules, urlsplit(url).netloc)

    async def _update_pauses(self, url: str, failure: RequestFailed | None) -> None:
        """Pause the host of a URL if a request's outcome calls for it."""
        host = urlsplit(url).netloc
        refusal = failure.refusal if failure else None
        if refusal is not None:
            pause = await self._pauses.on_refusal(host, url, refusal)
            if pause is not None:
                if self._waits or not pause.down:
                    await self._limiter.pause(host, pause.seconds)
                self._show(pause)
        elif failure is None or failure.status or failure.reason is DropReason.BAD_RESPONSE:
            self._pauses.on_answer(host)

    async def outage(self, url: str) -> str:
        """Asks a URL's host for a file that any host answers; returns why the host is down, "" if it is up."""
        # a host that was not asked for its robots.txt before is asked for its front page
        address = policy.robots_url(url) if self._egress.obey_robots else urljoin(url, "/")
        try:
            response = await self.host_file(address)
        except RequestFailed as e:
            return e.evidence if e.host_is_down else ""
        return f"status {response.status}" if policy.is_outage(response.status) else ""

    async def host_file(self, url: str) -> Response:
        """Send one request for a small file about a host, which no robots.txt forbids. Raises RequestFailed."""
        self._check_takedowns(url, HOST_FILE)
        return await self._send_paced(url, HOST_FILE, self._egress.delay_of(urlsplit(url).netloc))

    async def rules_of(self, url: str) -> HostRules:
        """The rules of a URL's host, asked for once a day. Raises RequestFailed if the guard refuses the host."""
        if not self._egress.obey_robots:
            return HostRules()
        address = policy.robots_url(url)
        async with self._rules_locks.setdefault(address, asyncio.Lock()):
            if address in self._refused:
                raise RequestFailed(DropReason.EGRESS_REFUSED, self._refused[address])
            rules = self._unreachable.get(address) or self._rules.get(address)
            if rules is None or rules.expired(time.monotonic()):
                robots = await self._ask_robots(address)
                tdm = policy.Tdm() if robots.unreachable else await self._ask_tdm(policy.tdm_url(url))
                rules = HostRules(robots, tdm, time.monotonic())
                if len(self._rules) >= MAX_RULES:
                    self._rules.clear()
                self._unreachable.pop(address, None)
                (self._unreachable if robots.unreachable else self._rules)[address] = rules
            return rules

    async def _ask_robots(self, address: str) -> policy.Robots:
        """Ask for a robots.txt, once more if the failure may pass. Raises RequestFailed if the guard refuses the host.

        A robots.txt that redirects to an address that the guard refuses is unreachable, like any other failure.
        """
        robots = policy.Robots()
        for _ in range(policy.TRIES):
            hops = [address]
            try:
                response = await self._follow_redirects(hops)
            except RequestFailed as e:
                if e.reason is DropReason.EGRESS_REFUSED and len(hops) == 1:
                    self._refused[address] = e.evidence
                    raise
                reason = DropReason.DNS if e.reason is DropReason.DNS else DropReason.ROBOTS_UNREACHABLE
                robots, retry = policy.Robots(unreachable=e.evidence, reason=reason), e.retry.transient
            else:
                retry = policy.is_transient(response.status)
                robots = await asyncio.to_thread(policy.robots_of, response.status, response.body)
            if not retry:
                break
        return robots

    async def _ask_tdm(self, address: str) -> policy.Tdm:
        """Ask for a tdmrep.json. Most hosts have none; one that cannot be fetched reserves nothing."""
        try:
            response = await self._follow_redirects([address])
        except RequestFailed:
            return policy.Tdm()
        return await asyncio.to_thread(policy.tdm_of, response.status, response.body)

    async def _follow_redirects(self, hops: list[str]) -> Response:
        """A small file about a host, after redirects, which are added to `hops`. Raises RequestFailed."""
        while len(hops) <= policy.MAX_ROBOTS_REDIRECTS + 1:
            response = await self.host_file(hops[-1])
            if not response.location:
                return response
            hops.append(redirect_target(hops[-1], response.location))
        raise RequestFailed(DropReason.TOO_MANY_REDIRECTS, "too many redirects")

    def _check_takedowns(self, url: str, kind: Kind) -> None:
        if cause := self._takedowns.takedown_reason("", url) if kind.html else self._takedowns.takedown_reason(url, ""):
            raise RequestFailed(DropReason.FORGOTTEN, cause)

    async def _send_paced(
        self, url: str, kind: Kind, delay_s: float, headers: Mapping[str, str] | None = None, skips: bool = False
    ) -> Response:
        """One request, when a connection and a slot of its host are free. Raises RequestFailed.

        skips: whether to raise HostPaused where the host is down and paused.
        """
        host = urlsplit(url).netloc
        connections = self._connections.get(host)
        if connections is None:
            connections = self._connections[host] = asyncio.Semaphore(self._egress.connections_of(host))
        async with connections:
            if skips and (pause := self._pauses.current(host)) and pause.down:
                raise HostPaused(pause)
            if (seconds := await self._limiter.next_slot(host, delay_s)) > 0:
                await asyncio.sleep(seconds)
            all_headers = {"Accept": kind.accept, "Accept-Encoding": kind.encoding, **(headers or {})}
            return await self._exchange(url, kind, all_headers)

    async def _exchange(self, url: str, kind: Kind, headers: dict[str, str]) -> Response:
        """One guarded request within its deadline. Raises RequestFailed."""
        import aiohttp
        from aiohttp.http_exceptions import HttpProcessingError
        from yarl import URL

        status = 0
        with guard.enforce(self._guard) as scope:
            try:
                self._guard.check_url(url)
                if _UNSENDABLE.search(url):
                    raise RequestFailed(DropReason.BAD_URL, "the URL contains characters that HTTP cannot send")
                async with asyncio.timeout(self._egress.timeout_s):
                    opened = list[bool]()
                    middlewares = (partial(_send_once, opened),)
                    options = {"trace_request_ctx": opened, "middlewares": middlewares, "headers": headers}
                    request = self._open_session().get(URL(url, encoded=True), allow_redirects=False, **options)
                    async with request as response:
                        status = response.status
                        return await self._read(response, kind)
            except (aiohttp.ClientError, HttpProcessingError, OSError, ValueError) as e:
                if scope.refused or isinstance(e, guard.EgressRefused):
                    refusal = scope.refused[0] if scope.refused else str(e)
                    raise RequestFailed(DropReason.EGRESS_REFUSED, refusal) from None
                evidence = " ".join(str(e).split()) or type(e).__name__
                if isinstance(e, aiohttp.ClientConnectorDNSError) and e.os_error.errno != socket.EAI_AGAIN:
                    raise RequestFailed(DropReason.DNS, f"{e.host}: {e.os_error.strerror}", retry_after_s=0.0) from None
                if isinstance(e, TimeoutError):
                    evidence = f"not finished after {self._egress.timeout_s:g} s"
                    raise RequestFailed(DropReason.TIMEOUT, evidence, Retry(True), status=status) from None
                if isinstance(e, (OSError, aiohttp.ClientConnectionError, aiohttp.ClientPayloadError)):
                    raise RequestFailed(DropReason.CONNECTION, evidence, Retry(True), status=status) from None
                if isinstance(e, (aiohttp.ClientResponseError, HttpProcessingError)):
                    raise RequestFailed(DropReason.BAD_RESPONSE, evidence, status=status) from None
                raise RequestFailed(DropReason.BAD_URL, evidence) from None

    def _open_session(self) -> Any:
        """The session, made in the event loop that uses it."""
        import aiohttp

        if self._session is None:
            asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(_THREADS, "wenlan-web"))
            connecting = aiohttp.TraceConfig()
            connecting.on_connection_create_end.append(_note_connection)
            self._session = aiohttp.ClientSession(
                auto_decompress=False,  # we unpack ourselves, within the byte cap
                connector=aiohttp.TCPConnector(limit=0),
                cookie_jar=aiohttp.DummyCookieJar(),
                headers={"User-Agent": self._policy.user_agent},
                trace_configs=[connecting],
                max_line_size=_MAX_LINE,
                max_field_size=_MAX_LINE,
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),
                trust_env=False,
            )
        return self._session

    async def _read(self, response: Any, kind: Kind) -> Response:
        """The response, with its body where that is wanted. Raises RequestFailed, and what aiohttp raises."""
        headers = tuple(
            (_text(name), policy.address_in(value) if name.lower() == b"location" else _text(value))
            for name, value in response.raw_headers
        )
        head = Response(response.status, headers)
        announced = response.content_length
        if head.status != 200:
            if announced is not None and announced <= _SMALL:
                await response.read()
            return head
        content_type = head.header("content-type")
        if kind.html and policy.media_type(content_type) and not policy.is_html(content_type):
            raise RequestFailed(DropReason.NOT_HTML, content_type, status=200)
        if kind.whole and announced is not None and announced > kind.cap:
            raise _too_large(f"{announced} bytes announced; at most {kind.cap} are allowed")
        encoding = head.header("content-encoding").strip().lower()
        async with AsyncExitStack() as large:
            return Response(200, headers, await self._body(response, encoding, kind, large))

    async def _body(self, response: Any, encoding: str, kind: Kind, large: AsyncExitStack) -> bytes:
        """The body, unpacked. Large and packed ones wait until fewer than LARGE_AT_ONCE others are in `large`."""
        blocks: list[bytes] = []
        size, is_large = 0, False
        async for block in response.content.iter_any():
            blocks.append(block)
            size += len(block)
            if size > kind.cap:
                if kind.whole:
                    raise _too_large(f"more than {kind.cap} bytes")
                break
            if size > LARGE and not is_large:
                await large.enter_async_context(self._large)
                is_large = True
        body = b"".join(blocks)[: kind.cap]
        if encoding in ("", "identity"):
            return body
        if not is_large:
            await large.enter_async_context(self._large)
        try:
            return await asyncio.to_thread(unpacked, body, encoding, kind.cap, kind.whole)
        except BodyTooLarge as e:
            raise _too_large(str(e)) from None
        except Undecodable as e:
            raise RequestFailed(DropReason.BAD_RESPONSE, str(e), status=200) from None


async def _note_connection(session: Any, context: Any, event: Any) -> None:
    context.trace_request_ctx.append(True)


async def _send_once(opened: list[bool], request: Any, send: Any) -> Any:
    """Middleware: aiohttp sends a request a second time only where the first met a connection that had been idle.

    By itself it does so for every host that hangs up: at once, beside its pace and the retries of a stage. opened: has
    an entry as soon as a connection was made for the request.
    """
    import aiohttp

    try:
        return await send(request)
    except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as e:
        if opened:
            raise aiohttp.ClientConnectionError(str(e)) from e
        raise


def _too_large(evidence: str) -> RequestFailed:
    return RequestFailed(DropReason.TOO_LARGE, evidence, status=200)


def redirect_target(url: str, location: str) -> str:
    """The address that a redirect leads to, without user info and fragment. Raises RequestFailed."""
    from w3lib.url import safe_url_string

    try:
        return split_userinfo(str(safe_url_string(urljoin(url, location.strip()))).partition("#")[0])[0]
    except ValueError as e:
        raise RequestFailed(DropReason.BAD_URL, f"redirect to {location[:100]}: {e}") from None


def _text(raw: bytes) -> str:
    """A header's name or value: UTF-8 where it is, else Latin-1, which reads any bytes."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw.decode("latin-1")
