"""What a crawl reads in a page: links, meta tags, and the likeness that tells traps."""

from __future__ import annotations

import pytest

from pipeline.pages.bounds import PageRefused
from pipeline.sources.site import Site
from pipeline.web import readers
from pipeline.web.readers import links_of, read_markup

URL = "http://a.cn/d/page.html"


def hrefs(html: str) -> list[str]:
    return read_markup(html.encode(), "text/html; charset=utf-8", URL).hrefs


@pytest.mark.parametrize(
    ("base", "link"),
    [
        ("", "http://a.cn/d/x.html"),
        ('<base href="/e/">', "http://a.cn/e/x.html"),
        ('<base href="http://b.cn/">', "http://b.cn/x.html"),
        ('<base href="">', "http://a.cn/d/x.html"),
        ('<base href="http://[broken">', "http://a.cn/d/x.html"),
    ],
)
def test_links_start_from_the_base_that_the_page_names(base, link):
    assert hrefs(f"<head>{base}</head><a href=' x.html '>") == [link]


def test_frames_and_areas_are_links_and_what_cannot_be_read_is_none():
    page = "<a href=1.html><area href=.\\2.html><iframe src=3.html></iframe><a href='http://[x'><a href=''>"
    assert hrefs(page) == [f"http://a.cn/d/{n}.html" for n in (1, 2, 3)] + [URL]


@pytest.mark.parametrize("content", ["0; url=首頁.html", "5;URL='首頁.html'", "0 , 首頁.html"])
def test_a_page_that_sends_browsers_elsewhere_links_there(content):
    assert hrefs(f'<meta charset=utf-8><meta http-equiv=Refresh content="{content}">') == ["http://a.cn/d/首頁.html"]
    assert hrefs("<meta http-equiv=refresh content=300>") == []


def test_meta_tags_that_speak_to_us_are_read():
    head = "<meta name=Robots content=noai><meta name=wenlan content=noml><meta name=googlebot content=noindex>"
    markup = read_markup(f"{head}<meta name=TDM-Reservation content=1>".encode(), "", URL)
    assert (markup.robots, markup.reserved) == (["noai", "noml"], True)
    assert not read_markup(b"<meta name=tdm-reservation content=0>", "", URL).reserved


def test_pages_that_differ_in_their_numbers_only_are_alike():
    def likeness(html: str) -> str:
        return read_markup(html.encode(), "text/html; charset=utf-8", URL).likeness

    assert likeness("<p>2024 年 三 月 5 日</p>") == likeness("<p>1999 年 十二 月 31 日</p>")
    assert likeness("<p>第1页</p><img src=a.jpg>") != likeness("<p>第1页</p><img src=b.jpg>")
    assert likeness("<p>红烧肉</p>") != likeness("<p>红烧鱼</p>")


def test_only_addresses_that_may_be_pages_of_the_site_are_followed_each_once():
    site = Site(name="s", source_kind="news", start=["http://a.cn/"])
    deep = "http://a.cn" + "/x" * 30 + "/"
    written = ["http://a.cn/1#top", "http://A.cn/1", "http://b.cn/2", "mailto:x@a.cn", "http://a.cn/3.jpg", deep]
    assert links_of(written, site) == (["http://a.cn/1"], 1)


def test_the_first_addresses_of_a_page_are_looked_at_and_no_more(monkeypatch):
    monkeypatch.setattr(readers, "MAX_LINKS", 3)
    site = Site(name="s", source_kind="news", start=["http://a.cn/"])
    written = ["http://a.cn/1", "ftp://a.cn/", "http://a.cn/1", "http://a.cn/3", "http://a.cn/4", "http://a.cn/1"]
    assert links_of(written, site) == (["http://a.cn/1", "http://a.cn/3"], 0)
    long = "x" * (readers.MAX_HREF + 1)
    assert hrefs(f"<base href='/{long}'><a href=/{long}><a href=b>") == ["http://a.cn/d/b"]


def test_a_page_beyond_the_bounds_is_refused():
    with pytest.raises(PageRefused):
        hrefs("<div>" * 200_000)
