"""Fetch through img2dataset against real, partly hostile servers on loopback."""

from __future__ import annotations

import gzip
import hashlib
import io
import itertools
import os
import signal
import socket
import struct
import subprocess
import sys
import tarfile
import time
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from data_specs.shard import Text
from pipeline.records import FETCH_SCHEMA, Candidate, DropReason, candidate_rows
from pipeline.stages import _at_hand, _spool, fetch
from pipeline.store.build import Build
from pipeline.store.partitions import DECISIONS

SITE = [{"kind": "site", "name": "s", "source_kind": "news", "start": ["http://a.cn/"]}]
PARTITION = "00000-of-00001"
HEADERS = {"Content-Type": "image/png"}


def picture(seed: int, kind: str = "PNG", side: int = 40) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (side, side, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind)
    return out.getvalue()


def candidate(url: str, page: str = "http://a.cn/1.html", source: str = "s") -> Candidate:
    return Candidate(source, "news", page, page, url, (Text("alt", "一张图片"),))


def admit(build: Build, candidates: list[Candidate]) -> None:
    """What the admit stage would have left."""
    with build.stage("admit").attempt(PARTITION) as attempt:
        attempt.write_table("parquet", candidate_rows(candidates, build.spec.seed))
        attempt.commit({"seen": len(candidates), "kept": len(candidates), "dropped": 0})


def run(build: Build, *urls: str) -> dict[str, dict]:
    """Fetch URLs; rows of the outcome table by URL, with `data` read from the tar by offset."""
    admit(build, [candidate(url) for url in urls])
    fetch.run_partition(build, PARTITION)
    return outcome(build)


def outcome(build: Build) -> dict[str, dict]:
    stage = build.stage("fetch")
    record = stage.record(PARTITION)
    table = stage.table(record)
    assert table.schema.equals(FETCH_SCHEMA)
    rows = {row["image_url"]: row for row in table.to_pylist()}
    with stage.file(record, "tar") as path:
        raw = path.read_bytes()
        with tarfile.open(path) as tar:
            members = {m.name: tar.extractfile(m).read() for m in tar}
    for row in rows.values():
        if row["ok"]:
            row["data"] = raw[row["offset"] : row["offset"] + row["size"]]
            assert members.pop(row["fetch_id"]) == row["data"]
            assert hashlib.sha256(row["data"]).hexdigest() == row["sha256"]
    assert members == {}, "the tar holds what the table names and nothing else"
    dropped = {}
    if DECISIONS in record.files:
        dropped = {d["url"]: d["reason"] for d in stage.table(record, DECISIONS).to_pylist()}
    assert dropped == {url: row["reason"] for url, row in rows.items() if not row["ok"]}
    assert record.counts["seen"] == record.counts["kept"] + record.counts["dropped"]
    return rows


def test_original_bytes_come_whatever_their_name_says(serve, make_build):
    images = {"/a.jpg": picture(1), "/b": picture(2, "JPEG"), "/c.gif?x=1": picture(3, "WEBP"), "/d.txt": picture(4)}
    web = serve({path: (200, {"Content-Type": "text/plain", "ETag": '"v1"'}, data) for path, data in images.items()})
    rows = run(make_build(web, sources=SITE), *map(web.url, images))
    assert {url: row["data"] for url, row in rows.items()} == {web.url(p): data for p, data in images.items()}
    assert {row["etag"] for row in rows.values()} == {'"v1"'}
    assert {agent.partition("/")[0] for agent in web.agents} == {"wenlan"}


def test_an_image_is_fetched_once_for_all_its_candidates(serve, make_build):
    web = serve({"/a.png": picture(1)})
    build = make_build(web, sources=SITE)
    admit(build, [candidate(web.url("/a.png"), f"http://a.cn/{i}.html") for i in range(3)])
    fetch.run_partition(build, PARTITION)
    counts = build.stage("fetch").record(PARTITION).counts
    assert (counts["seen"], counts["kept"], counts["images"]) == (3, 3, 1)
    assert web.asked.count("/a.png") == 1


def test_the_same_images_give_the_same_tar(serve, make_build):
    web = serve({f"/{i}.png": picture(i) for i in range(12)})
    urls = [web.url(path) for path in web.pages]
    digests, orders = set(), set()
    for n, order in enumerate((urls, urls[::-1])):
        build = make_build(web, out=f"b{n}", sources=SITE, fetch={"threads": 1 + 7 * n})
        run(build, *order)
        digests.add(build.stage("fetch").record(PARTITION).files["tar"].sha256)
        orders.add(tuple(build.stage("fetch").table(build.stage("fetch").record(PARTITION))["fetch_id"].to_pylist()))
        (Path(build.store.url) / "fetched").rename(Path(build.out) / "old")  # both really fetch
    assert len(digests) == len(orders) == 1
    assert web.asked.count("/0.png") == 2


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


HOSTILE = {
    "/404.png": ((404, {}, b""), "http_status", False),
    "/500.png": ((500, {}, b""), "http_status", True),
    "/empty.png": ((200, HEADERS, b""), "empty_body", False),
    "/page.png": ((200, HEADERS, b"<!doctype html><title>login</title>"), "not_an_image", False),
    "/drip.png": (drip, "timeout", True),
    "/headers.png": (drip_headers, "timeout", True),
    "/tail.png": (drip_to_the_end, "timeout", True),
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
    limits = {"timeout_s": 1.5, "max_image_bytes": 300_000}
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

    web = serve({"/drip.png": drip, "/headers.png": drip_headers, "/tail.png": drip_to_the_end})
    build = make_build(web, sources=SITE, egress={"timeout_s": 1.2, "obey_robots": False})
    for path in web.pages:
        with pytest.raises(FetchFailed, match="timeout"):
            GuardedOpener(build.spec).open(web.url(path))
        assert 0 < dripped[web.url(path)] < 30, "it hangs up while bytes still come"


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

    def page(handler) -> None:
        when.append(time.monotonic())
        handler.send_response(404)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    web = serve({f"/{i}.png": page for i in range(4)})
    run(make_build(web, sources=SITE, egress={"delay_s": 0.2}), *(web.url(path) for path in web.pages))
    pauses = [b - a for a, b in itertools.pairwise(when)]
    assert len(pauses) == 3
    assert sum(pauses) >= 0.55


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


def test_a_lasting_failure_is_tried_again_when_its_time_has_come(serve, make_build, monkeypatch):
    web = serve({"/robots.txt": (404, {}, b"")})
    url = web.url("/a.png")
    assert run(make_build(web, out="one", sources=SITE), url)[url]["reason"] == "http_status"
    web.pages["/a.png"] = picture(1)
    assert run(make_build(web, out="two", sources=SITE), url)[url]["reason"] == "http_status"
    now = _at_hand.rfc3339
    monkeypatch.setattr(_at_hand, "rfc3339", lambda later_s=0.0: now(later_s + 31 * 24 * 3600))
    assert run(make_build(web, out="three", sources=SITE), url)[url]["ok"]


@pytest.mark.parametrize("status", [404, 503])
def test_a_failure_that_a_wrong_clock_put_into_the_future_is_asked_for_again(serve, make_build, monkeypatch, status):
    """With the clock a year ahead even a failure that may pass at once would have held for a year."""
    web = serve({"/robots.txt": (404, {}, b""), "/a.png": (status, {}, b"")})
    url, now = web.url("/a.png"), _spool.rfc3339
    with monkeypatch.context() as patch:
        patch.setattr(_spool, "rfc3339", lambda later_s=0.0: now(later_s + 365 * 24 * 3600))
        assert run(make_build(web, out="one", sources=SITE), url)[url]["reason"] == "http_status"
    web.pages["/a.png"] = picture(1)
    assert run(make_build(web, out="two", sources=SITE), url)[url]["ok"]
    web.asked.clear()
    assert run(make_build(web, out="three", sources=SITE), url)[url]["ok"], "the later of the two counts"
    assert "/a.png" not in web.asked


def test_a_later_build_takes_from_the_store_and_asks_only_for_what_may_pass(serve, make_build):
    pages = {f"/{i}.png": (200, {"ETag": f'"{i}"'}, picture(i)) for i in range(4)}
    web = serve({**pages, "/gone.png": (404, {}, b""), "/500.png": (500, {}, b"")})
    urls = [web.url(path) for path in web.pages]
    first, second = (make_build(web, out=out, sources=SITE, fetch={"retries": 0}) for out in ("one", "two"))
    before = run(first, *urls)
    web.asked.clear()
    web.pages["/500.png"] = (200, {}, picture(50))
    after = run(second, *urls, web.url("/gone.png"))
    assert web.asked == ["/robots.txt", "/500.png"]
    assert after[web.url("/500.png")]["data"] == picture(50)
    assert after[web.url("/gone.png")] == before[web.url("/gone.png")]
    for path in pages:
        same = ("data", "sha256", "etag", "fetched_at")
        assert [after[web.url(path)][k] for k in same] == [before[web.url(path)][k] for k in same]
    counts = second.stage("fetch").record(PARTITION).counts
    assert (counts["cached"], counts["fetched"]) == (5, 1)


def test_what_the_store_says_is_checked_and_fetched_anew_where_it_fails(serve, make_build):
    web = serve({f"/{i}.png": picture(i) for i in range(3)})
    urls = [web.url(path) for path in web.pages]
    first = make_build(web, out="one", sources=SITE)
    before = run(first, *urls)
    tar = Path(first.out) / "images" / first.stage("fetch").record(PARTITION).files["tar"].name
    damaged = bytearray(tar.read_bytes())
    damaged[before[urls[1]]["offset"] + 5] ^= 1
    tar.write_bytes(damaged)
    web.asked.clear()
    assert {r["sha256"] for r in run(make_build(web, out="two", sources=SITE), *urls).values()} == {
        r["sha256"] for r in before.values()
    }
    assert web.asked == ["/robots.txt", "/1.png"]
    web.asked.clear()
    tar.unlink()
    rows = run(make_build(web, out="three", sources=SITE), *urls)
    assert all(row["ok"] for row in rows.values())
    assert sorted(web.asked) == ["/0.png", "/2.png", "/robots.txt"], "/1.png lies in the second build"


def test_a_failure_is_remembered_only_under_the_limits_it_was_seen_with(serve, make_build):
    web = serve({"/big.png": picture(1, side=200)})
    url = web.url("/big.png")
    small = make_build(web, out="one", sources=SITE, egress={"max_image_bytes": 1000})
    assert run(small, url)[url]["reason"] == "too_large"
    assert run(make_build(web, out="two", sources=SITE), url)[url]["ok"]
    again = make_build(web, out="three", sources=SITE, egress={"max_image_bytes": 1000})
    assert run(again, url)[url]["reason"] == "too_large", "bytes from the store are judged anew"


def test_images_that_lie_in_a_source_are_read_there(serve, make_build, monkeypatch):
    from pipeline.sources import TableSource

    class Shelf(TableSource):
        def read_image(self, image_url: str) -> bytes | None:
            return {"folder:///shelf/a.png": picture(1), "folder:///shelf/b.png": b""}.get(image_url)

    monkeypatch.setattr(_at_hand, "sources_of", lambda spec: [Shelf(name="shelf", source_kind="library")])
    build = make_build(sources=SITE)
    urls = [f"folder:///shelf/{name}.png" for name in "abc"]
    admit(build, [candidate(url, source="shelf") for url in urls])
    fetch.run_partition(build, PARTITION)
    assert [outcome(build)[url]["reason"] for url in urls] == ["", "empty_body", "bad_url"]
    known = build.store.fetched().get([candidate(url).fetch_id for url in urls])
    assert known is None, "a source's own files may change; they are not remembered"


def test_a_partition_without_candidates_is_committed_too(make_build):
    build = make_build(sources=SITE)
    admit(build, [])
    fetch.run_partition(build, PARTITION)
    assert outcome(build) == {}


def test_a_fault_of_ours_is_not_swallowed_by_the_downloader(serve, make_build, monkeypatch):
    def full(self: object, *_: object) -> None:
        raise OSError(28, "No space left on device")

    web = serve({"/a.png": picture(1)})
    build = make_build(web, sources=SITE)
    admit(build, [candidate(web.url("/a.png"))])
    monkeypatch.setattr(_spool.Spool, "add", full)
    with pytest.raises(OSError, match="No space left"):
        fetch.run_partition(build, PARTITION)
    assert build.stage("fetch").records() == []


KILLED = """
import sys
from data_specs.build import BuildSpec
from pipeline.stages import STAGES, _spool, fetch
from pipeline.store.build import Build
from pipeline.store.store import Store
spec = BuildSpec.model_validate_json(sys.argv[1])
marks = {name: name[:1] * 64 for name in ("admit", "fetch")}
build = Build(spec, sys.argv[2], Store(sys.argv[3]), "t", "2026-01-01", marks, stages=STAGES)
fetch.run_partition(build, "00000-of-00001")
"""


def test_a_killed_fetch_leaves_nothing_visible_and_runs_again(serve, make_build):
    web = serve({f"/{i}.png": picture(i) for i in range(40)})
    build = make_build(web, sources=SITE, egress={"delay_s": 0.06})
    urls = [web.url(path) for path in web.pages]
    admit(build, [candidate(url) for url in urls])
    argv = [sys.executable, "-c", KILLED, build.spec.model_dump_json(), build.out, build.store.url]
    child = subprocess.Popen(argv, env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])})
    deadline = time.monotonic() + 120
    while len(web.asked) < 10 and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert child.poll() is None
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert build.stage("fetch").records() == []
    fetch.run_partition(build, PARTITION)
    assert all(row["ok"] for row in outcome(build).values())


def test_a_refused_connection_is_told_and_may_pass(make_build):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    url = f"http://127.0.0.1:{port}/x.png"
    build = make_build(sources=SITE, egress={"allow": [f"127.0.0.1:{port}"], "obey_robots": False})
    row = run(build, url)[url]
    assert row["reason"] == "connection"
    assert row["retry_after"]
    cached = pq.read_table(next((Path(build.store.url) / "fetched").glob("*.parquet")))
    assert cached.schema.equals(fetch.CACHE_SCHEMA)


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

    def file(handler) -> None:
        when.append(time.monotonic())
        handler.send_response(404)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    web = serve({"/robots.txt": file, "/.well-known/tdmrep.json": file, "/1.png": file})
    run(make_build(web, sources=SITE, egress={"delay_s": 0.3}), web.url("/1.png"))
    assert len(when) == 3
    assert min(b - a for a, b in itertools.pairwise(when)) > 0.25


def test_partitions_of_a_build_ask_a_host_for_its_rules_once_and_an_unreachable_one_again(serve, make_build):
    web = serve({f"/{i}.png": (200, HEADERS, picture(i)) for i in range(4)})
    down = serve({f"/{i}.png": (200, HEADERS, picture(i)) for i in range(2)} | {"/robots.txt": (503, {}, b"")})
    build = make_build(web, down, sources=SITE)
    for number, partition in enumerate(("00000-of-00002", "00001-of-00002")):
        urls = [web.url(f"/{2 * number}.png"), web.url(f"/{2 * number + 1}.png"), down.url(f"/{number}.png")]
        with build.stage("admit").attempt(partition) as attempt:
            attempt.write_table("parquet", candidate_rows([candidate(url) for url in urls], build.spec.seed))
            attempt.commit({"seen": 3, "kept": 3, "dropped": 0})
        fetch.run_partition(build, partition)
    assert Counter(web.asked)["/robots.txt"] == 1
    assert len(web.asked_tdm) == 1
    assert Counter(down.asked)["/robots.txt"] == 4, "two tries in each partition"
    assert [record.counts["kept"] for record in build.stage("fetch").records()] == [2, 2]
