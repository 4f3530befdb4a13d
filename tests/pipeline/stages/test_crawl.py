"""The crawl against real servers on loopback: what is kept, what is refused and why, and what a kill costs."""

from __future__ import annotations

import gzip
import io
import itertools
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from warcio.archiveiterator import ArchiveIterator

from pipeline.errors import SourceError, StoreError
from pipeline.records import sha256_hex
from pipeline.stages import crawl, extract
from pipeline.store.build import Build
from pipeline.store.partitions import DECISIONS
from pipeline.store.takedowns import domain_hashes
from pipeline.web import crawler, frontier, policy
from tests import odd_site
from tests.stages import run_stage

CORPUS = Path(__file__).parents[3].parent / "shared" / "corpus"


def site(url: str, **options: object) -> list[dict[str, object]]:
    return [{"kind": "site", "name": "s", "source_kind": "news", "start": [url], **options}]


def html(*links: str, head: str = "", text: str = "") -> bytes:
    anchors = "".join(f'<a href="{link}">链接</a>' for link in links)
    return f"<!doctype html><html><head>{head}</head><body>{anchors}{text}</body></html>".encode()


def run(build: Build) -> tuple[dict[str, int], dict[str, bytes], dict[str, str]]:
    """(counts, body by URL in the WARC, reason by URL of what was dropped)."""
    crawl.run_partition(build, "s")
    stage = build.stage("crawl")
    [record] = stage.records()
    bodies: dict[str, bytes] = {}
    with stage.file(record, "warc.gz") as path, path.open("rb") as f:
        for entry in ArchiveIterator(f, check_digests="raise"):
            if entry.rec_type == "response":
                url = entry.rec_headers.get_header("WARC-Target-URI")
                assert url not in bodies, "a page twice in the WARC"
                bodies[url] = entry.content_stream().read()
    rows = stage.table(record).to_pylist()
    assert [row["url"] for row in rows] == list(bodies)
    reasons = {}
    if DECISIONS in record.files:
        reasons = {d["url"]: d["reason"] for d in stage.table(record, DECISIONS).to_pylist()}
    assert record.counts["seen"] == record.counts["kept"] + record.counts["dropped"]
    assert (record.counts["kept"], record.counts["dropped"]) == (len(bodies), len(reasons))
    return record.counts, bodies, reasons


def test_pages_are_found_by_links_and_kept_as_they_came(serve, make_build):
    web = serve()
    web.pages = {
        "/": html("a.html", "/b.html#part", "b.html", "http://elsewhere.example/", "mailto:x@y", "x.jpg", "/c.pdf"),
        "/a.html": html("/", "deep/d.html"),
        "/b.html": (200, {"X-Robots-Tag": "otherbot: noai", "ETag": '"e"'}, html()),
        "/deep/d.html": html("../a.html"),
    }
    build = make_build(web, sources=site(web.url()))
    counts, bodies, reasons = run(build)
    assert bodies == {web.url(path): web.pages[path][2] if path == "/b.html" else web.pages[path] for path in web.pages}
    assert reasons == {}
    assert sorted(web.asked) == ["/", "/a.html", "/b.html", "/deep/d.html", "/robots.txt"]
    assert web.asked[0] == "/robots.txt"
    assert {agent.partition("/")[0] for agent in web.agents} == {"wenlan"}
    rows = {r["url"]: r for r in build.stage("crawl").table(build.stage("crawl").record("s")).to_pylist()}
    assert rows[web.url("/b.html")]["etag"] == '"e"'
    assert rows[web.url("/deep/d.html")]["depth"] == 2
    assert counts["bytes"] == sum(map(len, bodies.values()))
    with build.stage("crawl").file(build.stage("crawl").record("s"), "warc.gz") as path:
        raw = path.read_bytes()
    for row in rows.values():  # each record is a gzip member of its own, where the table says
        member = gzip.decompress(raw[row["warc_offset"] : row["warc_offset"] + row["warc_length"]])
        assert row["url"].encode() in member


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


def test_each_page_that_fails_is_told_with_its_reason(serve, make_build):
    def slow(handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", "text/html")
        handler.end_headers()
        for _ in range(100):
            handler.wfile.write(b"x")
            handler.wfile.flush()
            time.sleep(0.1)

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
        "/slow.html": (slow, "timeout"),
        "/endless.html": (endless, "too_large"),
        "/bomb.html": ((200, {"Content-Encoding": "gzip"}, bomb), "too_large"),
        "/damaged.html": ((200, {"Content-Encoding": "gzip"}, b"\xff" * 99), "connection"),
        "/hangup.html": (hang_up, "connection"),
        "/out.html": ((302, {"Location": inside.url("/secret.html")}, b""), "http_status"),
        "/file.html": ((302, {"Location": "file:///etc/passwd"}, b""), "http_status"),
        "/loop.html": ((302, {"Location": "/loop.html"}, b""), "too_many_redirects"),
    }
    web.pages = {"/": html(*failing), **{path: page for path, (page, _) in failing.items()}}
    limits = {"timeout_s": 1, "max_page_bytes": 200_000}
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


def test_the_pause_that_robots_asks_for_is_kept(serve, make_build):
    when: list[float] = []

    def page(handler) -> None:
        when.append(time.monotonic())
        handler.send_response(200)
        handler.send_header("Content-Type", "text/html")
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    web = serve({"/": html("/1.html", "/2.html"), "/1.html": page, "/2.html": page})
    web.pages["/robots.txt"] = (200, {}, b"User-agent: *\nCrawl-delay: 0.4\n")
    run(make_build(web, sources=site(web.url())))
    assert when[1] - when[0] >= 0.35


def test_redirects_lead_on_within_the_site_and_are_counted(serve, make_build):
    web = serve({"/": (301, {"Location": "/home.html"}, b""), "/home.html": html("/", "/old.html")})
    web.pages["/old.html"] = (302, {"Location": "/home.html"}, b"")
    counts, bodies, reasons = run(make_build(web, sources=site(web.url())))
    assert list(bodies) == [web.url("/home.html")]
    assert reasons == {}
    assert counts["redirects"] == 2


def test_redirects_in_a_circle_end_and_are_told(serve, make_build):
    web = serve({"/": html("/a.html"), "/a.html": (302, {"Location": "/b.html"}, b"")})
    web.pages["/b.html"] = (302, {"Location": "/a.html"}, b"")
    _, bodies, reasons = run(make_build(web, sources=site(web.url())))
    assert list(bodies) == [web.url()]
    assert reasons == {web.url("/b.html"): "too_many_redirects"}
    build = make_build(web, out="start", sources=site(web.url("/a.html")))
    with pytest.raises(SourceError, match=r"a\.html: source s: .*too_many_redirects.*redirected to .*b\.html"):
        crawl.run_partition(build, "s")


def test_two_processes_never_go_on_with_one_crawl(tmp_path, monkeypatch):
    monkeypatch.setattr(frontier, "LOCK_WAIT_S", 0.2)
    with frontier.Frontier(tmp_path, 10, {}), pytest.raises(StoreError, match="another process goes on"):
        frontier.Frontier(tmp_path, 10, {})
    with frontier.Frontier(tmp_path, 10, {}):
        pass  # free again


def test_the_limits_of_a_site_hold(serve, make_build):
    web = serve({"/": html(*[f"/{i}.html" for i in range(9)], "/in/1.html", "/in/skip.html")})
    web.pages.update({f"/{i}.html": html(f"/deep{i}.html") for i in range(9)})
    web.pages.update({"/in/1.html": html("/in/2.html", "/0.html"), "/in/2.html": html("/in/3.html")})
    _, bodies, reasons = run(make_build(web, sources=site(web.url(), max_pages=4)))
    assert len(bodies) == 4
    assert set(reasons.values()) == {"over_budget"}
    narrow = site(web.url(), within=["/in/"], exclude=["skip"], max_depth=2)
    counts, bodies, _ = run(make_build(web, out="narrow", sources=narrow))
    assert set(bodies) == {web.url(p) for p in ("/", "/in/1.html", "/in/2.html")}
    assert counts["too_deep"] == 1, "/in/3.html"


def test_pages_beyond_the_largest_depth_are_counted_once_and_said(serve, make_build, caplog):
    web = serve({"/": html("/a.html", "/b.html")})
    web.pages["/a.html"] = html("/", "/b.html", "/deep/1.html", "/deep/2.html")
    web.pages["/b.html"] = html("/deep/2.html", "/deep/3.html", "http://elsewhere.example/", "/x.pdf")
    with caplog.at_level("WARNING", "wenlan"):
        counts, bodies, _ = run(make_build(web, sources=site(web.url(), max_depth=1)))
    assert len(bodies) == 3
    assert (counts["too_deep"], counts["dropped"]) == (3, 0)
    assert "source s: 3 linked pages lie beyond max_depth 1 and were not visited" in caplog.text
    assert run(make_build(web, out="whole", sources=site(web.url())))[0]["too_deep"] == 0


def test_an_endless_site_does_not_fill_the_disk(serve, make_build):
    class Calendar(dict):
        def get(self, path, default=None):
            if path == "/robots.txt":
                return default
            return html(*[f"{path}{i}/" for i in range(400)])

    web = serve()
    web.pages = Calendar()
    counts, bodies, _ = run(make_build(web, sources=site(web.url(), max_pages=5)))
    assert len(bodies) == 5
    assert counts["seen"] <= crawl.KNOWN_PER_PAGE * 5 + 1000
    assert counts["beyond"] == 5 * 400 + 1 - counts["seen"]


@pytest.mark.parametrize(
    ("page", "says"),
    [
        ((404, {}, b""), "http_status: status 404"),
        ((500, {}, b""), "http_status: status 500"),
        ((200, {"Content-Type": "image/png"}, b"x"), "not_html: image/png"),
        ((302, {"Location": "/other.html"}, b""), r"status 404 \(redirected to .*/other.html\)"),
    ],
)
def test_a_site_whose_start_page_fails_is_one_clear_line(serve, make_build, page, says):
    web = serve({"/": page})
    build = make_build(web, sources=site(web.url()))
    for _ in range(2):  # the second time asks again, and does not take the first answer for granted
        with pytest.raises(SourceError, match=says) as e:
            crawl.run_partition(build, "s")
        assert e.value.subject == web.url()
        assert "\n" not in str(e.value)
    assert web.asked.count("/") >= 2
    assert build.stage("crawl").records() == []


def test_a_site_that_answers_nothing_or_may_not_be_reached(serve, make_build):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    build = make_build(sources=site(f"http://127.0.0.1:{port}/"), egress={"allow": [f"127.0.0.1:{port}"]})
    with pytest.raises(SourceError, match=f"http://127.0.0.1:{port}/"):
        crawl.run_partition(build, "s")
    web = serve({"/": html()})
    with pytest.raises(SourceError, match="not a public address"):
        crawl.run_partition(make_build(out="other", sources=site(web.url())), "s")
    assert web.asked == []


@pytest.mark.parametrize("status", [500, 503])
def test_robots_that_cannot_be_read_forbid_everything(serve, make_build, status):
    web = serve({"/": html(), "/robots.txt": (status, {}, b"")})
    with pytest.raises(SourceError, match=f"robots.txt.*{status}"):
        crawl.run_partition(make_build(web, sources=site(web.url())), "s")
    assert "/" not in web.asked
    counts, _, _ = run(make_build(web, out="bold", sources=site(web.url()), egress={"obey_robots": False}))
    assert counts["kept"] == 1


class Failing:
    """A site of a start page and some others, which answers as an outage has it once the start page was asked for.

    status: of every answer while it lasts, 0: it hangs up. up: whether the outage is over. broken: pages that have an
    outage of their own, for ever. ends_at: the request during the outage with which it is over.
    """

    def __init__(self, pages: int, status: int = 0, broken: tuple[str, ...] = (), ends_at: int = 10**6) -> None:
        self.status, self.broken, self.ends_at, self.up, self.failed = status, broken, ends_at, False, 0
        paths = [f"/{i}.html" for i in range(1, pages + 1)]
        self.start = html(*paths, text="目录")
        self.pages = dict.fromkeys(("/", "/robots.txt", *paths), self.answer)

    def answer(self, handler) -> None:
        begun = "/" in handler.web.asked[:-1]
        if handler.path in self.broken or (begun and not self.up):
            self.failed += handler.path not in self.broken
            self.up = self.up or self.failed >= self.ends_at
            if not self.status:
                handler.connection.shutdown(socket.SHUT_RDWR)
                return
            status, body = self.status, b""
        else:
            status = 404 if handler.path == "/robots.txt" else 200
            body = self.start if handler.path == "/" else html(text=handler.path)
        handler.send_response(status)
        handler.send_header("Content-Type", "text/html")
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)


@pytest.mark.parametrize("status", [0, 503, 429])
@pytest.mark.parametrize("pages", [1, 2, 8])
def test_a_host_that_goes_away_stops_the_crawl_which_goes_on_later(serve, make_build, monkeypatch, pages, status):
    monkeypatch.setattr(crawler, "MAX_STREAK", 5)
    monkeypatch.setattr(policy, "BACKOFF_S", 0.001)
    failing = Failing(pages, status)
    web = serve(failing.pages)
    build = make_build(web, sources=site(web.url()))
    row = min(2 * pages, 5)
    with pytest.raises(
        SourceError, match=f"{row} requests in a row failed, and the host is down .*; start again to go"
    ):
        crawl.run_partition(build, "s")
    failing.up = True
    _, bodies, reasons = run(build)
    assert len(bodies) == 1 + pages
    assert reasons == {}
    assert web.asked.count("/") == 1


@pytest.mark.parametrize(("pages", "ends_at"), [(1, 2), (3, 6), (8, 5), (8, 12)])
def test_pages_that_were_lost_while_a_host_was_down_are_asked_for_once_it_is_up(
    serve, make_build, monkeypatch, pages, ends_at
):
    monkeypatch.setattr(crawler, "MAX_STREAK", 5)
    monkeypatch.setattr(policy, "BACKOFF_S", 0.001)
    failing = Failing(pages, 503, ends_at=ends_at)
    failing.pages["/robots.txt"] = (404, {}, b"")  # by the time it is asked the outage is over
    web = serve(failing.pages)
    _, bodies, reasons = run(make_build(web, sources=site(web.url())))
    assert failing.failed == ends_at
    assert len(bodies) == 1 + pages
    assert reasons == {}


def test_pages_that_never_answer_end_no_crawl_of_a_host_that_is_up(serve, make_build, monkeypatch):
    """Such a crawl could never end: it stopped at the same pages each time that it was started again."""
    monkeypatch.setattr(crawler, "MAX_STREAK", 3)
    monkeypatch.setattr(policy, "BACKOFF_S", 0.001)
    broken = tuple(f"/{i}.html" for i in range(1, 7))
    failing = Failing(8, broken=broken)
    failing.up = True
    web = serve(failing.pages)
    _, bodies, reasons = run(make_build(web, sources=site(web.url())))
    assert set(bodies) == {web.url("/"), web.url("/7.html"), web.url("/8.html")}
    assert reasons == dict.fromkeys(map(web.url, broken), "connection")
    tries = 2 * policy.TRIES  # twice each in two rounds; aiohttp repeats a request whose kept connection was closed
    assert max(web.asked.count(path) for path in broken) <= 2 * tries


KILLED = """
import sys
from data_specs.build import BuildSpec
from pipeline.stages import STAGES, crawl
from pipeline.store.build import Build
from pipeline.store.store import Store
spec = BuildSpec.model_validate_json(sys.argv[1])
marks = {"crawl": "c" * 64}
crawl.run_partition(Build(spec, sys.argv[2], Store(sys.argv[3]), "t", "2026-01-01", marks, stages=STAGES), "s")
"""


def test_a_killed_crawl_goes_on_and_takes_no_page_twice(serve, make_build):
    texts = [chr(0x4E10 + i) for i in range(60)]
    pages = {f"/{i}.html": html(f"/{2 * i + 1}.html", f"/{2 * i + 2}.html", text=texts[i]) for i in range(60)}
    web = serve({"/": html("/0.html"), **pages})
    build = make_build(web, sources=site(web.url()), egress={"delay_s": 0.05})
    kills = 0
    for target in (8, 25):
        argv = [sys.executable, "-c", KILLED, build.spec.model_dump_json(), build.out, build.store.url]
        child = subprocess.Popen(argv, env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])})
        deadline = time.monotonic() + 120
        while len(web.asked) < target and child.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        kills += child.poll() is None
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert kills == 2
    assert build.stage("crawl").records() == []
    _, bodies, reasons = run(build)
    assert set(bodies) == {web.url(path) for path in web.pages}
    assert set(reasons.values()) == {"http_status"}  # the leaves of the tree are not there
    asked = [path for path in web.asked if path in web.pages]
    assert len(asked) - len(set(asked)) <= 2, "at most the one page in the air is asked for again, a kill"
    assert not list((Path(build.out) / "captures" / "_frontier").iterdir())


def test_pages_of_sitemaps_are_taken_and_those_of_other_sites_are_not(serve, make_build):
    def urlset(*urls: str) -> bytes:
        entries = "".join(f"<url><loc> {url} </loc><lastmod>2026-01-01</lastmod></url>" for url in urls)
        return f'<urlset xmlns="http://www.sitemaps.org/schemas/sitemap/0.9">{entries}</urlset>'.encode()

    web = serve({"/": html(), "/a.html": html(), "/b.html": html(), "/c.html": html()})
    index = "".join(f"<sitemap><loc>{web.url(f'/{n}.xml')}</loc></sitemap>" for n in ("one", "two.gz", "bad", "bomb"))
    bomb = b'<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;">]><urlset><url><loc>&b;</loc></url></urlset>'
    web.pages |= {
        "/robots.txt": f"Sitemap: {web.url('/index.xml')}\nSitemap: http://other.example/s.xml\n".encode(),
        "/index.xml": f"<sitemapindex>{index}</sitemapindex>".encode(),
        "/one.xml": urlset(web.url("/a.html"), "http://other.example/x.html"),
        "/two.gz.xml": gzip.compress(urlset(web.url("/b.html"))),
        "/bad.xml": urlset(web.url("/c.html"))[:-9] + b"<",
        "/bomb.xml": bomb,
    }
    counts, bodies, _ = run(make_build(web, sources=site(web.url())))
    assert set(bodies) == {web.url(path) for path in ("/", "/a.html", "/b.html", "/c.html")}
    assert counts["in_sitemaps"] == 3
    web.asked.clear()
    _, bodies, _ = run(make_build(web, out="off", sources=site(web.url(), sitemaps=False)))
    assert web.asked == ["/robots.txt", "/"]


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


def test_a_calendar_is_left_when_its_pages_differ_in_numbers_only(serve, make_build):
    class Calendar(dict):
        def get(self, path, default=None):
            if not path.startswith("/cal/"):
                return super().get(path, default)
            day = int(path.rsplit("/")[-1])
            return html(*(f"/cal/{day + k}" for k in (1, 2, 30)), text=f"<table><tr><td>{day}日</td></tr></table>")

    web = serve()
    web.pages = Calendar({"/": html("/cal/1", "/real.html", text="甲"), "/real.html": html(text="乙")})
    counts, bodies, reasons = run(make_build(web, sources=site(web.url(), max_pages=1000)))
    assert set(reasons.values()) == {"trap"}
    assert len(bodies) == crawler.MAX_ALIKE + 2
    assert web.url("/real.html") in bodies
    assert counts["seen"] < 4 * crawler.MAX_ALIKE


def test_a_calendar_that_shows_a_sites_pictures_costs_it_none_of_them(serve, make_build):
    """Twenty of its pages are kept; to `extract` each picture would else stand on so many pages that it is a logo."""
    words = [chr(0x4E00 + 97 * number) * 3 for number in range(22)]
    pictures = "".join(f"<img src=/i/{number}.jpg alt={word}的雪景>" for number, word in enumerate(words))

    class Calendar(dict):
        def get(self, path, default=None):
            if not path.startswith("/cal/"):
                return super().get(path, default)
            day = int(path.rsplit("/")[-1])
            return html(*(f"/cal/{day + k}" for k in (1, 2, 30)), text=f"今天是日历上的第{day}日{pictures}")

    web = serve()
    articles = {
        f"/{number}.html": html(text=f"<p>{word}今天下了第一场雪<img src=/i/{number}.jpg alt={word}的雪景>")
        for number, word in enumerate(words)
    }
    web.pages = Calendar({"/": html("/cal/1", *articles, text="我们网站的首页"), **articles})
    build = make_build(web, sources=site(web.url(), max_pages=1000))
    build.fingerprints["extract"] = "e" * 64
    _, bodies, _ = run(build)
    assert len(bodies) == 23 + crawler.MAX_ALIKE
    run_stage(build, "extract")
    [record] = build.stage("extract").records()
    assert (record.counts["kept"], record.counts["pages_dropped"]) == (22, crawler.MAX_ALIKE)


def test_a_site_with_pages_of_every_odd_kind_keeps_all_others(serve, make_build):
    """Sixty pages of which twenty are what ended a crawl before; bench_hostile has 2,000, of which 5% are."""
    web, beside = serve(), serve()
    odd = odd_site.odd_site(60, len(odd_site.ODD), 0.005, web.host, beside.host)
    web.pages, beside.pages = odd.pages, odd.beside
    fields = odd_site.spec_of(web.host, beside.host, 60)
    build = make_build(web, beside, sources=fields["sources"], egress={"timeout_s": 30})
    build.fingerprints["extract"] = "e" * 64
    crawl.run_partition(build, "odd")
    record = build.stage("crawl").record("odd")
    kept = set(build.stage("crawl").table(record)["url"].to_pylist())
    dropped = {row["url"]: row["reason"] for row in build.stage("crawl").table(record, DECISIONS).to_pylist()}
    assert {web.url(path) for path in odd.sound} <= kept
    assert {web.url(path) for path in odd.odd} <= kept | dropped.keys(), "none is lost silently"
    assert dropped[beside.url(f"/{'a' * 120}.html")] == "robots_unreachable"
    assert beside.asked.count("/robots.txt") <= 2

    run_stage(build, "extract")
    [record] = build.stage("extract").records()
    images = set(build.stage("extract").table(record)["image_url"].to_pylist())
    assert {web.url(f"/i/{n}.jpg") for n in range(len(odd.sound))} <= images
    pages = {row["url"] for row in build.stage("extract").table(record, DECISIONS).to_pylist()}
    shown = set(build.stage("extract").table(record)["page_url"].to_pylist())
    without_image = {web.url("/odd/bomb-0.html")}
    assert {url for url in kept if "/odd/" in url} <= pages | shown | without_image


def test_session_ids_make_no_new_pages_and_endless_paths_are_not_followed(serve, make_build):
    links = ["/a.html?jsessionid=1", "/a.html?jsessionid=2&x=1", "/a.html;jsessionid=77?x=1", "/x/y/x/y/x/y/x/y/"]
    web = serve({"/": html(*links), "/a.html": html(text="甲"), "/a.html?x=1": html(text="乙")})
    counts, bodies, reasons = run(make_build(web, sources=site(web.url())))
    assert sorted(bodies) == [web.url(), web.url("/a.html"), web.url("/a.html?x=1")]
    assert reasons == {}
    assert counts["traps"] == 1


def test_each_host_has_its_own_limits(serve, make_build):
    one, two = serve(), serve()
    one.pages = {"/": html(*(one.url(f"/{i}.html") for i in range(6)), two.url())}
    one.pages |= {f"/{i}.html": html(text=f"{chr(0x4E10 + i)}") for i in range(6)}
    two.pages = {"/": html("/b.html", text="甲" * 3000), "/b.html": html(text="乙")}
    limits = {"max_pages_per_host": 3, "max_bytes_per_host": 5000}
    build = make_build(one, two, sources=site(one.url(), hosts=[two.host], **limits))
    _, bodies, reasons = run(build)
    assert sum(url.startswith(one.url()) for url in bodies) == 3
    assert [url for url in bodies if url.startswith(two.url())] == [two.url()]
    assert set(reasons.values()) == {"over_budget"}


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


def test_the_warc_is_read_by_fastwarc_too(serve, make_build):
    fast = pytest.importorskip("fastwarc.warc")

    web = serve({"/": html("/a.html"), "/a.html": html(text="甲")})
    build = make_build(web, sources=site(web.url()))
    _, bodies, _ = run(build)
    stage = build.stage("crawl")
    with stage.file(stage.record("s"), "warc.gz") as path, path.open("rb") as f:
        found = {
            r.headers["WARC-Target-URI"]: r.reader.read() for r in fast.ArchiveIterator(f, fast.WarcRecordType.response)
        }
    assert found == bodies


def test_a_site_is_not_crawled_again_because_another_part_of_the_spec_changed(serve, make_build):
    web = serve({"/": html()})
    build = make_build(web, sources=site(web.url()))
    _, bodies, _ = run(build)
    web.asked.clear()
    assert run(replace(build, fingerprints={"crawl": "d" * 64}))[1] == bodies
    assert web.asked == []
    crawl.run_partition(replace(build, fingerprints={"crawl": "e" * 64}, snapshot="2026-02-02"), "s")
    assert web.asked == ["/robots.txt", "/"], "another snapshot is another crawl"


def test_a_torn_record_at_the_end_of_the_warc_is_cut_off(tmp_path):
    from pipeline.records import Capture
    from pipeline.web.frontier import Frontier

    def capture(url: str) -> Capture:
        return Capture(url, 200, "2026-01-01T00:00:00Z", "text/html", b"body of " + url.encode())

    with Frontier(tmp_path, 10, {"software": "t"}) as frontier:
        frontier.add(["http://a.cn/1", "http://a.cn/2", "http://a.cn/3"], 0)
        for name in ("1", "2"):
            page = frontier.next("a.cn")
            frontier.keep(page, capture(f"http://a.cn/{name}"), [])
    whole = frontier.warc.read_bytes()
    for damage in (whole + whole[-40:], whole[:-7]):
        frontier.warc.write_bytes(damage)
        with Frontier(tmp_path, 10, {"software": "t"}) as frontier:
            while (page := frontier.next("a.cn")) is not None:
                frontier.keep(page, capture(page.url), [])
        entries = ArchiveIterator(io.BytesIO(frontier.warc.read_bytes()), check_digests="raise")
        urls = [entry.rec_headers.get_header("WARC-Target-URI") for entry in entries]
        assert sorted(filter(None, urls)) == [f"http://a.cn/{i}" for i in (1, 2, 3)]


def test_headers_that_would_mislead_a_reader_of_the_warc_are_renamed(serve, make_build):
    page = html("/x.html")
    web = serve({"/": (200, {"Content-Encoding": "gzip", "X-Odd": "caf\xe9"}, gzip.compress(page))})
    build = make_build(web, sources=site(web.url()))
    crawl.run_partition(build, "s")
    stage = build.stage("crawl")
    with stage.file(stage.record("s"), "warc.gz") as path, path.open("rb") as f:
        [entry] = [(e.http_headers, e.raw_stream.read()) for e in ArchiveIterator(f) if e.rec_type == "response"]
    assert entry[1] == page
    assert entry[0].get_header("X-Crawl-Content-Encoding") == "gzip"
    assert entry[0].get_header("Content-Encoding") is None
    assert int(entry[0].get_header("Content-Length")) == len(page)


def test_the_token_names_what_decides_and_nothing_else(serve, make_build):
    start = "http://a.cn/"
    plain = crawl.token(make_build(sources=site(start)))
    assert crawl.token(make_build(sources=site(start), egress={"delay_s": 7})) == plain
    assert crawl.token(make_build(sources=site(start, max_pages=7))) != plain


@pytest.mark.skipif(not CORPUS.exists(), reason="../shared/corpus is not there")
def test_the_recipe_site_is_crawled_whole_but_for_what_may_not_be_taken(serve, make_build):
    root = CORPUS / "howtocook-site"
    web = serve()
    web.pages = {f"/{p.relative_to(root)}": p.read_bytes() for p in root.rglob("*") if p.suffix in (".html", ".txt")}
    web.pages["/"] = web.pages["/index.html"]
    _, bodies, reasons = run(make_build(web, sources=site(web.url("/index.html"))))
    wanted = {web.url(path) for path in web.pages if path.endswith(".html")}
    refused = {web.url("/private/index.html"): "robots_disallowed", web.url("/drink/d22f7700566c.html"): "opt_out"}
    assert reasons == refused
    assert set(bodies) - {web.url("/")} == wanted - set(refused)
    assert not any(path.startswith("/private") for path in web.asked)


def take_down(build: Build, *hashes: str) -> None:
    build.store.folder.write_json("forgotten/x.json", {"version": 1, "hashes": sorted(hashes), "looks": []})


def test_a_domain_that_was_taken_down_is_asked_for_nothing_any_more(serve, make_build):
    stays, gone = serve(), serve()
    stays.pages = {
        "/robots.txt": (200, {"Content-Type": "text/plain"}, f"Sitemap: {gone.url('/sitemap.xml')}\n".encode()),
        "/": html(gone.url("/a.html"), "/b.html", "/c.html"),
        "/b.html": (302, {"Location": gone.url("/moved.html")}, b""),
        "/c.html": html(),
    }
    gone.pages = {"/": html(), "/a.html": html(), "/moved.html": html(), "/sitemap.xml": b"<urlset></urlset>"}
    build = make_build(stays, gone, sources=site(stays.url(), hosts=[gone.host]))
    take_down(build, *domain_hashes(gone.host))
    crawl.run_partition(build, "s")
    stage = build.stage("crawl")
    record = stage.record("s")
    assert (gone.asked, gone.asked_tdm) == ([], []), "not even its robots.txt"
    assert {row["url"] for row in stage.table(record).to_pylist()} == {stays.url("/"), stays.url("/c.html")}
    lost = {row["id"]: row for row in stage.table(record, DECISIONS).to_pylist()}
    assert set(lost) == {sha256_hex(gone.url("/a.html")), sha256_hex(gone.url("/moved.html"))}
    for row in lost.values():
        assert (row["kept"], row["reason"], row["evidence"]) == (False, "forgotten", "its domain was taken down")
        assert (row["url"], row["page_url"]) == ("", ""), "what was taken down is not written down again"
    assert record.counts["seen"] == record.counts["kept"] + record.counts["dropped"]


def test_a_page_that_was_taken_down_is_not_asked_for(serve, make_build):
    web = serve()
    web.pages = {"/": html("/a.html", "/b.html"), "/a.html": html(), "/b.html": html()}
    build = make_build(web, sources=site(web.url()))
    take_down(build, sha256_hex(web.url("/a.html")))
    crawl.run_partition(build, "s")
    assert sorted(web.asked) == ["/", "/b.html", "/robots.txt"]


def test_a_site_whose_domain_was_taken_down_leaves_an_empty_crawl_and_stops_no_build(serve, make_build):
    web = serve()
    web.pages = {"/": html("/a.html"), "/a.html": html()}
    build = make_build(web, sources=site(web.url()))
    take_down(build, *domain_hashes(web.host))
    crawl.run_partition(build, "s")
    record = build.stage("crawl").record("s")
    assert (web.asked, record.counts["kept"], record.counts["dropped"]) == ([], 0, 1)
    build = replace(build, fingerprints={**build.fingerprints, "extract": "e" * 64})
    names = extract.partitions(build)
    for name in names:
        extract.run_partition(build, name)
    assert sum(record.counts["kept"] for record in build.stage("extract").records()) == 0


@pytest.mark.parametrize("base", ["http://[::1", "http://[x]/", "//[", "http://a:b/", "http://%/", "http://\u2488/"])
def test_a_base_that_is_no_address_ends_no_crawl(serve, make_build, base):
    web = serve()
    web.pages = {
        "/": html("/odd.html", "/b.html"),
        "/odd.html": html("c.html", "//[::1", head=f"<base href='{base}'>"),
        "/b.html": html(),
    }
    _, bodies, _ = run(make_build(web, sources=site(web.url())))
    assert {web.url("/"), web.url("/b.html"), web.url("/odd.html")} <= set(bodies)


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


@pytest.mark.parametrize("target", ["http://10.0.0.1/robots.txt", "ftp://a.test/", "http://[::1", "http://a:b/"])
def test_robots_that_lead_where_nobody_may_go_are_asked_for_once_and_paced(serve, make_build, monkeypatch, target):
    """85 requests in 9.7 s were seen, at a pause of 1 s."""
    web, odd = serve(), serve()
    asked: list[float] = []

    def robots(handler):
        asked.append(time.monotonic())
        handler.send_response(301)
        handler.send_header("Location", target)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    web.pages = {"/": html(*(odd.url(f"/{i}.html") for i in range(30)))}
    odd.pages = {"/robots.txt": robots, **{f"/{i}.html": html() for i in range(30)}}
    sources = site(web.url(), hosts=[web.host, odd.host])
    _, bodies, reasons = run(make_build(web, odd, sources=sources, egress={"delay_s": 0.2}))
    assert set(bodies) == {web.url()}
    assert set(reasons.values()) == {"robots_unreachable"}
    assert 1 <= len(asked) <= policy.TRIES
    assert all(b - a >= 0.18 for a, b in itertools.pairwise(asked)), "at the host's pace"
    assert [path for path in odd.asked if path != "/robots.txt"] == []
