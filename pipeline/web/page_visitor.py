"""One visit to one page: rules, pause, request, and what the answer is worth. This part of a crawl is spread by host.

A visitor asks the pages of some hosts. It knows their robots.txt and TDM reservations, takes its turns
(`pipeline.web.pace`), and judges each answer; what becomes of the page is for `pipeline.web.crawler` to decide and
write. Bodies are read within a byte cap and unpacked by ourselves within the same cap; the time limit of a request
covers name lookup, connection and body.

A page that an earlier crawl holds is asked for only if it has changed (ETag, Last-Modified; RFC 9110 section 13). If it
has not, the visit gives the record that the earlier WARC holds of it, checked against its sha256.

A page or a domain that STORE/forgotten names is not asked for at all, nor is its robots.txt.

Limits: pages are parsed in the event loop, one process a visitor.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import time
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import urljoin, urlsplit

from data_specs.build import BuildSpec
from pipeline.errors import StoreError
from pipeline.files.folder import Folder
from pipeline.records import Capture, DropReason, rfc3339
from pipeline.sources.site import Site
from pipeline.store.takedowns import Takedowns
from pipeline.texts import charset
from pipeline.urls import canonical_url, is_endless, without_session
from pipeline.web import guard, sitemaps
from pipeline.web.pace import Turns
from pipeline.web.warc import capture_of

TRIES = 2
"""Requests for a page whose failure may pass."""

BACKOFF_S, MAX_BACKOFF_S = 0.5, 60.0
"""Pause of a host after a failure that may pass, doubled with each further one in a row."""

_NO_PAGE = re.compile(
    r"\.(7z|avi|bmp|bz2|css|csv|docx?|eot|epub|exe|flv|gif|gz|ico|iso|jpe?g|js|json|m4[av]|midi?|mov|mp[34]|mpe?g|og[agv]"
    r"|otf|pdf|png|pptx?|ps|rar|rss|svg|swf|tar|tgz|tiff?|ttf|txt|wav|web[mp]|wm[av]|woff2?|xlsx?|xml|zip)$",
    re.IGNORECASE,
)
"""Paths of what is no page; links to it are not followed."""


@dataclass(frozen=True, slots=True)
class Page:
    """A known page. `depth` is links from a start page, `hops` redirects that led to it, `tries` failed requests."""

    id: int
    url: str
    host: str
    depth: int
    hops: int
    tries: int


@dataclass(frozen=True, slots=True)
class Earlier:
    """What an earlier crawl kept of a page, and where: a gzip member of `warc`."""

    warc: str
    offset: int
    length: int
    etag: str
    last_modified: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Visit:
    """What a visit gave.

    kept      `capture` is to be written
    same      not changed since the earlier crawl: `member` is the record to be written again, `capture` what it holds
    moved     to `target`
    dropped   for `reason`; `transient`: asking again may help, `alone`: the host did not answer at all
    gone      the host of a start page cannot be crawled, `evidence` says why
    """

    outcome: Literal["kept", "same", "moved", "dropped", "gone"]
    reason: DropReason | None = None
    evidence: str = ""
    transient: bool = False
    alone: bool = False
    status: int = 0
    target: str = ""
    capture: Capture | None = None
    member: bytes = b""
    links: tuple[str, ...] = ()
    endless: int = 0  # links that lead into an endless path
    likeness: str = ""  # digest of the page but for its numbers


@dataclass(frozen=True, slots=True)
class _Answer:
    """One HTTP answer, or why there is none. `transient`: asking again may help."""

    status: int = 0
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    reason: DropReason | None = None
    evidence: str = ""
    transient: bool = False

    def header(self, name: str) -> str:
        return next(iter(self.all(name)), "")

    def all(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key.lower() == name]


@dataclass(slots=True)
class _Host:
    """What a visitor knows of a host."""

    robots: guard.Robots
    tdm: guard.Tdm
    asked_at: float


class Visitor:
    """Visits pages of some hosts. Used from one event loop; on a cluster it is an actor."""

    def __init__(self, spec: BuildSpec, site: Site, forgotten: frozenset[str] = frozenset()) -> None:
        self._spec, self._site, self._takedowns = spec, site, Takedowns(forgotten)
        self._guard = guard.guard_of(spec)
        self._hosts: dict[str, _Host] = {}  # by address of robots.txt
        self._asking: dict[str, asyncio.Lock] = {}
        self._failures: dict[str, int] = {}
        self._turns = Turns()
        self._session: Any = None

    async def close(self) -> None:
        """Close the connections."""
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
            return Visit("gone", evidence=f"robots.txt: {robots.unreachable}", target=guard.robots_url(page.url))
        if not robots.allows(page.url):
            reason = DropReason.ROBOTS_UNREACHABLE if robots.unreachable else DropReason.ROBOTS_DISALLOWED
            return Visit("dropped", reason, robots.refusal(page.url))
        if rules.tdm.reserves(page.url):
            return Visit("dropped", DropReason.OPT_OUT, "tdm-reservation in /.well-known/tdmrep.json")
        answer = await self._get(page.url, page.host, robots.delay_s, self._spec.egress.max_page_bytes, earlier=earlier)
        if answer.reason is not None:
            return self._failed(page, answer)
        self._failures.pop(page.host, None)
        if answer.status == 304 and earlier is not None:
            return await self._unchanged(page, answer, earlier)
        if 300 <= answer.status < 400:
            return self._moved(page, answer)
        capture = Capture(
            page.url, answer.status, rfc3339(), answer.header("content-type"), answer.body, answer.headers
        )
        return self._judged("kept", page, capture, answer)

    async def sitemap(self, url: str) -> tuple[list[str], list[str]]:
        """(pages, further sitemaps) that a sitemap names; both empty where it cannot be had or may not be asked for."""
        rules = await self._rules_of(url)
        if not rules.robots.allows(url):
            return [], []
        cap = sitemaps.MAX_BYTES
        answer = await self._get(url, urlsplit(url).netloc, rules.robots.delay_s, cap, page=False)
        return sitemaps.parse(answer.body, cap) if answer.status == 200 else ([], [])

    async def sitemaps_of(self, url: str) -> list[str]:
        """The sitemaps that the robots.txt of a URL's host names."""
        return list((await self._rules_of(url)).robots.sitemaps)

    async def _unchanged(self, page: Page, answer: _Answer, earlier: Earlier) -> Visit:
        """The earlier record; if that is not there any more, the page as it is now."""
        member = await asyncio.to_thread(_member, earlier)
        capture = capture_of(member, self._spec.egress.max_page_bytes) if member else None
        if capture is None or hashlib.sha256(capture.body).hexdigest() != earlier.sha256 or capture.url != page.url:
            return await self.visit(page, None)
        return self._judged("same", page, capture, answer, member)

    def _judged(
        self, outcome: Literal["kept", "same"], page: Page, capture: Capture, answer: _Answer, member: bytes = b""
    ) -> Visit:
        """Keep a page unless its owner opted out, and follow its links."""
        looked = _look(capture.body, capture.content_type, page.url)
        tags = answer.all("x-robots-tag") + [v for k, v in capture.headers if member and k.lower() == "x-robots-tag"]
        links: list[str] = []
        endless = 0
        if page.depth < self._site.max_depth and guard.follows_links(tags, looked.robots):
            links, endless = _links(looked.hrefs, self._site)
        outs = guard.opt_outs(tags, looked.robots)
        if looked.reserved or guard.reserved(answer.header("tdm-reservation")):
            outs.append("tdm-reservation: 1")
        found = {"links": tuple(links), "endless": endless}
        if outs:
            return Visit("dropped", DropReason.OPT_OUT, ", ".join(outs), links=tuple(links), endless=endless)
        return Visit(outcome, capture=capture, member=member, likeness=looked.likeness, **found)  # type: ignore[arg-type]

    def _failed(self, page: Page, answer: _Answer) -> Visit:
        """A failure, with a pause for the host if it is to be asked again."""
        wait = guard.retry_after_seconds(answer.header("retry-after"))
        again = answer.transient and page.tries + 1 < TRIES and (wait is None or wait <= guard.MAX_DELAY_S)
        if again:
            times = self._failures[page.host] = self._failures.get(page.host, 0) + 1
            self._turns.hold(page.host, max(min(MAX_BACKOFF_S, BACKOFF_S * 2.0 ** min(times - 1, 20)), wait or 0.0))
        alone = answer.reason in (DropReason.TIMEOUT, DropReason.CONNECTION)
        return Visit("dropped", answer.reason, answer.evidence, transient=again, alone=alone, status=answer.status)

    def _moved(self, page: Page, answer: _Answer) -> Visit:
        try:
            target = without_session(canonical_url(answer.header("location"), page.url))
        except ValueError as e:
            return Visit("dropped", DropReason.HTTP_STATUS, f"{answer.status} to a bad address: {e}")
        if not self._site.holds(target):
            return Visit("dropped", DropReason.HTTP_STATUS, f"{answer.status} to {target}, outside the site")
        return Visit("moved", target=target, status=answer.status)

    async def _rules_of(self, url: str) -> _Host:
        """What rules a URL, asked for once a day."""
        address = guard.robots_url(url)
        if not self._spec.egress.obey_robots:
            return _Host(guard.Robots(), guard.Tdm(), 0.0)
        async with self._asking.setdefault(address, asyncio.Lock()):
            known = self._hosts.get(address)
            if known is None or time.monotonic() - known.asked_at > guard.ROBOTS_TTL_S:
                robots = await self._ask_robots(address)
                tdm = guard.Tdm()
                if not robots.unreachable:
                    answer = await self._ask_rules(guard.tdm_url(url))
                    tdm = guard.tdm_of(answer.status, answer.body)
                known = self._hosts[address] = _Host(robots, tdm, time.monotonic())
            return known

    async def _ask_robots(self, address: str) -> guard.Robots:
        answer = _Answer()
        for _ in range(TRIES):
            answer = await self._ask_rules(address)
            if answer.status and not answer.transient:
                return guard.robots_of(answer.status, answer.body)
            if not answer.transient:
                break
        return guard.Robots(unreachable=answer.evidence or f"status {answer.status}")

    async def _ask_rules(self, url: str) -> _Answer:
        """A small file about the host, after redirects."""
        answer = _Answer()
        for _ in range(guard.MAX_ROBOTS_REDIRECTS + 1):
            answer = await self._get(url, urlsplit(url).netloc, 0.0, guard.MAX_ROBOTS_BYTES, page=False)
            if not (300 <= answer.status < 400 and answer.header("location")):
                break
            url = urljoin(url, answer.header("location"))
        return answer

    async def _get(
        self, url: str, host: str, delay_s: float, cap: int, page: bool = True, earlier: Earlier | None = None
    ) -> _Answer:
        """One guarded request. With `page` anything but HTML of status 200, a 304 or a redirect is a failure.

        What was taken down is not asked for, whatever leads there: a sitemap, or a robots.txt that redirects.
        """
        import aiohttp
        from yarl import URL

        if evidence := self._takedowns.why("", url):
            return _Answer(reason=DropReason.FORGOTTEN, evidence=evidence)
        await asyncio.sleep(await asyncio.to_thread(self._turns.take, host, max(delay_s, self._spec.egress.delay_s)))
        headers = {"Accept": "text/html,application/xhtml+xml" if page else "text/plain", "Accept-Encoding": "gzip"}
        if earlier is not None:
            headers |= {"If-None-Match": earlier.etag} if earlier.etag else {}
            headers |= {"If-Modified-Since": earlier.last_modified} if earlier.last_modified else {}
        with guard.guarded(self._guard) as scope:
            try:
                self._guard.check_url(url)
                async with self._opened().get(
                    URL(url, encoded=True), headers=headers, allow_redirects=False
                ) as response:
                    return await _read(response, cap, page)
            except guard.EgressRefused as e:
                return _Answer(reason=DropReason.EGRESS_REFUSED, evidence=str(e))
            except asyncio.TimeoutError:
                evidence = f"not done after {self._spec.egress.timeout_s:g} s"
                return _Answer(reason=DropReason.TIMEOUT, evidence=evidence, transient=True)
            except (aiohttp.ClientError, OSError, ValueError) as e:
                if scope.refused:
                    return _Answer(reason=DropReason.EGRESS_REFUSED, evidence=scope.refused[0])
                evidence = " ".join(str(e).split()) or type(e).__name__
                return _Answer(reason=DropReason.CONNECTION, evidence=evidence, transient=True)

    def _opened(self) -> Any:
        """The session, made in the event loop that uses it."""
        import aiohttp

        if self._session is None:
            self._session = aiohttp.ClientSession(
                auto_decompress=False,  # we unpack ourselves, within the byte cap
                connector=aiohttp.TCPConnector(limit=0, limit_per_host=self._spec.egress.connections_per_host),
                cookie_jar=aiohttp.DummyCookieJar(),
                headers={"User-Agent": guard.user_agent(self._spec)},
                timeout=aiohttp.ClientTimeout(total=self._spec.egress.timeout_s),
                trust_env=False,
            )
        return self._session


def _member(earlier: Earlier) -> bytes:
    """The record of an earlier crawl; empty if it cannot be read any more."""
    folder, _, name = earlier.warc.rpartition("/")
    try:
        return Folder(folder).read_range(name, earlier.offset, earlier.length)
    except (StoreError, ValueError):
        return b""


async def _read(response: Any, cap: int, page: bool) -> _Answer:
    """The answer within the byte cap; the body is read only where it is wanted."""
    headers = tuple((_text(name), _text(value)) for name, value in response.raw_headers)
    status = response.status
    answer = _Answer(status=status, headers=headers)
    transient = status >= 500 or status == 429
    if status == 304 or (300 <= status < 400 and answer.header("location")):
        return answer
    if status != 200:
        reason = DropReason.HTTP_STATUS if page else None
        return _Answer(status, headers, b"", reason, f"status {status}", transient)
    if page and not _is_html(answer.header("content-type")):
        return _Answer(status, headers, b"", DropReason.NOT_HTML, answer.header("content-type") or "no content type")
    body = bytearray()
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > cap:
            break
    if len(body) > cap and page:
        return _Answer(status, headers, b"", DropReason.TOO_LARGE, f"more than {cap} bytes")
    try:
        return _Answer(status, headers, guard.unpacked(bytes(body[:cap]), answer.header("content-encoding"), cap))
    except guard.BodyTooLarge as e:
        return _Answer(status, headers, b"", DropReason.TOO_LARGE, str(e))


def _text(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def _is_html(content_type: str) -> bool:
    return content_type.partition(";")[0].strip().lower() in ("text/html", "application/xhtml+xml")


@dataclass(frozen=True, slots=True)
class _Looked:
    """What a page says about itself: robots meta tags, reservation, absolute addresses, likeness (see Visit)."""

    robots: list[str] = field(default_factory=list)
    reserved: bool = False
    hrefs: list[str] = field(default_factory=list)
    likeness: str = ""


_NUMBERS = re.compile(r"[\d\s零〇一二三四五六七八九十]+")


def _look(body: bytes, content_type: str, url: str) -> _Looked:
    from selectolax.lexbor import LexborHTMLParser

    found = charset.decode(body, content_type)
    tree = LexborHTMLParser(found[0] if found else body.decode("latin-1"))
    metas = [
        ((node.attributes.get("name") or "").strip().lower(), node.attributes.get("content") or "")
        for node in tree.css("meta[name]")
    ]
    base = tree.css_first("base[href]")
    start = urljoin(url, (base.attributes.get("href") or "").strip()) if base else url
    hrefs = [
        (node.attributes.get("href") or node.attributes.get("src") or "").strip()
        for node in tree.css("a[href], area[href], iframe[src], frame[src]")
    ]
    pictures = [str(node.attributes) for node in tree.css("img")]
    text = tree.body.text() if tree.body is not None else ""
    likeness = hashlib.sha256("\0".join([_NUMBERS.sub("", text), *pictures]).encode("utf-8", "replace")).hexdigest()[
        :32
    ]
    return _Looked(
        robots=[content for name, content in metas if name in ("robots", guard.AGENT)],
        reserved=any(guard.reserved(content) for name, content in metas if name == "tdm-reservation"),
        hrefs=[joined for href in hrefs if (joined := _join(start, href))],
        likeness=likeness,
    )


def _join(base: str, href: str) -> str:
    try:
        return urljoin(base, href)
    except ValueError:
        return ""


def _links(hrefs: list[str], site: Site) -> tuple[list[str], int]:
    """(canonical addresses of what may be a page of the site, each once, in the order of the page; endless ones)."""
    found: dict[str, None] = {}
    endless = 0
    for href in hrefs:
        try:
            url = without_session(canonical_url(href))
        except ValueError:
            continue
        if not _NO_PAGE.search(urlsplit(url).path) and site.holds(url) and url not in found:
            if is_endless(url):
                endless += 1
            else:
                found[url] = None
    return list(found), endless
