"""A crawl's pages are read where a slow one cannot stop the others."""

from __future__ import annotations

import asyncio
import gzip

import pytest

from pipeline.processes.confined import OverLimit
from pipeline.rows.records import Capture
from pipeline.sources.site import Site
from pipeline.stages import crawl
from pipeline.web import readers, sitemaps
from pipeline.web.frontier import Frontier
from pipeline.web.readers import Readers
from tests.pipeline.test_unreadable import decisions

pytestmark = pytest.mark.slow

URL = "http://a.cn/d/page.html"

SLOW = ("".join(f"<i a={n}>" for n in range(60)) + "<div>" * 4_900 + "</i>" * 4_900).encode()
"""Takes the parser 8 s, and cannot be told from a page that takes a hundredth of it."""


def site() -> Site:
    return Site(name="s", source_kind="news", start=("http://a.cn/",))


def read(*bodies: bytes, content_type: str = "text/html; charset=utf-8") -> list[readers.PageParts | BaseException]:
    """What readers return or raise of some pages that are read at the same time."""

    async def run() -> list[readers.PageParts | BaseException]:
        readers = Readers(site())
        pages = [Capture(URL, 200, "", content_type, body) for body in bodies]
        try:
            return await asyncio.gather(*(readers.page(page, ()) for page in pages), return_exceptions=True)
        finally:
            await readers.close()

    return asyncio.run(run())


def test_a_page_says_the_same_wherever_it_is_read(monkeypatch):
    charset = "gb18030"
    body = "<meta name=robots content=noai><p>文字<a href=x.html>下一页</a><img src=a.jpg>".encode(charset)
    here = readers.read_page(Capture(URL, 200, "", f"text/html; charset={charset}", body), (), site())
    assert (here.opt_outs, here.links) == ("noai", ("http://a.cn/d/x.html",))
    assert read(body, content_type=f"text/html; charset={charset}") == [here]
    monkeypatch.setattr("pipeline.web.readers.is_tiny", lambda html: False)
    assert read(body, content_type=f"text/html; charset={charset}") == [here]


def test_a_page_over_the_limits_is_ended_and_others_are_read():
    long = b"<a href=x.html>x</a>" + "文".encode() * 20_000
    readings = read(long, SLOW, b"<a href=y.html>", long)
    assert isinstance(readings[1], OverLimit)
    links_of = [reading.links for reading in readings if isinstance(reading, readers.PageParts)]
    assert links_of == [("http://a.cn/d/x.html",), ("http://a.cn/d/y.html",), ("http://a.cn/d/x.html",)]


@pytest.mark.drill(3)
def test_other_hosts_pages_are_asked_for_and_kept_while_a_slow_page_is_read(serve, make_build, monkeypatch):
    """By the order of events: eleven pages that lead to each other are kept before the slow page has an outcome."""
    slow, fast = serve(), serve()
    slow.pages = {"/": SLOW}
    fast.pages = {"/": b"<a href=/0.html>0</a><a href=" + slow.url().encode() + b">s</a>"}
    fast.pages |= {f"/{n}.html": f"<a href=/{n + 1}.html>{chr(0x4E10 + n)}</a>".encode() for n in range(10)}
    events: list[str] = []
    keep, refuse = Frontier.keep, Frontier.refuse
    monkeypatch.setattr(Frontier, "keep", lambda self, page, *a: (events.append(page.url), keep(self, page, *a))[1])
    monkeypatch.setattr(Frontier, "refuse", lambda self, url, *a: (events.append(url), refuse(self, url, *a))[1])
    source = {"kind": "site", "name": "s", "source_kind": "news", "start": [fast.url(), slow.url()]}
    build = make_build(slow, fast, sources=[source])
    crawl.run_partition(build, "s")
    assert slow.asked[-1] == "/"
    assert events == [fast.url(), *(fast.url(f"/{n}.html") for n in range(10)), slow.url()]
    assert sorted(decisions(build, "crawl", "s")) == sorted(
        [
            (fast.url("/10.html"), "http_status", "status 404"),
            (slow.url(), "unreadable", "OverLimit: more than 1.5 s of CPU time"),
        ]
    )


def test_a_sitemap_says_the_same_wherever_it_is_read():
    entries = "".join(f"<url><loc>http://a.cn/{n}</loc></url>" for n in range(1_000))
    body = gzip.compress(f"<urlset>{entries}<sitemap><loc>/b</loc></sitemap></urlset>".encode())

    async def run() -> tuple[list[str], list[str]]:
        readers = Readers(site())
        try:
            return await readers.sitemap(body)
        finally:
            await readers.close()

    assert asyncio.run(run()) == sitemaps.read(body, sitemaps.MAX_BYTES, site())
    assert len(asyncio.run(run())[0]) == 1_000
