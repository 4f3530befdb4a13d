"""Reads pages and sitemaps for a crawl without ever holding up its event loop.

Tiny pages are read in the loop: that takes less than handing them over. All others go to child processes with limits
(`pipeline.confined`), which run beside the loop: threads would not do, since a parser in C cannot be ended, and what is
written in Python, or runs one long regular expression, keeps the other threads waiting. A page over the limits raises
`OverLimit`; its child is replaced.

Limits: CHILDREN pages at a time, in the order in which they come. Tiny pages never wait.
"""

from __future__ import annotations

import asyncio
import functools
import os
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from pipeline.confined import Confined
from pipeline.pages.bounds import TINY_CHARACTERS, is_tiny
from pipeline.records import Capture
from pipeline.sources.site import Site
from pipeline.texts.charset import decode
from pipeline.web import links, policy, sitemaps
from pipeline.web.links import Reading

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
        self._pages = _Pool(links.read_page, (page, (), site), CHILDREN)
        limits = {"seconds": SITEMAP_SECONDS, "memory": SITEMAP_MEMORY}
        self._sitemaps = _Pool(sitemaps.read, (b"<urlset/>", sitemaps.MAX_BYTES, site), 1, **limits)

    async def page(self, capture: Capture, headers: policy.Headers) -> Reading:
        """`links.read_page` of one page. Raises OverLimit."""
        arguments = (capture, tuple(headers), self._site)
        if _is_tiny(capture):
            return links.read_page(*arguments)
        return await self._pages(*arguments)

    async def sitemap(self, body: bytes) -> tuple[list[str], list[str]]:
        """`sitemaps.read` of one file. Raises OverLimit."""
        arguments = (body, sitemaps.MAX_BYTES, self._site)
        if len(body) <= TINY_CHARACTERS and not body.startswith(sitemaps.GZIP):
            return sitemaps.read(*arguments)
        return await self._sitemaps(*arguments)

    async def close(self) -> None:
        """End the children."""
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
        self._new: Callable[[], Confined[T]] = functools.partial(Confined, function, example, **limits)
        self._turns = asyncio.Semaphore(size)
        self._children: list[Confined[T]] = []
        self._idle: list[Confined[T]] = []

    async def __call__(self, *arguments: Any) -> T:
        async with self._turns:
            if not self._idle:
                self._children.append(self._new())
                self._idle.append(self._children[-1])
            child = self._idle.pop()
            try:
                return await asyncio.to_thread(child, *arguments)
            except asyncio.CancelledError:  # its thread waits on: the answer would be taken for the next page's
                self._children.remove(child)
                child.close()
                child = self._new()
                self._children.append(child)
                raise
            finally:
                self._idle.append(child)

    def close(self) -> None:
        for child in self._children:
            child.close()
