"""The crawler: one site's pages over HTTP, each judged and handed to the frontier.

For each host one task, one connection and a pause between two requests. Bodies are read within a byte cap and
unpacked by ourselves within the same cap; the time limit of a request covers name lookup, connection and body. A
failure that may pass is tried again after all other pages; a host that fails MAX_STREAK times in a row ends the crawl
with an error instead of turning every page that is left into a Decision, and the next run goes on from there.

Limits: pages are parsed in the event loop; one process crawls one site.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import re
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urljoin, urlsplit

from data_specs.build import BuildSpec
from pipeline import charset, egress
from pipeline.errors import SourceError
from pipeline.frontier import Frontier, Page
from pipeline.records import Capture, DropReason
from pipeline.sources.site import Site
from pipeline.urls import canonical_url

TRIES = 2
"""Requests for a page whose failure may pass."""

MAX_STREAK = 20
"""Failed connections in a row after which a host is taken to be gone."""

_NO_PAGE = re.compile(
    r"\.(7z|avi|bmp|bz2|css|csv|docx?|eot|epub|exe|flv|gif|gz|ico|iso|jpe?g|js|json|m4[av]|midi?|mov|mp[34]|mpe?g|og[agv]"
    r"|otf|pdf|png|pptx?|ps|rar|rss|svg|swf|tar|tgz|tiff?|ttf|txt|wav|web[mp]|wm[av]|woff2?|xlsx?|xml|zip)$",
    re.IGNORECASE,
)
"""Paths of what is no page; links to it are not followed."""


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


class Crawler:
    """One crawl of one site."""

    def __init__(self, spec: BuildSpec, site: Site, frontier: Frontier) -> None:
        self._spec, self._site, self._frontier = spec, site, frontier
        self._guard = egress.guard_of(spec)
        self._robots: dict[str, egress.Robots] = {}
        self._next: dict[str, float] = {}  # host -> monotonic time of its next request
        self._streak: dict[str, list[Page]] = {}
        self._flying = 0
        self._session: Any = None

    async def run(self) -> None:
        """Take pages until none is left or a limit is reached. Raises SourceError when a host is gone."""
        async with self._open():
            while not self._spent() and (hosts := self._frontier.hosts()):
                tasks = [asyncio.create_task(self._host(host)) for host in hosts]
                try:
                    await asyncio.gather(*tasks)
                finally:
                    for task in tasks:
                        task.cancel()
                    await asyncio.gather(*tasks, return_exceptions=True)

    @contextlib.asynccontextmanager
    async def _open(self) -> AsyncIterator[None]:
        import aiohttp

        self._session = aiohttp.ClientSession(
            auto_decompress=False,  # we unpack ourselves, within the byte cap
            connector=aiohttp.TCPConnector(limit_per_host=1),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"User-Agent": egress.user_agent(self._spec)},
            timeout=aiohttp.ClientTimeout(total=self._spec.egress.timeout_s),
            trust_env=False,
        )
        async with self._session:
            yield

    def _spent(self) -> bool:
        return (
            self._frontier.kept_pages + self._flying >= self._site.max_pages
            or self._frontier.kept_bytes >= self._site.max_bytes
            or self._frontier.hours() >= self._site.max_hours
        )

    async def _host(self, host: str) -> None:
        """Take one host's pages, one after the other."""
        while not self._spent() and (page := self._frontier.next(host)) is not None:
            self._flying += 1
            try:
                await self._take(page)
            finally:
                self._flying -= 1

    async def _take(self, page: Page) -> None:
        if page.hops > self._spec.egress.max_redirects:
            self._frontier.drop(page, DropReason.TOO_MANY_REDIRECTS, f"{page.hops} redirects")
            return
        robots = await self._robots_of(page.url)
        if not robots.allows(page.url):
            reason = DropReason.ROBOTS_UNREACHABLE if robots.unreachable else DropReason.ROBOTS_DISALLOWED
            self._frontier.drop(page, reason, robots.refusal(page.url))
            return
        answer = await self._get(page.url, page.host, robots.delay_s, self._spec.egress.max_page_bytes)
        if answer.reason is not None:
            self._failed(page, answer)
            return
        self._streak.pop(page.host, None)
        if 300 <= answer.status < 400:
            self._moved(page, answer)
        else:
            self._taken(page, answer)

    async def _robots_of(self, url: str) -> egress.Robots:
        """The robots.txt that rules a URL. Raises SourceError if that of a start page's host is unreachable."""
        address = egress.robots_url(url)
        if not self._spec.egress.obey_robots:
            return egress.Robots()
        if address not in self._robots:
            robots = await self._ask_robots(address)
            if robots.unreachable and urlsplit(url).netloc in {urlsplit(u).netloc for u in self._site.start_urls()}:
                raise SourceError(address, f"source {self._site.name}: robots.txt: {robots.unreachable}; not crawled")
            self._robots[address] = robots
        return self._robots[address]

    async def _ask_robots(self, address: str) -> egress.Robots:
        for attempt in range(TRIES):
            url, answer = address, _Answer()
            for _ in range(egress.MAX_ROBOTS_REDIRECTS + 1):
                answer = await self._get(url, urlsplit(url).netloc, 0.0, egress.MAX_ROBOTS_BYTES, page=False)
                if not (300 <= answer.status < 400 and answer.header("location")):
                    break
                url = urljoin(url, answer.header("location"))
            if answer.status and not answer.transient:
                return egress.robots_of(answer.status, answer.body)
            if not answer.transient or attempt + 1 == TRIES:
                break
        return egress.Robots(unreachable=answer.evidence or f"status {answer.status}")

    async def _pause(self, host: str, delay_s: float) -> None:
        now = time.monotonic()
        start = max(now, self._next.get(host, 0.0))
        self._next[host] = start + max(delay_s, self._spec.egress.delay_s)
        await asyncio.sleep(start - now)

    async def _get(self, url: str, host: str, delay_s: float, cap: int, page: bool = True) -> _Answer:
        """One guarded request. With `page` anything but HTML of status 200 or a redirect is a failure."""
        import aiohttp
        from yarl import URL

        await self._pause(host, delay_s)
        headers = {"Accept": "text/html,application/xhtml+xml" if page else "text/plain", "Accept-Encoding": "gzip"}
        with egress.guarded(self._guard) as scope:
            try:
                self._guard.check_url(url)
                async with self._session.get(
                    URL(url, encoded=True), headers=headers, allow_redirects=False
                ) as response:
                    return await _read(response, cap, page)
            except egress.EgressRefused as e:
                return _Answer(reason=DropReason.EGRESS_REFUSED, evidence=str(e))
            except asyncio.TimeoutError:
                evidence = f"not done after {self._spec.egress.timeout_s:g} s"
                return _Answer(reason=DropReason.TIMEOUT, evidence=evidence, transient=True)
            except (aiohttp.ClientError, OSError, ValueError) as e:
                if scope.refused:
                    return _Answer(reason=DropReason.EGRESS_REFUSED, evidence=scope.refused[0])
                evidence = " ".join(str(e).split()) or type(e).__name__
                return _Answer(reason=DropReason.CONNECTION, evidence=evidence, transient=True)

    def _failed(self, page: Page, answer: _Answer) -> None:
        """Try once more, or drop; give up the site when its host answers no more."""
        assert answer.reason is not None
        wait = egress.retry_after_seconds(answer.header("retry-after"))
        if answer.reason in (DropReason.TIMEOUT, DropReason.CONNECTION):
            self._streak.setdefault(page.host, []).append(page)
        else:
            self._streak.pop(page.host, None)
        patient = wait is None or wait <= egress.MAX_DELAY_S
        if answer.transient and page.tries + 1 < TRIES and patient:
            pause = max(1.0, wait or 0.0)
            self._next[page.host] = max(self._next.get(page.host, 0.0), time.monotonic() + pause)
            self._frontier.again(page)
        else:
            self._frontier.drop(page, answer.reason, answer.evidence)
        streak = self._streak.get(page.host, [])
        if len(streak) >= MAX_STREAK:
            self._frontier.reopen(streak)
            message = f"source {self._site.name}: {len(streak)} requests in a row failed ({answer.evidence}); "
            raise SourceError(page.url, message + "start again to go on with the crawl")

    def _moved(self, page: Page, answer: _Answer) -> None:
        try:
            target = canonical_url(answer.header("location"), page.url)
        except ValueError as e:
            self._frontier.drop(page, DropReason.HTTP_STATUS, f"{answer.status} to a bad address: {e}")
            return
        if not self._site.holds(target):
            self._frontier.drop(page, DropReason.HTTP_STATUS, f"{answer.status} to {target}, outside the site")
        elif page.hops >= self._spec.egress.max_redirects or self._frontier.end_of(target) == page.url:
            self._frontier.drop(page, DropReason.TOO_MANY_REDIRECTS, f"{answer.status} to {target}")
        else:
            self._frontier.move(page, target, answer.status)

    def _taken(self, page: Page, answer: _Answer) -> None:
        """Keep a page unless its owner opted out, and follow its links."""
        content_type = answer.header("content-type")
        metas, hrefs = _look(answer.body, content_type, page.url)
        tags = answer.all("x-robots-tag")
        links = []
        if page.depth < self._site.max_depth and egress.follows_links(tags, metas):
            links = [link for link in _links(hrefs, page.url) if self._site.holds(link)]
        if outs := egress.opt_outs(tags, metas):
            self._frontier.drop(page, DropReason.OPT_OUT, ", ".join(outs), links)
            return
        now = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
        self._frontier.keep(
            page, Capture(page.url, answer.status, now, content_type, answer.body, answer.headers), links
        )


async def _read(response: Any, cap: int, page: bool) -> _Answer:
    """The answer within the byte cap; the body is read only where it is wanted."""
    headers = tuple((_text(name), _text(value)) for name, value in response.raw_headers)
    status = response.status
    answer = _Answer(status=status, headers=headers)
    transient = status >= 500 or status == 429
    if 300 <= status < 400 and answer.header("location"):
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
        return _Answer(status, headers, egress.unpacked(bytes(body[:cap]), answer.header("content-encoding"), cap))
    except egress.BodyTooLarge as e:
        return _Answer(status, headers, b"", DropReason.TOO_LARGE, str(e))


def _text(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def _is_html(content_type: str) -> bool:
    return content_type.partition(";")[0].strip().lower() in ("text/html", "application/xhtml+xml")


def _look(body: bytes, content_type: str, url: str) -> tuple[list[str], list[str]]:
    """(contents of its robots meta tags, absolute addresses it links to) of a page."""
    from selectolax.lexbor import LexborHTMLParser

    found = charset.decode(body, content_type)
    tree = LexborHTMLParser(found[0] if found else body.decode("latin-1"))
    metas = [
        node.attributes.get("content") or ""
        for node in tree.css("meta[name]")
        if (node.attributes.get("name") or "").strip().lower() in ("robots", egress.AGENT)
    ]
    base = tree.css_first("base[href]")
    start = urljoin(url, (base.attributes.get("href") or "").strip()) if base else url
    hrefs = [
        (node.attributes.get("href") or node.attributes.get("src") or "").strip()
        for node in tree.css("a[href], area[href], iframe[src], frame[src]")
    ]
    return metas, [joined for href in hrefs if (joined := _join(start, href))]


def _join(base: str, href: str) -> str:
    try:
        return urljoin(base, href)
    except ValueError:
        return ""


def _links(hrefs: list[str], base: str) -> list[str]:
    """Canonical addresses of what may be a page, each once, in the order of the page."""
    found: dict[str, None] = {}
    for href in hrefs:
        try:
            url = canonical_url(href, base)
        except ValueError:
            continue
        if not _NO_PAGE.search(urlsplit(url).path):
            found[url] = None
    return list(found)
