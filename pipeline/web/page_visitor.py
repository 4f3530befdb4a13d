"""One visit to one page: rules, pause, request, and what the response is worth. This part of a crawl is spread by host.

A visitor asks some hosts for pages. It knows their robots.txt and TDM reservations, keeps to the rate limit
(`pipeline.web.pace`) and judges each response by `pipeline.web.policy`; what becomes of the page is decided and written
by `pipeline.web.crawler`. Bodies are read within a byte cap and unpacked by ourselves within the same cap; the time
limit of a request covers name lookup, connection and body.

A page that an earlier crawl holds is asked for only if it has changed (ETag, Last-Modified; RFC 9110 section 13). If it
has not, the visit returns the record that the earlier WARC holds of it, checked against its sha256.

A page or a domain that STORE/forgotten names is not asked for at all, nor is its robots.txt.

Pages are read by `pipeline.web.readers`, so that one that takes long does not hold up the others.

Limits: one event loop and one connection pool per visitor.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urljoin, urlsplit

from data_specs.build import BuildSpec
from pipeline.errors import StoreError
from pipeline.files.folder import Folder
from pipeline.records import Capture, DropReason, rfc3339
from pipeline.sources.site import Site
from pipeline.store.takedowns import NO_TAKEDOWNS, Takedowns
from pipeline.urls import canonical_url, split_userinfo, without_session
from pipeline.web import guard, policy, sitemaps
from pipeline.web.bodies import BodyTooLarge, unpacked
from pipeline.web.pace import RateLimiter
from pipeline.web.policy import HostRules
from pipeline.web.readers import Readers
from pipeline.web.warc import capture_of


@dataclass(frozen=True, slots=True)
class Page:
    """A known page.

    depth: links from a start page. hops: redirects that led to it. tries: requests for it that failed.
    """

    id: int
    url: str
    host: str
    depth: int
    hops: int
    tries: int


@dataclass(frozen=True, slots=True)
class Earlier:
    """What an earlier crawl kept of a page, and where: `length` bytes from `offset` of `warc`, a gzip member."""

    warc: str
    offset: int
    length: int
    etag: str
    last_modified: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Visit:
    """The outcome of a visit.

    kept         `capture` is to be written
    unchanged    since the earlier crawl: `member` is the record to be written again, `capture` what it holds
    moved        to `target`
    dropped      for `reason`; `again`: asking once more may help, `down`: the host may be down, no answer or a 503
    unreachable  the host of a start page cannot be crawled: `evidence` says why, `target` is its robots.txt
    """

    outcome: Literal["kept", "unchanged", "moved", "dropped", "unreachable"]
    reason: DropReason | None = None
    evidence: str = ""
    again: bool = False
    down: bool = False
    status: int = 0
    target: str = ""
    capture: Capture | None = None
    member: bytes = b""
    links: tuple[str, ...] = ()
    endless: int = 0  # links that lead into an endless path
    too_deep: tuple[str, ...] = ()  # links that are not followed, since the page lies at `max_depth`
    likeness: str = ""  # digest of the page but for its numbers
    images: int = 0  # that the page shows


@dataclass(frozen=True, slots=True)
class _Response:
    """One HTTP response, or why there is none. `transient`: asking again may help."""

    status: int = 0
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    reason: DropReason | None = None
    evidence: str = ""
    transient: bool = False

    def header(self, name: str) -> str:
        """The first value of a header, by its name in lower case; "" if there is none."""
        return next((value for key, value in self.headers if key.lower() == name), "")


class Visitor:
    """Visits pages of some hosts. Used from one event loop; on a cluster it is an actor."""

    def __init__(self, spec: BuildSpec, site: Site, takedowns: Takedowns = NO_TAKEDOWNS) -> None:
        self._egress, self._site, self._takedowns = spec.egress, site, takedowns
        self._policy, self._guard = policy.policy_of(spec), guard.guard_of(spec)
        self._rules: dict[str, HostRules] = {}  # by address of robots.txt
        self._rules_locks: dict[str, asyncio.Lock] = {}
        self._failures: dict[str, int] = {}  # failures in a row that may pass, by host
        self._limiter = RateLimiter()
        self._readers = Readers(site)
        self._session: Any = None

    async def close(self) -> None:
        """Close the connections and end the readers."""
        await self._readers.close()
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def visit(self, page: Page, earlier: Earlier | None = None) -> Visit:
        """Ask for a page once. Never raises for what a host does."""
        if evidence := self._takedowns.why("", page.url):
            return Visit("dropped", DropReason.FORGOTTEN, evidence)
        rules = await self._rules_of(page.url)
        robots = rules.robots
        if robots.unreachable and page.host in {urlsplit(u).netloc for u in self._site.start_urls()}:
            evidence = f"robots.txt: {robots.unreachable}"
            return Visit("unreachable", evidence=evidence, target=policy.robots_url(page.url))
        if refusal := self._policy.refusal(rules, page.url):
            return Visit("dropped", refusal.reason, refusal.evidence)
        response = await self._get(page.url, rules, self._egress.max_page_bytes, earlier=earlier)
        if response.reason is not None:
            return self._failed(page, response)
        self._failures.pop(page.host, None)
        if response.status == 304 and earlier is not None:
            return await self._unchanged(page, response, earlier)
        if 300 <= response.status < 400:
            return self._moved(page, response)
        capture = Capture(
            page.url, response.status, rfc3339(), response.header("content-type"), response.body, response.headers
        )
        return await self._judged("kept", page, capture, response.headers)

    async def delay_of(self, url: str) -> float:
        """Seconds between two requests to a URL's host."""
        return self._policy.delay_s(await self._rules_of(url))

    async def outage(self, url: str) -> str:
        """Why a URL's host is down: what came of asking for a file of it that any host answers; "" if it is up."""
        address = policy.robots_url(url)
        if not self._egress.obey_robots:  # it was not asked for its robots.txt before
            address = urljoin(url, "/")
        response = await self._get(address, HostRules(), policy.MAX_ROBOTS_BYTES, page=False)
        no_answer = response.reason in (DropReason.TIMEOUT, DropReason.CONNECTION)
        if no_answer or policy.is_outage(response.status):
            return response.evidence or f"status {response.status}"
        return ""

    async def sitemap(self, url: str) -> tuple[list[str], list[str]]:
        """(pages of the site, further sitemaps) that a sitemap names; both empty where it cannot be had or may not be
        asked for. One that redirects names the file to which it does: http to https, as a rule."""
        rules = await self._rules_of(url)
        if not rules.robots.allows(url):
            return [], []
        response = await self._get(url, rules, sitemaps.MAX_BYTES, page=False)
        if policy.is_redirect(response.status, location := response.header("location")):
            return [], [urljoin(url, location)]
        if response.status != 200:
            return [], []
        return await self._readers.sitemap(response.body)

    async def sitemaps_of(self, url: str) -> list[str]:
        """The sitemaps that the robots.txt of a URL's host names."""
        return list((await self._rules_of(url)).robots.sitemaps)

    async def _unchanged(self, page: Page, response: _Response, earlier: Earlier) -> Visit:
        """The earlier record; if that is not there any more, the page as it is now."""
        member = await asyncio.to_thread(_member, earlier)
        capture = capture_of(member, self._egress.max_page_bytes) if member else None
        if capture is None or hashlib.sha256(capture.body).hexdigest() != earlier.sha256 or capture.url != page.url:
            return await self.visit(page, None)
        # what the owner says now counts, and what was said when the record was made
        return await self._judged("unchanged", page, capture, (*response.headers, *capture.headers), member)

    async def _judged(
        self,
        outcome: Literal["kept", "unchanged"],
        page: Page,
        capture: Capture,
        headers: tuple[tuple[str, str], ...],
        member: bytes = b"",
    ) -> Visit:
        """Keep a page unless its owner opted out, and follow its links."""
        reading = await self._readers.page(capture, headers)
        followed: dict[str, Any] = {"links": reading.links, "endless": reading.endless}
        if page.depth >= self._site.max_depth:
            followed = {"too_deep": reading.links}
        if reading.opt_outs:
            return Visit("dropped", DropReason.OPT_OUT, reading.opt_outs, **followed)
        return Visit(
            outcome,
            capture=capture,
            member=member,
            likeness=reading.likeness,
            images=reading.images,
            **followed,
        )

    def _failed(self, page: Page, response: _Response) -> Visit:
        """A failure, with a pause for the host if it is to be asked again."""
        retry = policy.retry_of(response.transient, response.header("retry-after"), response.header("date"))
        again = retry.soon and page.tries + 1 < policy.TRIES
        if again:
            failures = self._failures[page.host] = self._failures.get(page.host, 0) + 1
            self._limiter.pause(page.host, max(policy.backoff_s(failures), retry.pause_s))
        down = response.reason in (DropReason.TIMEOUT, DropReason.CONNECTION) or policy.is_outage(response.status)
        return Visit("dropped", response.reason, response.evidence, again=again, down=down, status=response.status)

    def _moved(self, page: Page, response: _Response) -> Visit:
        """A redirect, if it leads to another page of the site."""
        try:
            target = without_session(canonical_url(response.header("location"), page.url))
        except ValueError as e:
            return Visit("dropped", DropReason.HTTP_STATUS, f"{response.status} to a bad address: {e}")
        if not self._site.holds(target):
            return Visit("dropped", DropReason.HTTP_STATUS, f"{response.status} to {target}, outside the site")
        return Visit("moved", target=target, status=response.status)

    async def _rules_of(self, url: str) -> HostRules:
        """The rules of a URL's host, asked for once a day."""
        if not self._egress.obey_robots:
            return HostRules()
        address = policy.robots_url(url)
        async with self._rules_locks.setdefault(address, asyncio.Lock()):
            rules = self._rules.get(address)
            if rules is None or rules.expired(time.monotonic()):
                robots = await self._ask_robots(address)
                tdm = policy.Tdm()
                if not robots.unreachable:
                    response = await self._ask_rules(policy.tdm_url(url))
                    tdm = await asyncio.to_thread(policy.tdm_of, response.status, response.body)
                rules = self._rules[address] = HostRules(robots, tdm, time.monotonic())
            return rules

    async def _ask_robots(self, address: str) -> policy.Robots:
        """Ask for a robots.txt, once more if the failure may pass."""
        response = _Response()
        for _ in range(policy.TRIES):
            response = await self._ask_rules(address)
            if not response.transient:
                break
        if response.status and not response.transient:
            return await asyncio.to_thread(policy.robots_of, response.status, response.body)
        return policy.Robots(unreachable=response.evidence or f"status {response.status}")

    async def _ask_rules(self, url: str) -> _Response:
        """A small file about the host, after redirects."""
        response = _Response()
        for _ in range(policy.MAX_ROBOTS_REDIRECTS + 1):
            response = await self._get(url, HostRules(), policy.MAX_ROBOTS_BYTES, page=False)
            if not policy.is_redirect(response.status, response.header("location")):
                break
            try:
                url = split_userinfo(urljoin(url, response.header("location")))[0]
            except ValueError as e:
                return _Response(reason=DropReason.BAD_URL, evidence=f"redirect to a bad address: {e}")
        return response

    async def _get(
        self, url: str, rules: HostRules, cap: int, page: bool = True, earlier: Earlier | None = None
    ) -> _Response:
        """One guarded request, when the rate limit allows it.

        With `page` anything but HTML of status 200, a 304 or a redirect is a failure. What was taken down is not asked
        for, whatever leads there: a sitemap, or a robots.txt that redirects.
        """
        import aiohttp
        from yarl import URL

        if evidence := self._takedowns.why("", url):
            return _Response(reason=DropReason.FORGOTTEN, evidence=evidence)
        delay_s = self._policy.delay_s(rules)
        # in a thread, since booking a slot may ask another process
        await asyncio.sleep(await asyncio.to_thread(self._limiter.next_slot, urlsplit(url).netloc, delay_s))
        with guard.guarded(self._guard) as scope:
            try:
                self._guard.check_url(url)
                async with self._opened().get(
                    URL(url, encoded=True), headers=_request_headers(page, earlier), allow_redirects=False
                ) as response:
                    return await _read(response, cap, page)
            except guard.EgressRefused as e:
                return _Response(reason=DropReason.EGRESS_REFUSED, evidence=str(e))
            except TimeoutError:
                evidence = f"not done after {self._egress.timeout_s:g} s"
                return _Response(reason=DropReason.TIMEOUT, evidence=evidence, transient=True)
            except (aiohttp.ClientError, OSError, ValueError) as e:
                if scope.refused:
                    return _Response(reason=DropReason.EGRESS_REFUSED, evidence=scope.refused[0])
                evidence = " ".join(str(e).split()) or type(e).__name__
                return _Response(reason=DropReason.CONNECTION, evidence=evidence, transient=True)

    def _opened(self) -> Any:
        """The session, made in the event loop that uses it."""
        import aiohttp

        if self._session is None:
            self._session = aiohttp.ClientSession(
                auto_decompress=False,  # we unpack ourselves, within the byte cap
                connector=aiohttp.TCPConnector(limit=0, limit_per_host=self._egress.connections_per_host),
                cookie_jar=aiohttp.DummyCookieJar(),
                headers={"User-Agent": self._policy.user_agent},
                timeout=aiohttp.ClientTimeout(total=self._egress.timeout_s),
                trust_env=False,
            )
        return self._session


def _request_headers(page: bool, earlier: Earlier | None) -> dict[str, str]:
    """Headers of a request; it is conditional (RFC 9110 section 13) where an earlier crawl holds the page."""
    headers = {"Accept": ",".join(policy.HTML_TYPES) if page else "text/plain", "Accept-Encoding": "gzip"}
    if earlier is not None:
        headers |= {"If-None-Match": earlier.etag} if earlier.etag else {}
        headers |= {"If-Modified-Since": earlier.last_modified} if earlier.last_modified else {}
    return headers


def _member(earlier: Earlier) -> bytes:
    """The record of an earlier crawl; empty if it cannot be read any more."""
    folder, _, name = earlier.warc.rpartition("/")
    try:
        return Folder(folder).read_range(name, earlier.offset, earlier.length)
    except (StoreError, ValueError):
        return b""


async def _read(response: Any, cap: int, page: bool) -> _Response:
    """The response within the byte cap; the body is read only where it is wanted."""
    headers = tuple(
        (_text(name), policy.address_in(value) if name.lower() == b"location" else _text(value))
        for name, value in response.raw_headers
    )
    head = _Response(response.status, headers)
    content_type = head.header("content-type")

    def failed(reason: DropReason | None, evidence: str) -> _Response:
        return _Response(head.status, headers, b"", reason, evidence, policy.is_transient(head.status))

    if head.status == 304 or policy.is_redirect(head.status, head.header("location")):
        return head
    if head.status != 200:
        return failed(DropReason.HTTP_STATUS if page else None, f"status {head.status}")
    if page and policy.media_type(content_type) and not policy.is_html(content_type):
        return failed(DropReason.NOT_HTML, content_type)  # before its body is read
    body = bytearray()
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > cap:
            break
    if len(body) > cap and page:
        return failed(DropReason.TOO_LARGE, f"more than {cap} bytes")
    try:
        # a file about the host is cut where it is too large: of a robots.txt that is not read nothing is forbidden
        plain = await asyncio.to_thread(unpacked, bytes(body[:cap]), head.header("content-encoding"), cap, page)
    except BodyTooLarge as e:
        return failed(DropReason.TOO_LARGE, str(e))
    if page and not policy.is_html(content_type, plain):
        return failed(DropReason.NOT_HTML, "no content type")
    return _Response(head.status, headers, plain)


def _text(raw: bytes) -> str:
    """A header's name or value: UTF-8 where it is, else Latin-1, which reads any bytes."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw.decode("latin-1")
