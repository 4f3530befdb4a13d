"""site: a web site, crawled page by page into a WARC (`pipeline.stages.crawl`).

The site is the hosts of its start pages (and `hosts`), below the path prefixes of `within`. A host is a name, with its
port unless that is the scheme's default: `http://a.cn` and `https://a.cn` are one host, `http://a.cn:8080` is another.
Pages are discovered by links and by the sitemaps that robots.txt names, else by /sitemap.xml.

Thresholds: the limits of a crawl are ours; robots.txt and `egress.delay_s` decide how fast it goes.

Limits: `www.a.cn` and `a.cn` are two hosts; name both.
"""

from __future__ import annotations

import re
import string
from dataclasses import replace
from functools import cached_property
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from pydantic import ConfigDict, Field, field_validator

from pipeline.sources import PageSource
from pipeline.sources._look import Budget, Count, Look
from pipeline.urls import canonical_url, is_endless, without_session


class Site(PageSource):
    """A site to crawl. Its WARC is the crawl stage's record of the partition with the source's name."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"start": ["https://news.example.org/"], "max_pages": 10000}]}
    )

    start: tuple[str, ...] = Field(min_length=1, description="URLs to start the crawl from")
    hosts: tuple[str, ...] = Field((), description="further hosts of the site, as name or name:port")
    within: tuple[str, ...] = Field((), description="path prefixes to stay below, e.g. /zh-CN/; none: the whole host")
    exclude: tuple[str, ...] = Field((), description="regular expressions; pages with a matching URL are skipped")
    max_pages: int = Field(10_000, gt=0, description="maximum number of pages")
    max_depth: int = Field(20, ge=0, description="maximum number of links away from a start page")
    max_bytes: int = Field(20_000_000_000, gt=0, description="maximum bytes of pages, uncompressed")
    max_hours: float = Field(72.0, gt=0, description="maximum hours of the crawl; the remaining pages are skipped")
    max_pages_per_host: int = Field(0, ge=0, description="maximum number of pages per host; 0: no limit")
    max_bytes_per_host: int = Field(0, ge=0, description="maximum bytes of pages per host; 0: no limit")
    max_hours_per_host: float = Field(0.0, ge=0, description="maximum hours per host in one run; 0: no limit")
    sitemaps: bool = Field(True, description="add the pages of the sitemaps in robots.txt, or else of /sitemap.xml")

    @field_validator("start")
    @classmethod
    def _starts_are_web_addresses(cls, start: tuple[str, ...]) -> tuple[str, ...]:
        for url in start:
            try:
                canonical_url(url)
            except ValueError as e:
                raise ValueError(f"{url!r}: {e}") from None
        return start

    @field_validator("within")
    @classmethod
    def _prefixes_are_paths(cls, within: tuple[str, ...]) -> tuple[str, ...]:
        for prefix in within:
            if not prefix.startswith("/"):
                raise ValueError(f"{prefix!r} is not a path: it must start with /")
        return within

    @field_validator("exclude")
    @classmethod
    def _patterns_compile(cls, exclude: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in exclude:
            try:
                re.compile(pattern)
            except re.error as e:
                raise ValueError(f"invalid regular expression {pattern!r}: {e}") from None
        return exclude

    def start_urls(self) -> list[str]:
        """The start pages' canonical addresses, each once, in the spec's order."""
        return list(dict.fromkeys(canonical_url(url) for url in self.start))

    def all_hosts(self) -> list[str]:
        """The hosts of the site, sorted."""
        return sorted(self._scope[1])

    def pages_of(self, urls: list[str]) -> list[str]:
        """The addresses of a sitemap that are pages of the site: canonical, each once."""
        pages: dict[str, None] = {}
        for url in urls:
            try:
                clean = without_session(canonical_url(url))
            except ValueError:
                continue
            if self.holds(clean) and not is_endless(clean):
                pages[clean] = None
        return list(pages)

    @cached_property
    def _scope(self) -> tuple[frozenset[str], frozenset[str]]:
        """(start pages, hosts), cached: every link of every page is compared with them."""
        starts = frozenset(self.start_urls())
        return starts, frozenset(urlsplit(start).netloc for start in starts) | {_canonical_host(h) for h in self.hosts}

    @cached_property
    def _prefixes(self) -> tuple[str, ...]:
        """`within` as canonical addresses have it: /新闻/ is /%E6%96%B0%E9%97%BB/."""
        return tuple(quote(prefix, safe=string.punctuation) for prefix in self.within)

    @cached_property
    def _excluded(self) -> tuple[tuple[re.Pattern[str], bool], ...]:
        """Patterns of `exclude`, and whether each is for an address without escapes: one that names 专题 is."""
        return tuple((re.compile(pattern), not pattern.isascii()) for pattern in self.exclude)

    def holds(self, url: str) -> bool:
        """True if a page belongs to the site. `url` must be canonical."""
        starts, hosts = self._scope
        if url in starts:
            return True
        parts = urlsplit(url)
        if parts.netloc not in hosts:
            return False
        if self.within and not (parts.path or "/").startswith(self._prefixes):
            return False
        return not any(pattern.search(unquote(url) if is_plain else url) for pattern, is_plain in self._excluded)

    def look(self, budget: Budget) -> Look:
        """Its start pages, and how far the crawl may go. What the web answers is asked by `pipeline.web.probe`."""
        hosts, starts = self.all_hosts(), self.start_urls()
        limits = f"{self.max_hours:g} hours, {self.max_depth} links away from a start page"
        counts = (Count("start pages", len(starts)), Count("hosts", len(hosts)))
        facts = (("at most", f"{self.max_pages:,} pages, {limits}"), ("hosts", ", ".join(hosts[:5])))
        outside = [host for host in self.hosts if "/" in host]
        warnings = tuple(f"hosts: {host!r} must be a host name with an optional port, not a URL" for host in outside)
        look = Look(counts, pages=self.max_pages, facts=facts, warnings=warnings)
        return replace(look, start_urls=tuple(starts), hosts=tuple((host, 1 / len(hosts)) for host in hosts))

    def token(self) -> Any:
        """Nothing: the pages of a crawl are known to the crawl stage alone, which is an input of extract."""
        return []


def _canonical_host(host: str) -> str:
    """Returns a host of the spec in canonical form, in IDNA and without a default port; unchanged if invalid."""
    scheme = "https" if host.endswith(":443") else "http"
    try:
        return urlsplit(canonical_url(f"{scheme}://{host}")).netloc
    except ValueError:
        return host.lower()
