"""image_opener: real, partly hostile servers cost little, and hosts are asked as politely as their rules want it."""

from __future__ import annotations

import gzip
import struct
import time
import zlib
from collections import Counter
from types import SimpleNamespace

import pytest

from pipeline.records import DropReason
from pipeline.stages import fetch
from pipeline.store.takedowns import domain_hashes
from pipeline.web import image_opener, policy
from tests.crawled import noting, redirecting, take_down
from tests.fetching import HEADERS, PARTITION, SITE, admit, candidate, outcome, picture, run


def png_bomb() -> bytes:
    """A PNG whose header says 50,000 x 50,000."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 0, 0, 0, 0)
    body = zlib.compress(b"\0" * 1_000_000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


dripped: Counter[str] = Counter()


"""Bytes that `_slowly` could send, by URL."""


def _slowly(handler) -> None:
    """One byte a second, for half a minute or until the client has hung up."""
    for _ in range(30):
        handler.wfile.write(b"x")
        dripped[handler.web.url(handler.path)] += 1
        time.sleep(1)


def drip(handler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    _slowly(handler)


def drip_headers(handler) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
    _slowly(handler)


def drip_to_the_end(handler) -> None:
    """A body whose length nobody announced: a cut must not pass for its end."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n" + picture(1)[:500])
    _slowly(handler)


def endless(handler) -> None:
    handler.send_response(200)
    handler.end_headers()
    while True:
        handler.wfile.write(b"\x89PNG" * 20_000)


def cut(handler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "5000")
    handler.end_headers()
    handler.wfile.write(picture(1)[:1000])
    handler.close_connection = True


SLOW = {"/drip.png": drip, "/headers.png": drip_headers, "/tail.png": drip_to_the_end}
HOSTILE = {
    "/404.png": ((404, {}, b""), "http_status", False),
    "/500.png": ((500, {}, b""), "http_status", True),
    "/empty.png": ((200, HEADERS, b""), "empty_body", False),
    "/page.png": ((200, HEADERS, b"<!doctype html><title>login</title>"), "not_an_image", False),
    "/endless.png": (endless, "too_large", False),
    "/announced.png": ((200, {"Content-Length": "99999999"}, b""), "too_large", False),
    "/cut.png": (cut, "connection", True),
    "/gzip.png": ((200, {"Content-Encoding": "gzip"}, gzip.compress(b"\0" * 30_000_000)), "too_large", False),
    "/bomb.png": ((200, HEADERS, png_bomb()), "too_many_pixels", False),
    "/noai.png": ((200, {"X-Robots-Tag": "noai, max-image-preview:large"}, picture(1)), "opt_out", False),
    "/file.png": ((302, {"Location": "file:///etc/passwd"}, b""), "egress_refused", False),
    "/loop.png": ((302, {"Location": "/loop.png"}, b""), "too_many_redirects", False),
    "/reserved.png": ((200, {"tdm-reservation": "1"}, picture(1)), "opt_out", False),
    "/tdm/x.png": ((200, HEADERS, picture(1)), "opt_out", False),
    "/private/x.png": ((200, HEADERS, picture(1)), "robots_disallowed", False),
}


def test_a_hostile_server_costs_little_and_every_failure_has_its_reason(serve, make_build):
    inside = serve({"/x.png": (200, HEADERS, picture(1))})
    broken = serve({"/robots.txt": (500, {}, b""), "/x.png": picture(1)})
    web = serve({path: page for path, (page, _, _) in HOSTILE.items()})
    web.pages["/robots.txt"] = (200, {}, b"User-agent: *\nDisallow: /private/\n")
    web.pages["/.well-known/tdmrep.json"] = (200, {}, b'[{"location": "/tdm/", "tdm-reservation": 1}]')
    web.pages["/inside.png"] = (302, {"Location": inside.url("/x.png")}, b"")
    web.pages["/fine.png"] = (200, HEADERS, picture(9))
    limits = {"max_image_bytes": 300_000}
    build = make_build(web, broken, sources=SITE, egress=limits, fetch={"retries": 0})
    local = f"http://localhost:{inside.port}/x.png"
    urls = [*map(web.url, HOSTILE), web.url("/inside.png"), web.url("/fine.png"), broken.url("/x.png"), local]
    admit(build, [candidate(url) for url in urls])
    fetch.run_partition(build, PARTITION)
    rows = outcome(build)
    expected = {web.url(path): reason for path, (_, reason, _) in HOSTILE.items()}
    expected |= {web.url("/inside.png"): "egress_refused", local: "egress_refused"}
    expected |= {web.url("/fine.png"): "", broken.url("/x.png"): "robots_unreachable"}
    assert {url: row["reason"] for url, row in rows.items()} == expected
    assert inside.asked == []
    assert broken.asked == ["/robots.txt", "/robots.txt"]
    assert not {"/private/x.png", "/tdm/x.png"} & set(web.asked)
    for path, (_, _, passes) in HOSTILE.items():
        row = rows[web.url(path)]
        assert row["fetched_at"] <= row["retry_after"], "every failure has a time from which it may be tried again"
        assert (row["retry_after"][:10] == row["fetched_at"][:10]) == passes, path
    assert build.stage("fetch").record(PARTITION).seconds < 60


def test_time_is_capped_in_total_and_not_between_two_bytes(serve, make_build):
    from pipeline.web.image_opener import FetchFailed, GuardedOpener

    web = serve(SLOW)
    build = make_build(web, sources=SITE, egress={"timeout_s": 1.2, "obey_robots": False})
    for url in map(web.url, SLOW):
        while not dripped[url]:  # on a busy machine the time may be over before the first byte
            with pytest.raises(FetchFailed, match="timeout"):
                GuardedOpener(build.spec).open(url)
        assert dripped[url] < 30, "it hangs up while bytes still come"


def test_images_that_come_too_slowly_cost_little_and_may_be_tried_again(serve, make_build):
    web = serve(SLOW)
    egress = {"timeout_s": 1.5, "obey_robots": False}
    rows = run(make_build(web, sources=SITE, egress=egress, fetch={"retries": 0}), *map(web.url, SLOW))
    assert {row["reason"] for row in rows.values()} == {"timeout"}
    for row in rows.values():
        assert row["fetched_at"] <= row["retry_after"]
        assert row["retry_after"][:10] == row["fetched_at"][:10]


def test_redirects_lead_to_the_image_and_each_hop_asks_its_own_robots(serve, make_build):
    cdn = serve({"/a b.png": picture(5), "/a%20b.png": picture(5), "/no.png": picture(6)})
    cdn.pages["/robots.txt"] = (200, {}, b"User-agent: wenlan\nDisallow: /no.png\n")
    web = serve({"/1.png": (301, {"Location": cdn.url("/a b.png")}, b"")})
    web.pages["/2.png"] = (302, {"Location": cdn.url("/no.png")}, b"")
    rows = run(make_build(web, cdn, sources=SITE), web.url("/1.png"), web.url("/2.png"))
    assert rows[web.url("/1.png")]["data"] == picture(5)
    assert rows[web.url("/2.png")]["reason"] == "robots_disallowed"
    assert "/no.png" not in cdn.asked


def test_a_transient_failure_is_retried_and_a_lasting_one_is_not(serve, make_build):
    def moody(handler) -> None:
        first = handler.web.asked.count("/moody.png") == 1
        data = picture(7)
        handler.send_response(503 if first else 200)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data)

    web = serve({"/moody.png": moody, "/busy.png": (503, {"Retry-After": "3600"}, b"")})
    build = make_build(web, sources=SITE, fetch={"retries": 2})
    rows = run(build, *(web.url(path) for path in ("/moody.png", "/gone.png", "/busy.png")))
    assert rows[web.url("/moody.png")]["ok"]
    assert web.asked.count("/gone.png") == 1
    assert web.asked.count("/busy.png") == 1, "a server that names a later time is not asked before"
    assert rows[web.url("/busy.png")]["retry_after"] > rows[web.url("/busy.png")]["fetched_at"]


def test_a_host_is_not_asked_faster_than_the_spec_says(serve, make_build):
    when: list[float] = []
    page = noting(when)
    web = serve({f"/{i}.png": page for i in range(8)})
    start = time.monotonic()  # not when the first was asked for, which a busy machine notes late
    run(make_build(web, sources=SITE, egress={"delay_s": 0.2}), *(web.url(path) for path in web.pages))
    assert len(when) == 8
    assert when[-1] - start >= 1.35


def test_connections_are_used_again_and_one_that_the_server_closed_costs_nothing(serve, make_build):
    from pipeline.web.image_opener import GuardedOpener

    ports = []

    def page(handler) -> None:
        ports.append(handler.client_address[1])
        handler.send_response(200)
        handler.send_header("Content-Length", "4")
        handler.end_headers()
        handler.wfile.write(b"\x89PNG")
        handler.close_connection = handler.path == "/close.png"  # without a word about it

    web = serve({f"/{name}.png": page for name in ("a", "b", "close", "c", "gone")})
    web.pages.pop("/gone.png")
    opener = GuardedOpener(make_build(web, sources=SITE).spec)
    for name in ("a", "b", "close", "c"):
        assert opener.open(web.url(f"/{name}.png")).read() == b"\x89PNG"
    with pytest.raises(OSError, match="404"):
        opener.open(web.url("/gone.png"))
    assert opener.open(web.url("/b.png")).read() == b"\x89PNG"
    opener.close()
    assert ports[0] == ports[1] == ports[2] != ports[3] == ports[4], "a 404 costs no connection either"
    assert web.asked.count("/c.png") == 1


def test_failures_that_are_remembered_hold_no_body(serve, make_build):
    from pipeline.web.image_opener import GuardedOpener

    web = serve({"/endless.png": endless})
    opener = GuardedOpener(make_build(web, sources=SITE, egress={"max_image_bytes": 3_000_000}).spec)
    for number in range(3):
        web.pages[f"/endless.png?{number}"] = endless
        with pytest.raises(OSError, match="too_large"):
            opener.open(web.url(f"/endless.png?{number}"))
    opener.close()
    assert {failure.reason for failure in opener.failed.values()} == {DropReason.TOO_LARGE}
    assert all(f.__traceback__ is None and f.__context__ is None for f in opener.failed.values())


@pytest.mark.parametrize("target", ["http://10.0.0.1/robots.txt", "http://[::1", "ftp://a.test/"])
def test_robots_that_lead_where_nobody_may_go_are_asked_for_once_and_paced(serve, make_build, target):
    """85 requests in 9.7 s were seen, at a pause of 1 s: each image asked anew, and at once."""
    web = serve({f"/{i}.png": picture(i) for i in range(20)})
    urls = [web.url(path) for path in web.pages]
    web.pages["/robots.txt"] = (301, {"Location": target}, b"")
    rows = run(make_build(web, sources=SITE), *urls)
    assert {row["reason"] for row in rows.values()} == {"robots_unreachable"}
    assert set(web.asked) == {"/robots.txt"}
    assert len(web.asked) <= 2


def test_the_files_about_a_host_are_asked_for_at_its_pace(serve, make_build):
    when: list[float] = []
    file = noting(when)
    web = serve({"/robots.txt": file, "/.well-known/tdmrep.json": file, "/1.png": file})
    start = time.monotonic()
    run(make_build(web, sources=SITE, egress={"delay_s": 0.3}), web.url("/1.png"))
    assert len(when) == 3
    assert when[-1] - start > 0.55


def test_a_packed_robots_txt_that_is_too_large_forbids_what_its_beginning_does(serve, make_build):
    body = gzip.compress(b"User-agent: *\nDisallow: /private/\n" + b"#" * 2 * policy.MAX_ROBOTS_BYTES)
    web = serve({"/private/1.png": picture(1), "/2.png": picture(2)})
    web.pages["/robots.txt"] = (200, {"Content-Type": "text/plain", "Content-Encoding": "gzip"}, body)
    rows = run(make_build(web, sources=SITE), web.url("/private/1.png"), web.url("/2.png"))
    reasons = {url: row["reason"] for url, row in rows.items()}
    assert reasons == {web.url("/private/1.png"): "robots_disallowed", web.url("/2.png"): ""}


def test_a_host_whose_robots_txt_could_not_be_had_is_asked_once_more_a_day_later(serve, make_build, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(image_opener, "time", SimpleNamespace(monotonic=lambda: clock[0], sleep=time.sleep))
    web = serve({"/robots.txt": (503, {}, b""), **{f"/{n}.png": picture(n) for n in range(3)}})
    opener = image_opener.GuardedOpener(make_build(web, sources=SITE).spec)
    with pytest.raises(OSError, match="robots_unreachable"):
        opener.open(web.url("/0.png"))
    clock[0] = policy.ROBOTS_TTL_S + 1
    web.pages["/robots.txt"] = (404, {}, b"")
    asked = web.asked.count("/robots.txt")
    for n in (1, 2):
        assert opener.open(web.url(f"/{n}.png")).read() == picture(n)
    opener.close()
    assert web.asked.count("/robots.txt") == asked + 1


def test_a_domain_that_was_taken_down_is_not_asked_for_an_image_that_redirects_there(serve, make_build):
    removed = serve({"/1.png": picture(1)})
    web = serve({"/1.png": (302, {"Location": removed.url("/1.png")}, b""), "/2.png": picture(2)})
    odd = serve({"/robots.txt": (302, {"Location": removed.url("/robots.txt")}, b""), "/3.png": picture(3)})
    build = make_build(web, removed, odd, sources=SITE)
    take_down(build, *domain_hashes(removed.host))
    urls = [web.url("/1.png"), web.url("/2.png"), odd.url("/3.png")]
    admit(build, [candidate(url) for url in urls])
    fetch.run_partition(build, PARTITION)
    table = build.stage("fetch").table(build.stage("fetch").record(PARTITION))
    reasons = dict(zip(table["image_url"].to_pylist(), table["reason"].to_pylist(), strict=True))
    assert [reasons[url] for url in urls] == ["forgotten", "", "robots_unreachable"]
    assert (removed.asked, removed.asked_tdm) == ([], [])


@pytest.mark.parametrize(("charset", "path"), [("utf-8", "/%E6%B5%8B.png"), ("gb18030", "/%B2%E2.png")])
def test_a_redirect_to_a_chinese_path_is_followed(serve, make_build, charset, path):
    web = serve({"/1.png": redirecting("/测.png".encode(charset)), path: picture(1)})
    rows = run(make_build(web, sources=SITE), web.url("/1.png"))
    assert rows[web.url("/1.png")]["data"] == picture(1)
