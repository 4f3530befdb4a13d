"""Sitemaps as sites have them: in Chinese charsets, damaged, and hostile."""

from __future__ import annotations

import gzip
import tracemalloc

import pytest

from pipeline.web import sitemaps


def sitemap(*urls: str, charset: str = "utf-8") -> bytes:
    entries = "".join(f"<url><loc>{url}</loc></url>" for url in urls)
    return f"<?xml version='1.0' encoding='{charset}'?>\n<urlset>{entries}</urlset>".encode(charset)


@pytest.mark.parametrize("charset", ["gb2312", "GBK", "gb18030", "big5", "euc-jp", "shift_jis", "iso-8859-1"])
def test_a_sitemap_is_read_in_the_charset_that_it_declares(charset):
    urls = ["http://a.test/", "http://a.test/caf" if charset == "iso-8859-1" else "http://a.test/中文"]
    assert sitemaps.parse(sitemap(*urls, charset=charset)) == (urls, [])


def test_an_unknown_charset_is_read_as_utf8():
    body = "<?xml version='1.0' encoding='x-none'?><urlset><url><loc>http://a.test/中</loc></url></urlset>".encode()
    assert sitemaps.parse(body) == (["http://a.test/中"], [])


@pytest.mark.parametrize("charset", ["gb2312", "utf-7", "idna", "undefined", "x" * 5_000])
@pytest.mark.parametrize("spaces", [3_000])
def test_a_declaration_of_any_length_is_no_fault(charset, spaces):
    declared = f"<?xml version='1.0'{' ' * spaces}encoding='{charset}'?>"
    body = f"{declared}<urlset><url><loc>http://a.test/</loc></url></urlset>"
    assert sitemaps.parse(body.encode()) in ((["http://a.test/"], []), ([], []))


def test_of_a_damaged_file_the_entries_before_the_damage_are_read():
    assert sitemaps.parse(sitemap("http://a.test/", "http://a.test/b")[:-20]) == (["http://a.test/"], [])


@pytest.mark.parametrize("charset", ["utf-8", "utf-16", "utf-16-le", "utf-16-be"])
def test_a_file_that_declares_entities_is_refused_in_any_charset(charset):
    body = "<?xml version='1.0' encoding='utf-16'?>" if charset.startswith("utf-16") else ""
    entry = "<urlset><url><loc>http://a.test/{}</loc></url></urlset>"
    body += "<!DOCTYPE urlset [<!ENTITY a 'b'>]>" + entry.format("&a;")
    assert sitemaps.parse(body.encode(charset)) == ([], [])


def nested(depth: int) -> bytes:
    return b"<urlset><url><loc>http://a.test/</loc></url>" + b"<a>" * depth


@pytest.mark.slow
@pytest.mark.parametrize(
    "body",
    [
        nested(5_000_000),
        b"<urlset><url><loc>http://a.test/</loc></url>" + b"<a/>" * 1_000_000,
        b"<urlset><url><loc>http://a.test/</loc></url>"
        + b"<a "
        + b" ".join(b"a%d=''" % i for i in range(500_000))
        + b">",
    ],
    ids=["deep", "wide", "attributes"],
)
def test_a_hostile_sitemap_costs_little_memory(body, monkeypatch):
    """What a file of some kilobytes of gzip unpacks to must not become a tree of gigabytes."""
    monkeypatch.setattr(sitemaps, "MAX_NODES", 100_000)  # memory is counted here, which is slow
    packed = gzip.compress(body, 1)
    tracemalloc.start()
    try:
        pages, further = sitemaps.parse(packed)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (len(pages) <= 1, further) == (True, [])
    assert peak < 4 * len(body) + 50_000_000


def test_an_unknown_encoding_is_no_entry():
    name = b"U" + 100 * b"F" + b"-8"  # longer than the declarations that are read here
    body = b'<?xml version="1.0" encoding="' + name + b'"?><urlset><url><loc>http://a.cn/1</loc></url></urlset>'
    assert sitemaps.parse(body) == ([], [])
