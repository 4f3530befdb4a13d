"""crawl against real servers on loopback: what is kept, what is refused, and what a kill costs."""

from __future__ import annotations

import gzip
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

from pipeline.errors import SourceError
from pipeline.stages import crawl, extract
from pipeline.store.commits import DECISIONS
from pipeline.store.takedowns import domain_hashes
from pipeline.web import crawler, pace, policy
from tests import odd_site
from tests.crawled import html, run, site, take_down
from tests.stages import run_stage

CORPUS = Path(__file__).parents[3].parent / "shared" / "corpus"


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
    assert sorted(web.asked) == ["/", "/a.html", "/b.html", "/deep/d.html", "/robots.txt", "/sitemap.xml"]
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


def test_redirects_in_a_circle_end_and_are_told(serve, make_build):
    web = serve({"/": html("/a.html"), "/a.html": (302, {"Location": "/b.html"}, b"")})
    web.pages["/b.html"] = (302, {"Location": "/a.html"}, b"")
    _, bodies, reasons = run(make_build(web, sources=site(web.url())))
    assert list(bodies) == [web.url()]
    assert reasons == {web.url("/b.html"): "too_many_redirects"}
    build = make_build(web, out="start", sources=site(web.url("/a.html")))
    with pytest.raises(SourceError, match=r"a\.html: source s: .*too_many_redirects.*redirected to .*b\.html"):
        crawl.run_partition(build, "s")


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
    assert "source s: skipped 3 linked pages beyond max_depth 1" in caplog.text
    assert run(make_build(web, out="whole", sources=site(web.url())))[0]["too_deep"] == 0


@pytest.mark.slow
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


@pytest.mark.slow
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
    assert list(build.stage("crawl").records()) == []


def test_a_site_that_answers_nothing_or_may_not_be_reached(serve, make_build):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))  # where nobody else can listen meanwhile
        port = s.getsockname()[1]
        build = make_build(sources=site(f"http://127.0.0.1:{port}/"), egress={"allow": [f"127.0.0.1:{port}"]})
        with pytest.raises(SourceError, match=f"http://127.0.0.1:{port}/"):
            crawl.run_partition(build, "s")
    web = serve({"/": html()})
    with pytest.raises(SourceError, match="not a public address"):
        crawl.run_partition(make_build(out="other", sources=site(web.url())), "s")
    assert web.asked == []


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


@pytest.mark.slow
@pytest.mark.parametrize("status", [0, 503, 429])
@pytest.mark.parametrize("pages", [1, 2, 8])
def test_a_host_that_goes_away_stops_the_crawl_which_goes_on_later(serve, make_build, monkeypatch, pages, status):
    monkeypatch.setattr(crawler, "MAX_STREAK", 5)
    monkeypatch.setattr(policy, "BACKOFF_S", 0.001)
    monkeypatch.setattr(pace, "LEAST_S", 0.001)  # a 429 makes the host slower
    failing = Failing(pages, status)
    web = serve(failing.pages)
    build = make_build(web, sources=site(web.url()))
    row = min(2 * pages, 5)
    with pytest.raises(
        SourceError,
        match=f"{row} requests in a row failed, and the host is down .*; run the same command again to resume",
    ):
        crawl.run_partition(build, "s")
    failing.up = True
    _, bodies, reasons = run(build)
    assert len(bodies) == 1 + pages
    assert reasons == {}
    assert web.asked.count("/") == 1


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_killed_crawl_goes_on_and_takes_no_page_twice(serve, make_build):
    texts = [chr(0x4E10 + i) for i in range(60)]
    pages = {f"/{i}.html": html(f"/{2 * i + 1}.html", f"/{2 * i + 2}.html", text=texts[i]) for i in range(60)}
    web = serve({"/": html("/0.html"), **pages})
    build = make_build(web, sources=site(web.url()), egress={"delay_s": 0.05})
    kills = 0
    for target in (8,):
        argv = [sys.executable, "-c", KILLED, build.spec.model_dump_json(), build.out, build.store.url]
        child = subprocess.Popen(argv, env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])})
        deadline = time.monotonic() + 120
        while len(web.asked) < target and child.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        kills += child.poll() is None
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert kills == 1
    assert list(build.stage("crawl").records()) == []
    _, bodies, reasons = run(build)
    assert set(bodies) == {web.url(path) for path in web.pages}
    assert set(reasons.values()) == {"http_status"}  # the leaves of the tree are not there
    asked = [path for path in web.asked if path in web.pages]
    assert len(asked) - len(set(asked)) <= 1, "at most the one page in the air is asked for again"
    assert not list((Path(build.out) / "captures" / "_frontier").iterdir())


@pytest.mark.slow
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
    web.asked.clear()
    web.pages["/robots.txt"] = b"User-agent: *\nAllow: /\n"
    web.pages["/sitemap.xml"] = urlset(web.url("/a.html"))
    run(make_build(web, out="unnamed", sources=site(web.url())))
    assert web.asked[:2] == ["/robots.txt", "/sitemap.xml"], "of the usual name, where robots.txt names none"
    assert "/a.html" in web.asked


def test_a_last_crawl_whose_table_is_damaged_is_none(serve, make_build):
    web = serve({"/": (200, {"ETag": '"1"'}, html())})
    before = make_build(web, sources=site(web.url()))
    run(before)
    stage = before.stage("crawl")
    Path(stage.folder.at(stage.record("s").files["parquet"].name)).write_bytes(b"PAR1")
    counts, _, _ = run(make_build(web, out="next", sources=site(web.url())))
    assert (counts["kept"], counts["unchanged"]) == (1, 0)


class Calendar(dict[str, bytes]):
    """Pages of a site, and one for each day below /cal/, with links to other days; `text` has {day} in it."""

    def __init__(self, pages: dict[str, bytes], text: str) -> None:
        super().__init__(pages)
        self.text = text

    def get(self, path, default=None):
        if not path.startswith("/cal/"):
            return super().get(path, default)
        day = int(path.rsplit("/")[-1])
        return html(*(f"/cal/{day + k}" for k in (1, 2, 30)), text=self.text.format(day=day))


def test_a_calendar_is_left_when_its_pages_differ_in_numbers_only(serve, make_build):
    web, pages = serve(), {"/": html("/cal/1", "/real.html", text="甲"), "/real.html": html(text="乙")}
    web.pages = Calendar(pages, "<table><tr><td>{day}日</td></tr></table>")
    counts, bodies, reasons = run(make_build(web, sources=site(web.url(), max_pages=1000)))
    assert set(reasons.values()) == {"trap"}
    assert len(bodies) == crawler.MAX_ALIKE + 2
    assert web.url("/real.html") in bodies
    assert counts["seen"] < 4 * crawler.MAX_ALIKE


@pytest.mark.slow
def test_a_calendar_that_shows_a_sites_pictures_costs_it_none_of_them(serve, make_build):
    """Twenty of its pages are kept; to `extract` each picture would else stand on so many pages that it is a logo."""
    words = [chr(0x4E00 + 97 * number) * 3 for number in range(22)]
    pictures = "".join(f"<img src=/i/{number}.jpg alt={word}的雪景>" for number, word in enumerate(words))

    web = serve()
    articles = {
        f"/{number}.html": html(text=f"<p>{word}今天下了第一场雪<img src=/i/{number}.jpg alt={word}的雪景>")
        for number, word in enumerate(words)
    }
    pages = {"/": html("/cal/1", *articles, text="我们网站的首页"), **articles}
    web.pages = Calendar(pages, f"今天是日历上的第{{day}}日{pictures}")
    build = make_build(web, sources=site(web.url(), max_pages=1000))
    build.fingerprints["extract"] = "e" * 64
    _, bodies, _ = run(build)
    assert len(bodies) == 23 + crawler.MAX_ALIKE
    run_stage(build, "extract")
    [record] = build.stage("extract").records()
    assert (record.counts["kept"], record.counts["pages_dropped"]) == (22, crawler.MAX_ALIKE)


@pytest.mark.slow
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


def test_a_site_is_not_crawled_again_because_another_part_of_the_spec_changed(serve, make_build):
    web = serve({"/": html()})
    build = make_build(web, sources=site(web.url()))
    _, bodies, _ = run(build)
    web.asked.clear()
    assert run(replace(build, fingerprints={"crawl": "d" * 64}))[1] == bodies
    assert web.asked == []
    crawl.run_partition(replace(build, fingerprints={"crawl": "e" * 64}, snapshot="2026-02-02"), "s")
    assert web.asked == ["/robots.txt", "/sitemap.xml", "/"], "another snapshot is another crawl"


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


@pytest.mark.slow
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


@pytest.mark.slow
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


def test_nothing_that_a_host_names_leads_inside(serve, make_build):
    """Server-side request forgery by everything that a page, robots.txt or a sitemap can name."""
    inside = serve({"/": html(), "/s.xml": b"<urlset/>", "/latest/meta-data/": html()})
    secret, metadata = inside.url("/latest/meta-data/"), "http://169.254.169.254/latest/meta-data/"
    head = "".join(
        f'<link rel="{rel}" href="{secret}">'
        for rel in ("canonical", "alternate", "amphtml", "next", "manifest", "icon")
    )
    head += f'<meta http-equiv="refresh" content="0; url={secret}"><base href="{inside.url("/")}">'
    frames = f'<iframe src="{secret}"></iframe><frame src="{metadata}"><area href="{secret}"><img src="{secret}x.png">'
    web = serve()
    index = f"<sitemapindex><sitemap><loc>{inside.url('/s.xml')}</loc></sitemap></sitemapindex>"
    web.pages = {
        "/robots.txt": f"Sitemap: {inside.url('/s.xml')}\nSitemap: {web.url('/index.xml')}\n".encode(),
        "/index.xml": index.encode(),
        "/": html(secret, metadata, "relative.html", head=head, text=frames),
    }
    _, bodies, _ = run(make_build(web, sources=site(web.url())))
    assert web.url() in bodies
    assert inside.asked == []
