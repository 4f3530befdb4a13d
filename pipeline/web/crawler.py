"""The crawler: visits the pages of one site, host by host, and writes the outcome of each visit into the frontier.

The frontier and the limits live here, in one process per site. The visits (`pipeline.web.page_visitor`: requests,
parsing) are spread by host over actors (`pipeline.processes.actors`) where the site has several hosts and there is a
cluster: the pages of one host are always asked for by the same visitor. A failure that may pass is tried again after
all other pages. A visitor whose process dies is started again, its visits with it.

A host that is down for a while costs no page. When its requests have failed MAX_STREAK times in a row, or it has no
page left and the last ones failed, it is asked for its robots.txt. If it answers, the pages that were lost meanwhile
are tried once more; if not, the crawl ends with an error instead of turning pages into Decisions, and the next run goes
on from there. At the end that holds for the hosts of start pages; another host that is still down then is one that the
next crawl asks again.

Limits: one frontier per site, which takes some thousand pages a second.
"""

from __future__ import annotations

import asyncio
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from data_specs.build import BuildSpec
from pipeline.errors import OURS, SourceError, evidence
from pipeline.processes import actors, pulse
from pipeline.processes.observe import count
from pipeline.rows.decisions import DropReason
from pipeline.sources.site import Site
from pipeline.store.takedowns import NO_TAKEDOWNS, Takedowns
from pipeline.urls import canonical_url
from pipeline.web import pauses, sitemaps
from pipeline.web.frontier import Frontier
from pipeline.web.page_visitor import EarlierRecord, Page, Visit, Visitor
from pipeline.web.policy import policy_of

MAX_STREAK = 20
"""Requests in a row without an answer, or with one that says so, after which a host is asked whether it is down."""

MAX_ALIKE = 20
"""Pages of one host that differ in their numbers only: what comes after them is a trap (a calendar, a counter)."""

MAX_ACTORS = 16
"""Visitors per site."""

RESTARTS = 3
"""Restarts of a visitor whose process dies."""

VISITS_AT_ONCE = 1000
"""Visits that run in one visitor at a time; what is asked of one host at a time is a limit of the spec."""


class Crawler:
    """One crawl of one site.

    takedowns: pages and domains that are not asked for.
    """

    def __init__(self, spec: BuildSpec, site: Site, frontier: Frontier, takedowns: Takedowns = NO_TAKEDOWNS) -> None:
        self._spec, self._site, self._frontier, self._takedowns = spec, site, frontier, takedowns
        self._policy, self._hosts = policy_of(spec), site.all_hosts()
        self._in_flight: dict[asyncio.Task[set[str]], Page] = {}
        self._streak: dict[str, list[Page]] = {}  # by host: pages that failed as if it were down, since one did not
        self._second_chance: set[int] = set()  # ids of pages that were lost while their host was down, and tried again
        self._start_times: dict[str, float] = {}

    async def run(self) -> None:
        """Visit pages until none remains or a limit is reached. Raises SourceError when a host is down."""
        visitors = _Visitors(self._spec, self._site, self._takedowns, len(self._hosts))
        try:
            await self._read_sitemaps(visitors)
            hosts = set(self._hosts)  # hosts that may have a page to visit
            while True:
                for host in sorted(hosts):
                    self._start_visits(host, visitors)
                hosts.clear()
                self._show_progress()
                if not self._in_flight:
                    hosts = await self._recovered_hosts(visitors)
                    if not hosts:
                        return
                    continue
                done, _ = await asyncio.wait(self._in_flight, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    page = self._in_flight.pop(task)
                    hosts |= {page.host, *task.result()}
                if not self._in_flight:
                    hosts = set(self._hosts)  # pages in flight count as kept: what they held back may start now
        finally:
            for task in self._in_flight:
                task.cancel()
            await asyncio.gather(*self._in_flight, return_exceptions=True)
            await visitors.close()

    def _show_progress(self) -> None:
        """Pages kept of those that may be: no more than are known, or than the site's limit lets in."""
        frontier = self._frontier
        kept = frontier.kept_pages
        figures = {"failed": frontier.dropped, "images": frontier.images, "bytes": frontier.kept_bytes}
        pulse.tell(kept=kept, queue=frontier.waiting, **figures)
        pulse.expect(max(kept, min(self._site.max_pages, kept + frontier.waiting)), done=kept)

    def _start_visits(self, host: str, visitors: _Visitors) -> None:
        """Begin visits to a host, as many as it may see at once."""
        in_flight = {page.id for page in self._in_flight.values() if page.host == host}
        while len(in_flight) < self._spec.egress.connections_of(host) and not self._limit_reached(host):
            page = self._frontier.next_page(host, in_flight)
            if page is None:
                return
            in_flight.add(page.id)
            self._start_times.setdefault(host, time.monotonic())
            self._in_flight[asyncio.create_task(self._visit(page, visitors))] = page

    def _limit_reached(self, host: str) -> bool:
        """True if a limit is reached: the site's, or the host's own."""
        site, kept = self._site, self._frontier.kept_of(host)
        in_flight = sum(page.host == host for page in self._in_flight.values())
        hours = (time.monotonic() - self._start_times.get(host, time.monotonic())) / 3600
        return (
            self._frontier.kept_pages + len(self._in_flight) >= site.max_pages
            or self._frontier.kept_bytes >= site.max_bytes
            or self._frontier.hours() >= site.max_hours
            or (0 < site.max_pages_per_host <= kept.pages + in_flight)
            or (0 < site.max_bytes_per_host <= kept.bytes)
            or (0 < site.max_hours_per_host <= hours)
        )

    async def _visit(self, page: Page, visitors: _Visitors) -> set[str]:
        """Visit a page and write the outcome; returns the hosts of the pages that became known."""
        if self._policy.too_many_redirects(page.hops):
            self._frontier.drop(page, DropReason.TOO_MANY_REDIRECTS, f"{page.hops} redirects")
            return set()
        visit: Visit | None = None
        with self._drop_on_error(page.url):
            visit = await visitors.visit(page, self._frontier.earlier(page.url))
            await self._apply(page, visit, visitors)
        if visit is None:
            return set()
        if visit.endless:
            self._frontier.count(traps=visit.endless)
        if visit.too_deep:
            self._frontier.note_too_deep(visit.too_deep)
        links = (*visit.links, *([visit.target] if visit.target else []))
        return {link.split("/", 3)[2] for link in links}  # they are canonical; urlsplit takes ten times as long

    @contextmanager
    def _drop_on_error(self, url: str) -> Iterator[None]:
        """Turn what a parser raises on a page or sitemap into its Decision, so that it does not end the crawl."""
        try:
            yield
        except OURS:
            raise
        except Exception as e:
            self._frontier.refuse(url, DropReason.UNREADABLE, evidence(e, url))

    async def _apply(self, page: Page, visit: Visit, visitors: _Visitors) -> None:
        """Write the outcome of a visit into the frontier. Raises SourceError where the site cannot be crawled."""
        fate = visit.reason.value if visit.reason else "kept" if visit.outcome == "unchanged" else visit.outcome
        count("wenlan_requests", host=page.host, fate=fate)
        for pause in visit.pauses:
            pauses.show(pause)
        if visit.outcome == "unreachable":
            raise SourceError(visit.target, f"source {self._site.name}: {visit.evidence}; not crawled")
        if visit.outcome == "dropped":
            await self._retry_or_drop(page, visit, visitors)
            return
        self._streak.pop(page.host, None)
        if visit.outcome == "moved":
            circle = self._frontier.end_of(visit.target) == page.url
            if circle or self._policy.too_many_redirects(page.hops + 1):
                self._frontier.drop(page, DropReason.TOO_MANY_REDIRECTS, f"{visit.status} to {visit.target}")
            else:
                self._frontier.move(page, visit.target, visit.status)
            return
        assert visit.capture is not None
        count("wenlan_received_bytes", len(visit.capture.body) if visit.outcome == "kept" else 0, host=page.host)
        if self._frontier.kept_alike(page.host, visit.likeness) >= MAX_ALIKE:
            evidence = f"its URL differs only in numbers from {MAX_ALIKE} earlier pages; its links are not followed"
            self._frontier.drop(page, DropReason.TRAP, evidence)
        else:
            self._frontier.keep(page, visit.capture, visit.links, visit.member, visit.likeness, visit.images)

    async def _retry_or_drop(self, page: Page, visit: Visit, visitors: _Visitors) -> None:
        """Put a page back for another try, or drop it; raises SourceError when its host is down."""
        assert visit.reason is not None
        if visit.down:
            self._streak.setdefault(page.host, []).append(page)
        else:
            self._streak.pop(page.host, None)
        if visit.retry:
            self._frontier.retry_later(page)
        else:
            self._frontier.drop(page, visit.reason, visit.evidence, visit.links)
        if len(self._streak.get(page.host, ())) >= MAX_STREAK:
            await self._ask_whether_down(page.host, visitors)

    async def _ask_whether_down(self, host: str, visitors: _Visitors) -> bool:
        """Reopen the pages that failed in a row; returns whether there are any. Raises SourceError: it is down.

        A page gets one such chance in a run: one that always fails would else be asked for without end.
        """
        streak = self._streak.pop(host)
        if outage := await visitors.visitor_of(streak[-1].url).outage(streak[-1].url):
            self._frontier.reopen(streak)
            message = (
                f"source {self._site.name}: {len(streak)} requests in a row failed, and the host is down ({outage})"
            )
            raise SourceError(streak[-1].url, f"{message}; run the same command again to resume the crawl")
        dropped = (page for page in streak if self._frontier.fate(page.url)[0] == "dropped")
        lost = [page for page in dropped if page.id not in self._second_chance]
        self._second_chance.update(page.id for page in lost)
        self._frontier.reopen(lost)
        return bool(lost)

    async def _recovered_hosts(self, visitors: _Visitors) -> set[str]:
        """Hosts that were down when their last pages were asked for, and are up again: with those pages to visit."""
        starts = {urlsplit(url).netloc for url in self._site.start_urls()}
        failing = [host for host in self._streak if host in starts and not self._limit_reached(host)]
        return {host for host in failing if await self._ask_whether_down(host, visitors)}

    async def _read_sitemaps(self, visitors: _Visitors) -> None:
        """Add the pages in the sitemaps of the start pages' hosts; once per crawl, however often it is killed."""
        if not self._site.sitemaps or self._frontier.counted("sitemaps_read"):
            return
        starts = {urlsplit(url).netloc: url for url in self._site.start_urls()}
        waiting = [sitemap for url in starts.values() for sitemap in await visitors.visitor_of(url).sitemaps_of(url)]
        seen: set[str] = set()
        listed = 0
        while waiting and len(seen) < sitemaps.MAX_FILES:
            try:
                url = canonical_url(waiting.pop(0))
            except ValueError:
                continue
            if url in seen or urlsplit(url).netloc not in self._hosts:
                continue
            seen.add(url)
            with self._drop_on_error(url):
                pages, further = await visitors.visitor_of(url).sitemap(url)
                self._frontier.add(pages, depth=1)
                listed += len(pages)
                waiting += further[: sitemaps.MAX_FILES]
        self._frontier.count(sitemaps_read=1, in_sitemaps=listed)  # at once: a crawl that is killed reads them again


class _Visitors:
    """The visitors of a site: one, or on a cluster up to MAX_ACTORS. A host is always the same visitor's."""

    def __init__(self, spec: BuildSpec, site: Site, takedowns: Takedowns, hosts: int) -> None:
        count = min(hosts, MAX_ACTORS) if actors.on_cluster() else 1
        self._visitors = actors.Actors(
            Visitor, [(spec, site, takedowns)] * count, restarts=RESTARTS, concurrency=VISITS_AT_ONCE
        )

    def visitor_of(self, url: str) -> Visitor:
        """The visitor of a URL's host; its methods are awaited wherever it runs."""
        return self._visitors.awaited(zlib.crc32(urlsplit(url).netloc.encode()) % len(self._visitors))

    async def visit(self, page: Page, earlier: EarlierRecord | None) -> Visit:
        return await self.visitor_of(page.url).visit(page, earlier)

    async def close(self) -> None:
        if not self._visitors.remote:
            await self._visitors.awaited(0).close()
        self._visitors.close()
