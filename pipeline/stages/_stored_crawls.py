"""The pages of a site from all crawls that a new generation reuses, for stage `extract`.

Crawls are read whole, the newest first, each as the build that made it read it: what stands on many pages of one crawl
is furniture of the site. A page counts with its newest capture: its texts, and what is wrong with it. An older capture
adds the images that no newer one of its page shows, unless the owner has opted out since. Pages that the site's
`start`, `hosts`, `within` and `exclude` leave out today are left out.

Limits: a site's candidates of all crawls are in memory, each once; `max_pages` and its like are not applied again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from pipeline.rows.decisions import Decision, DropReason, drop_capture
from pipeline.rows.records import OPT_OUTS, Candidate
from pipeline.sources.site import Site
from pipeline.store.build import Build
from pipeline.store.commits import Record

ReadCrawl = Callable[[Record, Counter[str]], tuple[list[Candidate], list[Decision]]]
"""Reads one crawl: its candidates and decisions; counts pages."""


class StoredCrawls:
    """Candidates and decisions of a site over several crawls, given oldest first."""

    def __init__(
        self, build: Build, site: Site, crawls: Sequence[Record], read: ReadCrawl, tally: Counter[str]
    ) -> None:
        self._stage, self._site, self._read, self._tally = build.stage("crawl"), site, read, tally
        self._candidates: dict[str, Candidate] = {}
        self._decisions: list[Decision] = []
        self.first_snapshot: dict[str, str] = {}
        """The oldest snapshot that shows a candidate, by its id."""
        self._known_pages: set[str] = set()  # captured by newer crawls
        self._opted_out: set[str] = set()  # whose owner opted out in a newer crawl
        for record in reversed(crawls):
            self._add(record)

    def candidates(self) -> list[Candidate]:
        return list(self._candidates.values())

    def decisions(self) -> list[Decision]:
        """Decisions, except on what is a candidate in another crawl."""
        return [decision for decision in self._decisions if decision.id not in self._candidates]

    def _add(self, record: Record) -> None:
        counts = Counter[str]()
        if OPT_OUTS in record.files:
            self._opted_out.update(set(self._column(record, OPT_OUTS)) - self._known_pages)
        pages = {url for url in self._column(record, "parquet") if self._site.holds(url)}
        opted_out = [
            drop_capture(url, self._site.name, "extract", DropReason.OPT_OUT, "its owner opted out in a later crawl")
            for url in sorted((pages & self._opted_out) - self._known_pages)
        ]
        candidates, decisions = self._read(record, counts)
        for candidate in candidates:
            if candidate.page_url in pages and candidate.page_url not in self._opted_out:
                self._candidates.setdefault(candidate.candidate_id, candidate)
                self.first_snapshot[candidate.candidate_id] = record.info["snapshot"]  # the oldest comes last
        new = pages - self._known_pages
        new_decisions = [d for d in decisions if d.page_url in new and d.page_url not in self._opted_out] + opted_out
        self._opted_out.update(d.page_url for d in new_decisions if d.reason == DropReason.OPT_OUT.value)
        self._decisions += new_decisions
        self._tally["pages_dropped"] += sum(decision.subject == "capture" for decision in new_decisions)
        self._tally["pages"] += len(new)
        self._tally["captures"] += counts["pages"]
        self._known_pages |= pages

    def _column(self, record: Record, suffix: str) -> list[str]:
        urls: list[str] = self._stage.column(record, suffix, "url").to_pylist()
        return urls
