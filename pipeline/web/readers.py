"""Reads pages and sitemaps for a crawl without ever holding up its event loop.

Tiny pages are read in the loop: that takes less than handing them over. All others go to child processes with limits
(`pipeline.processes.confined`), which run beside the loop: threads would not do, since a parser in C cannot be ended,
and what is written in Python, or runs one long regular expression, keeps the other threads waiting. A page over the
limits raises `OverLimit`; its child is replaced.

Limits: CHILDREN pages at a time, in the order in which they come. Tiny pages never wait.

Of a page a crawl uses its links, permissions in its meta tags, and a digest that detects traps. Parsing is lexbor's,
within the bounds of `pipeline.pages.bounds`; nothing here asks the network. Texts and images of a page are read by
`pipeline.pages`. Of the addresses that a page links to, the first MAX_LINKS are looked at.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar
from urllib.parse import urljoin, urlsplit

from pipeline.pages import bounds
from pipeline.pages.bounds import TINY_CHARACTERS, is_tiny
from pipeline.processes.confined import Confined
from pipeline.rows.records import Capture
from pipeline.sources.site import Site
from pipeline.texts import charset
from pipeline.texts.charset import decode
from pipeline.urls import canonical_url, is_endless, with_slashes, without_session
from pipeline.web import policy, sitemaps

CHILDREN = max(2, min(4, os.cpu_count() or 1))
"""Pages read at a time."""

SITEMAP_SECONDS, SITEMAP_MEMORY = 10.0, 1_500_000_000
"""Limits of a sitemap: ten times as large as a page may be, it takes up to two seconds and 500 MB."""

T = TypeVar("T")


class Readers:
    """Reads pages and sitemaps of one site. Used from one event loop."""

    def __init__(self, site: Site) -> None:
        self._site = site
        page = Capture("http://a.cn/", 200, "", "text/html", b"<meta name=robots><a href=/b>c</a><img src=d>")
        self._pages = _Pool(read_page, (page, (), site), CHILDREN)
        limits = {"seconds": SITEMAP_SECONDS, "memory": SITEMAP_MEMORY}
        self._sitemaps = _Pool(sitemaps.read, (b"<urlset/>", sitemaps.MAX_BYTES, site), 1, **limits)

    async def page(self, capture: Capture, headers: policy.Headers) -> PageParts:
        """`read_page` of one page. Raises OverLimit."""
        arguments = (capture, tuple(headers), self._site)
        if _is_tiny(capture):
            return read_page(*arguments)
        return await self._pages(*arguments)

    async def sitemap(self, body: bytes) -> tuple[list[str], list[str]]:
        """`sitemaps.read` of one file. Raises OverLimit."""
        arguments = (body, sitemaps.MAX_BYTES, self._site)
        if len(body) <= TINY_CHARACTERS and not body.startswith(sitemaps.GZIP):
            return sitemaps.read(*arguments)
        return await self._sitemaps(*arguments)

    async def close(self) -> None:
        self._pages.close()
        self._sitemaps.close()


def _is_tiny(capture: Capture) -> bool:
    """True if a page is tiny in the charset in which it will be read."""
    if len(capture.body) > TINY_CHARACTERS:
        return False
    decoded = decode(capture.body, capture.content_type)
    return is_tiny(decoded[0] if decoded else capture.body.decode("latin-1"))


class _Pool(Generic[T]):
    """Up to `size` children that run one function; each is started when it is first needed."""

    def __init__(self, function: Callable[..., T], example: tuple[Any, ...], size: int, **limits: Any) -> None:
        self._start_child: Callable[[], Confined[T]] = functools.partial(Confined, function, example, **limits)
        self._slots = asyncio.Semaphore(size)
        self._children: list[Confined[T]] = []
        self._idle: list[Confined[T]] = []

    async def __call__(self, *arguments: Any) -> T:
        async with self._slots:
            if not self._idle:
                self._children.append(self._start_child())
                self._idle.append(self._children[-1])
            child = self._idle.pop()
            try:
                return await asyncio.to_thread(child, *arguments)
            except asyncio.CancelledError:  # its thread waits on: the answer would be taken for the next page's
                self._children.remove(child)
                child.close()
                child = self._start_child()
                self._children.append(child)
                raise
            finally:
                self._idle.append(child)

    def close(self) -> None:
        for child in self._children:
            child.close()


_NO_PAGE = re.compile(
    r"\.(7z|avi|bmp|bz2|css|csv|docx?|eot|epub|exe|flv|gif|gz|ico|iso|jpe?g|js|json|m4[av]|midi?|mov|mp[34]|mpe?g|og[agv]"
    r"|otf|pdf|png|pptx?|ps|rar|rss|svg|swf|tar|tgz|tiff?|ttf|txt|wav|web[mp]|wm[av]|woff2?|xlsx?|xml|zip)$",
    re.IGNORECASE,
)
"""Paths of what is not a page; links to it are not followed."""

_NUMBERS = re.compile(r"[\d\s零〇一二三四五六七八九十]+")

_REFRESH = re.compile(r"""\s*[\d.]+\s*[;,]\s*(?:url\s*=\s*)?["']?([^"']+)""", re.IGNORECASE)
"""Content of a meta tag that sends browsers to another page: a time and an address (HTML Living Standard, 4.2.5.3)."""

MAX_LINKS = 50_000
"""Different addresses that are looked at per page, as in a sitemap. (Indexes of API references have 31,719.)"""

MAX_HREF = 4_096
"""Characters of a link; no address longer than `pipeline.urls.MAX_URL` is taken, and white space is cut."""

LIKENESS_DIGITS = 32


@dataclass(frozen=True, slots=True)
class Markup:
    """Markup of one page: contents of its robots meta tags, whether a meta tag reserves text and data mining, the
    addresses it links to (absolute, as written), its likeness: a digest of all but its numbers, and how many images it
    shows."""

    robots: list[str] = field(default_factory=list)
    reserved: bool = False
    hrefs: list[str] = field(default_factory=list)
    likeness: str = ""
    images: int = 0


@dataclass(frozen=True, slots=True)
class PageParts:
    """The parts of one page that a crawl uses.

    opt_outs: what its owner says against its use, "" for nothing. links: addresses to follow. endless: links that lead
    into an endless path.
    """

    opt_outs: str
    links: tuple[str, ...]
    endless: int
    likeness: str
    images: int = 0


def read_page(capture: Capture, headers: policy.Headers, site: Site) -> PageParts:
    """Read a captured page. headers: those that speak for its owner."""
    markup = read_markup(capture.body, capture.content_type, capture.url)
    links: list[str] = []
    endless = 0
    if policy.follows_links(headers, markup.robots):
        links, endless = links_of(markup.hrefs, site)
    outs = policy.opt_outs(headers, markup.robots, markup.reserved)
    return PageParts(str(outs) if outs else "", tuple(links), endless, markup.likeness, markup.images)


def read_markup(body: bytes, content_type: str, url: str) -> Markup:
    """Parse a page. Bytes in no known charset are read as Latin-1: links are ASCII. Raises PageRefused."""
    decoded = charset.decode(body, content_type)
    tree = bounds.tree_of(decoded[0] if decoded else body.decode("latin-1"))
    metas = [
        ((node.attributes.get("name") or "").strip().lower(), node.attributes.get("content") or "")
        for node in tree.css("meta[name]")
    ]
    base = tree.css_first("base[href]")
    base_href = (base.attributes.get("href") or "").strip() if base else ""
    base_url = (_absolute(url, base_href) if len(base_href) <= MAX_HREF else "") or url
    hrefs = [
        (node.attributes.get("href") or node.attributes.get("src") or "").strip()
        for node in tree.css("a[href], area[href], iframe[src], frame[src]")
    ]
    refreshes = (node.attributes.get("content") or "" for node in tree.css("meta[http-equiv=refresh i]"))
    hrefs += [found[1].strip() for content in refreshes if (found := _REFRESH.match(content[:MAX_HREF]))]
    pictures = [str(node.attributes) for node in tree.css("img")]
    text = tree.body.text() if tree.body is not None else ""
    wording = "\0".join([_NUMBERS.sub("", text), *pictures]).encode("utf-8", "replace")
    return Markup(
        robots=[content for name, content in metas if name in ("robots", policy.AGENT)],
        reserved=any(policy.reserves(content) for name, content in metas if name == "tdm-reservation"),
        hrefs=[joined for href in hrefs if len(href) <= MAX_HREF and (joined := _absolute(base_url, href))],
        likeness=hashlib.sha256(wording).hexdigest()[:LIKENESS_DIGITS],
        images=len(pictures),
    )


def links_of(hrefs: list[str], site: Site) -> tuple[list[str], int]:
    """(addresses of what may be a page of the site, how many more lead into an endless path).

    Addresses are canonical, each once, in the order of the page.
    """
    links: dict[str, None] = {}
    endless = 0
    canonical: dict[str, str] = {}  # of each address as written; "" for one that is not an address
    for href in hrefs:
        url = canonical.get(href)
        if url is None:
            if len(canonical) == MAX_LINKS:
                continue
            try:
                url = without_session(canonical_url(href))
            except ValueError:
                url = ""
            canonical[href] = url
        if not url:
            continue
        if not _NO_PAGE.search(urlsplit(url).path) and site.holds(url) and url not in links:
            if is_endless(url):
                endless += 1
            else:
                links[url] = None
    return list(links), endless


def _absolute(base: str, href: str) -> str:
    """An absolute address; "" for one that cannot be read."""
    try:
        return urljoin(base, with_slashes(href))
    except ValueError:
        return ""
