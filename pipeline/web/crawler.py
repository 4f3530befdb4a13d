"""The crawler: one site's pages, host by host, each visit's outcome written into the frontier.

The frontier and the limits live here, in one process a site; the visits (`pipeline.web.page_visitor`: requests,
parsing) are spread over Ray actors by host where the site has several and a cluster is there, since the pages of a host
must be asked for by one. A failure that may pass is tried again after all other pages; a host that fails MAX_STREAK
times in a row ends the crawl with an error instead of turning every page that is left into a Decision, and the next run
goes on from there. An actor that dies is started again and its visits with it.

Limits: one frontier a site, which takes some thousand pages a second.
"""

from __future__ import annotations

import asyncio
import sys
import time
import zlib
from typing import Any
from urllib.parse import urlsplit

from data_specs.build import BuildSpec
from pipeline.errors import SourceError
from pipeline.observe import count
from pipeline.records import DropReason
from pipeline.sources.site import Site
from pipeline.urls import canonical_url
from pipeline.web import sitemaps
from pipeline.web.frontier import Frontier
from pipeline.web.page_visitor import Page, Visit, Visitor

MAX_STREAK = 20
"""Failed connections in a row after which a host is taken to be gone."""

MAX_ALIKE = 20
"""Pages of one host that differ in their numbers only: what comes after them is a trap (a calendar, a counter)."""

MAX_ACTORS = 16
"""Visitors of one site."""


class Crawler:
    """One crawl of one site. `forgotten`: hashes of pages and domains that were taken down."""

    def __init__(
        self, spec: BuildSpec, site: Site, frontier: Frontier, forgotten: frozenset[str] = frozenset()
    ) -> None:
        self._spec, self._site, self._frontier, self._forgotten = spec, site, frontier, forgotten
        self._hosts = site.all_hosts()
        self._flying: dict[asyncio.Task[set[str]], Page] = {}
        self._streak: dict[str, list[Page]] = {}
        self._began: dict[str, float] = {}

    async def run(self) -> None:
        """Take pages until none is left or a limit is reached. Raises SourceError when a host is gone."""
        visitors = _Visitors(self._spec, self._site, self._forgotten, len(self._hosts))
        try:
            await self._read_sitemaps(visitors)
            look = set(self._hosts)  # hosts that may have a page to take
            while True:
                for host in sorted(look):
                    self._start(host, visitors)
                look.clear()
                if not self._flying:
                    return
                done, _ = await asyncio.wait(self._flying, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    page = self._flying.pop(task)
                    look |= {page.host, *task.result()}
                if not self._flying:
                    look = set(self._hosts)  # pages that one in the air held back
        finally:
            for task in self._flying:
                task.cancel()
            await asyncio.gather(*self._flying, return_exceptions=True)
            await visitors.close()

    def _start(self, host: str, visitors: _Visitors) -> None:
        """Begin visits to a host, as many as it may see at once."""
        here = {page.id for page in self._flying.values() if page.host == host}
        while len(here) < self._spec.egress.connections_per_host and not self._spent(host):
            page = self._frontier.next(host, here)
            if page is None:
                return
            here.add(page.id)
            self._began.setdefault(host, time.monotonic())
            self._flying[asyncio.create_task(self._take(page, visitors))] = page

    def _spent(self, host: str) -> bool:
        """Whether a limit is reached: the site's, or the host's own."""
        site, kept = self._site, self._frontier.kept_of(host)
        here = sum(page.host == host for page in self._flying.values())
        hours = (time.monotonic() - self._began.get(host, time.monotonic())) / 3600
        return (
            self._frontier.kept_pages + len(self._flying) >= site.max_pages
            or self._frontier.kept_bytes >= site.max_bytes
            or self._frontier.hours() >= site.max_hours
            or (0 < site.max_pages_per_host <= kept.pages + here)
            or (0 < site.max_bytes_per_host <= kept.bytes)
            or (0 < site.max_hours_per_host <= hours)
        )

    async def _take(self, page: Page, visitors: _Visitors) -> set[str]:
        """Visit a page and write down what came of it; gives the hosts of the pages that became known."""
        if page.hops > self._spec.egress.max_redirects:
            self._frontier.drop(page, DropReason.TOO_MANY_REDIRECTS, f"{page.hops} redirects")
            return set()
        visit = await visitors.visit(page, self._frontier.earlier(page.url))
        self._apply(page, visit)
        if visit.endless:
            self._frontier.count("traps", visit.endless)
        return {urlsplit(link).netloc for link in (*visit.links, *([visit.target] if visit.target else []))}

    def _apply(self, page: Page, visit: Visit) -> None:
        fate = "kept" if visit.outcome in ("kept", "same") else visit.reason.value if visit.reason else visit.outcome
        count("wenlan_requests", host=page.host, fate=fate)
        if visit.outcome == "gone":
            raise SourceError(visit.target, f"source {self._site.name}: {visit.evidence}; not crawled")
        if visit.outcome == "dropped":
            self._failed(page, visit)
            return
        self._streak.pop(page.host, None)
        if visit.outcome == "moved":
            circle = self._frontier.end_of(visit.target) == page.url
            if circle or page.hops >= self._spec.egress.max_redirects:
                self._frontier.drop(page, DropReason.TOO_MANY_REDIRECTS, f"{visit.status} to {visit.target}")
            else:
                self._frontier.move(page, visit.target, visit.status)
            return
        assert visit.capture is not None
        count("wenlan_received_bytes", len(visit.capture.body) if visit.outcome == "kept" else 0, host=page.host)
        if self._frontier.alike(page.host, visit.likeness) >= MAX_ALIKE:
            evidence = f"differs in its numbers only from {MAX_ALIKE} pages before it; its links are not followed"
            self._frontier.drop(page, DropReason.TRAP, evidence)
        else:
            self._frontier.keep(page, visit.capture, visit.links, visit.member, visit.likeness)

    def _failed(self, page: Page, visit: Visit) -> None:
        """Try once more, or drop; give up the site when its host answers no more."""
        assert visit.reason is not None
        if visit.alone:
            self._streak.setdefault(page.host, []).append(page)
        else:
            self._streak.pop(page.host, None)
        if visit.transient:
            self._frontier.again(page)
        else:
            self._frontier.drop(page, visit.reason, visit.evidence, visit.links)
        streak = self._streak.get(page.host, [])
        if len(streak) >= MAX_STREAK:
            self._frontier.reopen(streak)
            message = f"source {self._site.name}: {len(streak)} requests in a row failed ({visit.evidence}); "
            raise SourceError(page.url, message + "start again to go on with the crawl")

    async def _read_sitemaps(self, visitors: _Visitors) -> None:
        """Make known what the sitemaps of the start pages' hosts name; once a crawl, however often it is killed."""
        if not self._site.sitemaps or self._frontier.counted("sitemaps_read"):
            return
        starts = {urlsplit(url).netloc: url for url in self._site.start_urls()}
        todo = [sitemap for url in starts.values() for sitemap in await visitors.at(url).sitemaps_of(url)]
        seen: set[str] = set()
        while todo and len(seen) < sitemaps.MAX_FILES:
            try:
                url = canonical_url(todo.pop(0))
            except ValueError:
                continue
            if url in seen or urlsplit(url).netloc not in self._hosts:
                continue
            seen.add(url)
            pages, more = await visitors.at(url).sitemap(url)
            found = self._site.pages_of(pages)
            self._frontier.add(found, depth=1)
            self._frontier.count("in_sitemaps", len(found))
            todo += more[: sitemaps.MAX_FILES]
        self._frontier.count("sitemaps_read", 1)


class _Visitors:
    """The visitors of a site; a host is always the same one's."""

    def __init__(self, spec: BuildSpec, site: Site, forgotten: frozenset[str], hosts: int) -> None:
        ray = sys.modules.get("ray")
        self._ray: Any = ray if hosts > 1 and ray is not None and ray.is_initialized() else None
        if self._ray is None:
            self._all: list[Any] = [Visitor(spec, site, forgotten)]
            return
        actor = self._ray.remote(Visitor).options(
            num_cpus=0, max_restarts=3, max_task_retries=3, scheduling_strategy="SPREAD", max_concurrency=1000
        )
        known = self._ray.put(forgotten)
        self._all = [actor.remote(spec, site, known) for _ in range(min(hosts, MAX_ACTORS))]

    def at(self, url: str) -> Any:
        """The visitor of a URL's host, to be awaited wherever it runs."""
        visitor = self._all[zlib.crc32(urlsplit(url).netloc.encode()) % len(self._all)]
        return visitor if self._ray is None else _Remote(visitor)

    async def visit(self, page: Page, earlier: Any) -> Visit:
        found: Visit = await self.at(page.url).visit(page, earlier)
        return found

    async def close(self) -> None:
        for visitor in self._all:
            if self._ray is None:
                await visitor.close()
            else:
                self._ray.kill(visitor)


class _Remote:
    """An actor whose methods are called as those of the object are."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def __getattr__(self, name: str) -> Any:
        return getattr(self._actor, name).remote
