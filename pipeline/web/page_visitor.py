"""One visit to one page: sends the request and judges the response. This part of a crawl is distributed by host.

Requests are those of the one client (`pipeline.web.client`), which holds them to the rules; what becomes of the page is
decided and written by `pipeline.web.crawler`.

A page that an earlier crawl holds is asked for only if it has changed (ETag, Last-Modified; RFC 9110 section 13). If it
has not, the visit returns the record that the earlier WARC holds of it, checked against its sha256.

A page or a domain that STORE/forgotten names is not asked for at all, nor is its robots.txt.

Pages are read by `pipeline.web.readers`, so that one that takes long does not hold up the others.

Limits: one event loop and one client per visitor.
"""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass, replace
from typing import Any, Literal
from urllib.parse import urljoin, urlsplit

from data_specs.build import BuildSpec
from pipeline.errors import StoreError
from pipeline.files.folder import Folder
from pipeline.rows.decisions import DropReason
from pipeline.rows.records import Capture, rfc3339
from pipeline.sources.site import Site
from pipeline.store.takedowns import NO_TAKEDOWNS, Takedowns
from pipeline.urls import canonical_url, without_session
from pipeline.web import policy, sitemaps
from pipeline.web.client import Client, Kind, RequestFailed, Response, page_kind, status_failure
from pipeline.web.pauses import Pause
from pipeline.web.readers import Readers
from pipeline.web.warc import capture_of

SITEMAP = Kind("text/plain", "gzip", sitemaps.MAX_BYTES, whole=False)
"""The kind of a sitemap: the entries before the cut are read."""


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
class EarlierRecord:
    """The record that an earlier crawl kept of a page: `length` bytes from `offset` of `warc`, a gzip member."""

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
    dropped      for `reason`; `retry`: asking once more may help, `down`: the host may be down, no answer or a 503
    unreachable  the host of a start page cannot be crawled: `evidence` says why, `target` is its robots.txt
    """

    outcome: Literal["kept", "unchanged", "moved", "dropped", "unreachable"]
    reason: DropReason | None = None
    evidence: str = ""
    retry: bool = False
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
    pauses: tuple[Pause, ...] = ()  # of hosts that began meanwhile


class Visitor:
    """Visits pages of some hosts. Used from one event loop; on a cluster it is an actor."""

    def __init__(self, spec: BuildSpec, site: Site, takedowns: Takedowns = NO_TAKEDOWNS) -> None:
        self._egress, self._site = spec.egress, site
        self._policy, self._kind = policy.policy_of(spec), page_kind(spec.egress)
        self._start_hosts = {urlsplit(url).netloc for url in site.start_urls()}
        self._pauses: list[Pause] = []  # that began since the last visit ended
        self._client = Client(spec, takedowns, show=self._pauses.append)
        self._readers = Readers(site)

    async def close(self) -> None:
        await self._readers.close()
        await self._client.close()

    async def visit(self, page: Page, earlier: EarlierRecord | None = None) -> Visit:
        """Ask for a page once. Never raises for what a host does."""
        visit = await self._visit(page, earlier)
        pauses = tuple(self._pauses)
        self._pauses.clear()
        return replace(visit, pauses=pauses) if pauses else visit

    async def _visit(self, page: Page, earlier: EarlierRecord | None) -> Visit:
        """Like `visit`, without the pauses."""
        try:
            response = await self._client.get(page.url, self._kind, _conditions(earlier))
            if response.status != 200 and not response.location and (response.status != 304 or earlier is None):
                raise status_failure(response)
            content_type = response.header("content-type")
            if response.status == 200 and not policy.is_html(content_type, response.body):
                raise RequestFailed(DropReason.NOT_HTML, content_type or "no content type", status=200)
        except RequestFailed as e:
            return self._failed_visit(page, e)
        if response.location:
            return self._redirect_visit(page, response)
        if response.status == 304 and earlier is not None:
            return await self._unchanged(page, response, earlier)
        capture = Capture(page.url, response.status, rfc3339(), content_type, response.body, response.headers)
        return await self._read_page("kept", page, capture, response.headers)

    async def delay_of(self, url: str) -> float:
        """Seconds between two requests to a URL's host. Raises RequestFailed if the guard refuses the host."""
        return self._policy.delay_s(await self._client.rules_of(url), urlsplit(url).netloc)

    async def outage(self, url: str) -> str:
        """Returns why a URL's host is down, "" if it is up."""
        return await self._client.outage(url)

    async def sitemap(self, url: str) -> tuple[list[str], list[str]]:
        """(pages of the site, further sitemaps) that a sitemap names; both empty where it cannot be had or may not be
        asked for. One that redirects names the file to which it does: http to https, as a rule."""
        try:
            response = await self._client.get(url, SITEMAP)
        except RequestFailed:
            return [], []
        if response.location:
            return [], [urljoin(url, response.location)]
        return await self._readers.sitemap(response.body) if response.status == 200 else ([], [])

    async def sitemaps_of(self, url: str) -> list[str]:
        """The sitemaps that the robots.txt of a URL's host names, else the one of the usual name."""
        try:
            return list((await self._client.rules_of(url)).robots.sitemaps) or [urljoin(url, "/sitemap.xml")]
        except RequestFailed:
            return []

    async def _unchanged(self, page: Page, response: Response, earlier: EarlierRecord) -> Visit:
        """The earlier record; if that is not there any more, the page as it is now."""
        member = await asyncio.to_thread(_read_earlier, earlier)
        capture = capture_of(member, self._egress.max_page_bytes) if member else None
        if capture is None or hashlib.sha256(capture.body).hexdigest() != earlier.sha256 or capture.url != page.url:
            return await self._visit(page, None)
        # what the owner says now counts, and what was said when the record was made
        return await self._read_page("unchanged", page, capture, (*response.headers, *capture.headers), member)

    async def _read_page(
        self,
        outcome: Literal["kept", "unchanged"],
        page: Page,
        capture: Capture,
        headers: tuple[tuple[str, str], ...],
        member: bytes = b"",
    ) -> Visit:
        """Keep a page unless its owner opted out, and follow its links."""
        reading = await self._readers.page(capture, headers)
        links: dict[str, Any] = {"links": reading.links, "endless": reading.endless}
        if page.depth >= self._site.max_depth:
            links = {"too_deep": reading.links}
        if reading.opt_outs:
            return Visit("dropped", DropReason.OPT_OUT, reading.opt_outs, **links)
        return Visit(
            outcome,
            capture=capture,
            member=member,
            likeness=reading.likeness,
            images=reading.images,
            **links,
        )

    def _failed_visit(self, page: Page, failure: RequestFailed) -> Visit:
        """A failure, and whether the page is to be asked for again."""
        if failure.reason in (DropReason.ROBOTS_UNREACHABLE, DropReason.DNS) and page.host in self._start_hosts:
            return Visit("unreachable", evidence=failure.evidence, target=policy.robots_url(page.url))
        retry = failure.retry.in_this_build and page.tries + 1 < policy.TRIES
        return Visit(
            "dropped", failure.reason, failure.evidence, retry=retry, down=failure.host_is_down, status=failure.status
        )

    def _redirect_visit(self, page: Page, response: Response) -> Visit:
        """A redirect, if it leads to another page of the site."""
        try:
            target = without_session(canonical_url(response.location, page.url))
        except ValueError as e:
            return Visit("dropped", DropReason.HTTP_STATUS, f"{response.status} to a bad address: {e}")
        if not self._site.holds(target):
            return Visit("dropped", DropReason.HTTP_STATUS, f"{response.status} to {target}, outside the site")
        return Visit("moved", target=target, status=response.status)


def _conditions(earlier: EarlierRecord | None) -> dict[str, str]:
    """Headers of a request that is conditional (RFC 9110 section 13) where an earlier crawl holds the page."""
    if earlier is None:
        return {}
    headers = {"If-None-Match": earlier.etag, "If-Modified-Since": earlier.last_modified}
    return {name: value for name, value in headers.items() if value}


def _read_earlier(earlier: EarlierRecord) -> bytes:
    """The record of an earlier crawl; empty if it cannot be read any more."""
    folder, _, name = earlier.warc.rpartition("/")
    try:
        return Folder(folder).read_range(name, earlier.offset, earlier.length)
    except (StoreError, ValueError):
        return b""
