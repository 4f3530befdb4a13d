"""page_visitor: what a page and its host say is obeyed, and each failure has its reason."""

from __future__ import annotations

import gzip
import socket
import time
from dataclasses import replace

import pytest

from pipeline.errors import SourceError
from pipeline.rows.records import sha256_hex
from pipeline.stages import crawl
from pipeline.store.commits import DECISIONS
from pipeline.store.takedowns import domain_hashes
from pipeline.web import policy
from tests.crawled import html, run, site, take_down


def test_what_a_page_says_of_itself_is_obeyed(serve, make_build):
    web = serve()
    web.pages = {
        "/robots.txt": (200, {"Content-Type": "text/plain"}, b"User-agent: *\nDisallow: /private/\n"),
        "/": html("/noai.html", "/header.html", "/private/x.html", "/nofollow.html"),
        "/noai.html": html("/behind.html", head='<meta name="ROBOTS" content="noai, noimageai">'),
        "/header.html": (200, {"X-Robots-Tag": "noindex, max-image-preview:large"}, html()),
        "/behind.html": html(),
        "/nofollow.html": html("/never.html", head='<meta name=robots content="nofollow">'),
        "/never.html": html(),
    }
    _, bodies, reasons = run(make_build(web, sources=site(web.url())))
    assert set(bodies) == {web.url(p) for p in ("/", "/behind.html", "/nofollow.html")}
    assert reasons == {
        web.url("/noai.html"): "opt_out",
        web.url("/header.html"): "opt_out",
        web.url("/private/x.html"): "robots_disallowed",
    }
    assert not {"/private/x.html", "/never.html"} & set(web.asked)


@pytest.mark.slow
def test_each_page_that_fails_is_told_with_its_reason(serve, make_build, monkeypatch):
    monkeypatch.setattr(policy, "BACKOFF_S", 0.02)  # else the one host rests for 20 s after all these failures

    def endless(handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", "text/html")
        handler.end_headers()
        while True:
            handler.wfile.write(b"x" * 65536)

    def hang_up(handler) -> None:
        handler.connection.shutdown(socket.SHUT_RDWR)

    bomb = gzip.compress(b"0" * 30_000_000)
    inside = serve({"/secret.html": html()})
    web = serve()
    failing = {
        "/gone.html": ((404, {}, b""), "http_status"),
        "/broken.html": ((500, {}, b""), "http_status"),
        "/early.html": ((425, {}, b""), "http_status"),
        "/picture": ((200, {"Content-Type": "image/png"}, b"x"), "not_html"),
        "/untyped": ((200, {"Content-Type": ""}, b"%PDF-1.7"), "not_html"),
        "/endless.html": (endless, "too_large"),
        "/bomb.html": ((200, {"Content-Encoding": "gzip"}, bomb), "too_large"),
        "/damaged.html": ((200, {"Content-Encoding": "gzip"}, b"\xff" * 99), "bad_response"),
        "/hangup.html": (hang_up, "connection"),
        "/out.html": ((302, {"Location": inside.url("/secret.html")}, b""), "http_status"),
        "/file.html": ((302, {"Location": "file:///etc/passwd"}, b""), "http_status"),
        "/loop.html": ((302, {"Location": "/loop.html"}, b""), "too_many_redirects"),
    }
    web.pages = {"/": html(*failing), **{path: page for path, (page, _) in failing.items()}}
    limits = {"max_page_bytes": 200_000}
    _, bodies, reasons = run(make_build(web, inside, sources=site(web.url()), egress=limits))
    assert reasons == {web.url(path): reason for path, (_, reason) in failing.items()}
    assert list(bodies) == [web.url()]
    assert inside.asked == []
    assert web.asked.count("/broken.html") == web.asked.count("/early.html") == policy.TRIES
    assert web.asked.count("/gone.html") == 1


def test_a_page_without_a_content_type_is_one_by_how_it_begins(serve, make_build):
    web = serve({"/": html("/untyped"), "/untyped": (200, {"Content-Type": ""}, html("/"))})
    _, bodies, reasons = run(make_build(web, sources=site(web.url())))
    assert bodies == {web.url(): web.pages["/"], web.url("/untyped"): html("/")}
    assert reasons == {}


def test_a_page_that_comes_on_the_second_try_is_kept(serve, make_build):
    def moody(handler) -> None:
        if handler.web.asked.count("/moody.html") == 1:
            handler.send_error(503)
        else:
            handler.send_response(200)
            handler.send_header("Content-Type", "text/html")
            handler.send_header("Content-Length", "2")
            handler.end_headers()
            handler.wfile.write(b"ok")

    web = serve({"/": html("/moody.html"), "/moody.html": moody})
    _, bodies, reasons = run(make_build(web, sources=site(web.url())))
    assert bodies[web.url("/moody.html")] == b"ok"
    assert reasons == {}


@pytest.mark.slow
def test_retry_after_is_obeyed(serve, make_build):
    when: list[float] = []

    def busy(handler) -> None:
        when.append(time.monotonic())
        handler.send_response(429 if len(when) == 1 else 404)
        handler.send_header("Retry-After", "2")
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    web = serve({"/": html("/busy.html", "/other.html"), "/busy.html": busy, "/other.html": html()})
    _, _, reasons = run(make_build(web, sources=site(web.url())))
    assert reasons == {web.url("/busy.html"): "http_status"}
    assert when[1] - when[0] >= 1.9


def test_redirects_lead_on_within_the_site_and_are_counted(serve, make_build):
    web = serve({"/": (301, {"Location": "/home.html"}, b""), "/home.html": html("/", "/old.html")})
    web.pages["/old.html"] = (302, {"Location": "/home.html"}, b"")
    counts, bodies, reasons = run(make_build(web, sources=site(web.url())))
    assert list(bodies) == [web.url("/home.html")]
    assert reasons == {}
    assert counts["redirects"] == 2


@pytest.mark.parametrize("status", [500, 503])
def test_robots_that_cannot_be_read_forbid_everything(serve, make_build, status):
    web = serve({"/": html(), "/robots.txt": (status, {}, b"")})
    with pytest.raises(SourceError, match=f"robots.txt.*{status}"):
        crawl.run_partition(make_build(web, sources=site(web.url())), "s")
    assert "/" not in web.asked
    counts, _, _ = run(make_build(web, out="bold", sources=site(web.url()), egress={"obey_robots": False}))
    assert counts["kept"] == 1


def conditional(etag: str, body: bytes):
    """A page that answers 304 to who knows its ETag."""

    def page(handler) -> None:
        same = handler.headers.get("If-None-Match") == etag
        handler.send_response(304 if same else 200)
        for name, value in {
            "Content-Type": "text/html",
            "ETag": etag,
            "Content-Length": "0" if same else len(body),
        }.items():
            handler.send_header(name, str(value))
        handler.end_headers()
        handler.wfile.write(b"" if same else body)

    return page


@pytest.mark.slow
def test_the_next_crawl_fetches_only_what_has_changed_and_its_warc_is_whole(serve, make_build, tmp_path):
    web = serve({"/": conditional('"1"', html("/a.html", "/b.html", "/c.html"))})
    web.pages |= {"/a.html": conditional('"a"', html("/deep.html")), "/b.html": html(text="甲")}
    web.pages |= {"/c.html": conditional('"c"', html(text="乙")), "/deep.html": conditional('"d"', html(text="丙"))}
    first = make_build(web, out="one", sources=site(web.url()))
    counts, before, _ = run(first)
    assert (counts["kept"], counts["unchanged"]) == (5, 0)
    web.pages["/c.html"] = conditional('"c2"', html(text="丁"))
    second = replace(make_build(web, out="two", sources=site(web.url())), snapshot="2026-02-02")
    counts, bodies, _ = run(second)
    assert counts["unchanged"] == 3, "the start page, a and deep, which is known by a link of a page that did not come"
    assert bodies == {**before, web.url("/c.html"): html(text="丁")}
    rows = [s.stage("crawl").table(s.stage("crawl").record("s")).to_pylist() for s in (first, second)]
    dates = [{row["url"]: (row["fetched_at"], row["etag"]) for row in table} for table in rows]
    assert dates[0][web.url("/a.html")] == dates[1][web.url("/a.html")]
    for file in (tmp_path / "two" / "captures").glob("*.warc.gz"):
        file.write_bytes(b"damaged")
    counts, bodies, _ = run(replace(make_build(web, out="three", sources=site(web.url())), snapshot="2026-03-03"))
    assert (counts["kept"], counts["unchanged"]) == (5, 0), "what the last crawl left cannot be read: all anew"


def test_an_owner_who_opts_out_after_a_crawl_is_heard_though_the_page_is_the_same(serve, make_build):
    web = serve({"/": conditional('"1"', html("/a.html")), "/a.html": conditional('"a"', html(text="甲"))})
    run(make_build(web, out="one", sources=site(web.url())))

    def now_refused(handler) -> None:
        handler.send_response(304)
        handler.send_header("X-Robots-Tag", "noai")
        handler.end_headers()

    web.pages["/a.html"] = now_refused
    _, bodies, reasons = run(replace(make_build(web, out="two", sources=site(web.url())), snapshot="2026-02-02"))
    assert reasons == {web.url("/a.html"): "opt_out"}
    assert list(bodies) == [web.url()]


def test_reservations_of_text_and_data_mining_are_honoured(serve, make_build):
    web = serve({"/": html("/meta.html", "/header.html", "/file/x.html", "/free.html")})
    web.pages |= {
        "/meta.html": html(head='<meta name="tdm-reservation" content="1">'),
        "/header.html": (200, {"tdm-reservation": "1"}, html()),
        "/file/x.html": html(),
        "/free.html": (200, {"tdm-reservation": "0"}, html(text="甲")),
        "/.well-known/tdmrep.json": (200, {}, b'[{"location": "/file/*", "tdm-reservation": 1}]'),
    }
    _, bodies, reasons = run(make_build(web, sources=site(web.url())))
    assert reasons == {web.url(path): "opt_out" for path in ("/meta.html", "/header.html", "/file/x.html")}
    assert set(bodies) == {web.url(), web.url("/free.html")}
    assert "/file/x.html" not in web.asked


def test_a_domain_that_was_taken_down_is_asked_for_nothing_any_more(serve, make_build):
    stays, removed = serve(), serve()
    stays.pages = {
        "/robots.txt": (200, {"Content-Type": "text/plain"}, f"Sitemap: {removed.url('/sitemap.xml')}\n".encode()),
        "/": html(removed.url("/a.html"), "/b.html", "/c.html"),
        "/b.html": (302, {"Location": removed.url("/moved.html")}, b""),
        "/c.html": html(),
    }
    removed.pages = {"/": html(), "/a.html": html(), "/moved.html": html(), "/sitemap.xml": b"<urlset></urlset>"}
    build = make_build(stays, removed, sources=site(stays.url(), hosts=[removed.host]))
    take_down(build, *domain_hashes(removed.host))
    crawl.run_partition(build, "s")
    stage = build.stage("crawl")
    record = stage.record("s")
    assert (removed.asked, removed.asked_tdm) == ([], []), "not even its robots.txt"
    assert {row["url"] for row in stage.table(record).to_pylist()} == {stays.url("/"), stays.url("/c.html")}
    lost = {row["id"]: row for row in stage.table(record, DECISIONS).to_pylist()}
    assert set(lost) == {sha256_hex(removed.url("/a.html")), sha256_hex(removed.url("/moved.html"))}
    for row in lost.values():
        assert (row["kept"], row["reason"], row["evidence"]) == (False, "forgotten", "its domain was taken down")
        assert (row["url"], row["page_url"]) == ("", ""), "what was taken down is not written down again"
    assert record.counts["seen"] == record.counts["kept"] + record.counts["dropped"]


@pytest.mark.parametrize("charset", ["gb2312", "gb18030", "big5"])
def test_a_sitemap_in_a_chinese_charset_is_read(serve, make_build, charset):
    web = serve()
    entry = f"<?xml version='1.0' encoding='{charset}'?><urlset><url><loc>{web.url('/中.html')}</loc></url></urlset>"
    web.pages = {
        "/robots.txt": (200, {"Content-Type": "text/plain"}, f"Sitemap: {web.url('/s.xml')}\n".encode()),
        "/s.xml": entry.encode(charset),
        "/": html(),
        "/%E4%B8%AD.html": html(),
    }
    _, bodies, _ = run(make_build(web, sources=site(web.url())))
    assert web.url("/%E4%B8%AD.html") in bodies


def test_a_sitemap_behind_a_redirect_is_read_if_it_lies_at_the_site(serve, make_build):
    other = serve({"/s.xml": b"<urlset></urlset>"})
    web = serve({"/": html(), "/a.html": html()})
    names = b"".join(b"Sitemap: %s\n" % web.url(path).encode() for path in ("/s.xml", "/out.xml", "/round.xml"))
    web.pages |= {
        "/robots.txt": (200, {"Content-Type": "text/plain"}, names),
        "/s.xml": (301, {"Location": "/maps/s.xml"}, b""),
        "/maps/s.xml": f"<urlset><url><loc>{web.url('/a.html')}</loc></url></urlset>".encode(),
        "/out.xml": (301, {"Location": other.url("/s.xml")}, b""),
        "/round.xml": (301, {"Location": "/round.xml"}, b""),
    }
    counts, bodies, _ = run(make_build(web, other, sources=site(web.url())))
    assert set(bodies) == {web.url("/"), web.url("/a.html")}
    assert (counts["in_sitemaps"], other.asked) == (1, [])
    assert web.asked.count("/round.xml") == 1
