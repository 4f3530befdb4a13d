"""fetch: one tar for each partition, the same however it came, and nothing visible of a fetch that was killed."""

from __future__ import annotations

import hashlib
import io
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.features import feature_id
from pipeline.rows.records import candidate_rows
from pipeline.stages import _spool, fetch
from pipeline.takedown.forget import Request, forget
from pipeline.web.images import ImageFetcher
from tests.drawn import blobs, encoded
from tests.fetching import HEADERS, PARTITION, SITE, admit, candidate, outcome, picture, run


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


@pytest.mark.slow
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


def test_a_picture_that_was_taken_down_is_neither_kept_nor_remembered(serve, make_build):
    pages = {"/a.png": (200, {"ETag": '"1"'}, picture(1)), "/b.png": (200, {}, picture(2)), "/c.png": (404, {}, b"")}
    web = serve(pages)
    build = make_build(web, sources=SITE)
    (build.store.folder / "forgotten").write_json("1.json", {"hashes": [hashlib.sha256(picture(2)).hexdigest()]})
    admit(build, [candidate(web.url(path)) for path in pages])
    fetch.run_partition(build, PARTITION)
    rows = build.stage("fetch").table(build.stage("fetch").record(PARTITION))
    reasons = dict(zip(rows["image_url"].to_pylist(), rows["reason"].to_pylist(), strict=True))
    assert [reasons[web.url(path)] for path in pages] == ["", "forgotten", "http_status"]
    known = build.store.fetched().get([candidate(web.url(path)).fetch_id for path in pages])
    assert known is not None
    tar = build.stage("fetch").folder.at(build.stage("fetch").record(PARTITION).files["tar"].name)
    remembered = {
        row["image_url"]: (row["tar"] and build.store.resolve_place(row["tar"]), row["etag"])
        for row in known.to_pylist()
    }
    assert remembered == {web.url("/a.png"): (tar, '"1"'), web.url("/c.png"): ("", "")}


def away(count: int, data: bytes) -> Any:
    """A page that its server answers with 503 until it was asked `count` times for anything but robots.txt."""

    def page(handler: Any) -> None:
        asked = sum(path.endswith(".png") for path in handler.web.asked)
        handler.send_response(503 if asked <= count else 200)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data)

    return page


@pytest.mark.slow
@pytest.mark.parametrize("engine", [{}, {"threads": 1}])
def test_the_images_of_a_host_that_goes_away_for_a_while_come_at_the_end(serve, make_build, engine):
    web, other = serve({}), serve({"/9.png": picture(9)})
    web.pages |= {f"/{n}.png": away(12, picture(n)) for n in range(6)}
    urls = [*map(web.url, web.pages), other.url("/9.png")]
    rows = run(make_build(web, other, sources=SITE, fetch={"max_wait_s": 1, **engine}), *urls)
    assert {row["reason"] for row in rows.values()} == {""}
    assert other.asked.count("/9.png") == 1
    never = make_build(web, other, out="never", sources=SITE)
    web.pages["/6.png"] = away(10**6, b"")
    assert run(never, web.url("/6.png"))[web.url("/6.png")]["reason"] == "http_status"
    assert web.asked.count("/6.png") == 1, "max_wait_s is 0"


def test_a_host_that_never_answers_is_waited_for_once_and_one_that_does_is_asked_once_more(
    serve, make_build, monkeypatch
):
    dead, well = serve({"/0.png": (503, {}, b"")}), serve({"/bad.png": (503, {}, b""), "/1.png": picture(1)})
    spec = make_build(dead, well, sources=SITE, fetch={"max_wait_s": 0.4, "threads": 1}).spec
    silent = set[str]()

    def reasons(*urls: str) -> list[str]:
        spool = _spool.Spool(io.BytesIO(), spec)
        network = fetch._Network(spec, {str(n): url for n, url in enumerate(urls)}, spool, silent)
        network.run(lambda: ImageFetcher(spec))
        return [network.outcomes[str(n)].reason for n in range(len(urls))]

    assert reasons(dead.url("/0.png"), well.url("/bad.png"), well.url("/1.png")) == ["http_status", "http_status", ""]
    assert dead.asked.count("/0.png") >= 4, "until the time is over"
    assert well.asked.count("/bad.png") == 2, "its host has answered since"
    assert silent == {dead.host}
    slept = list[float]()
    monkeypatch.setattr(fetch.time, "sleep", slept.append)
    dead.asked.clear()
    assert reasons(dead.url("/0.png")) == ["http_status"]
    assert (slept, dead.asked.count("/0.png")) == ([], 1)
    dead.pages["/0.png"] = picture(2)
    assert reasons(dead.url("/0.png")) == [""]
    assert silent == set(), "it is back"


def test_a_host_whose_robots_txt_cannot_be_had_is_asked_for_it_again(serve, make_build):
    def robots(handler: Any) -> None:
        handler.send_response(500 if handler.web.asked.count("/robots.txt") <= 4 else 404)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    web = serve({"/1.png": picture(1), "/robots.txt": robots})
    rows = run(make_build(web, sources=SITE, fetch={"max_wait_s": 1}), web.url("/1.png"))
    assert rows[web.url("/1.png")]["ok"]


def test_an_image_that_its_host_cannot_make_is_asked_for_twice(serve, make_build):
    web = serve({"/500.png": (500, {}, b"")})
    build = make_build(web, sources=SITE, fetch={"max_wait_s": 5})
    assert run(build, web.url("/500.png"))[web.url("/500.png")]["reason"] == "http_status"
    assert web.asked.count("/500.png") == 2, "the host is there"
    assert build.stage("fetch").record(PARTITION).seconds < 3


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
    assert list(build.stage("fetch").records()) == []


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


@pytest.mark.drill(5)
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
    assert list(build.stage("fetch").records()) == []
    fetch.run_partition(build, PARTITION)
    assert all(row["ok"] for row in outcome(build).values())


def test_a_refused_connection_is_told_and_may_pass(make_build):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))  # where nobody else can listen meanwhile
        port = s.getsockname()[1]
        url = f"http://127.0.0.1:{port}/x.png"
        build = make_build(sources=SITE, egress={"allow": [f"127.0.0.1:{port}"], "obey_robots": False})
        row = run(build, url)[url]
    assert row["reason"] == "connection"
    assert row["retry_after"]
    cached = pq.read_table(next((Path(build.store.url) / "fetched").glob("*.parquet")))
    assert cached.schema.equals(fetch.CACHE_SCHEMA)


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


@pytest.mark.slow
def test_a_picture_that_looks_like_one_that_was_taken_down_is_not_kept(serve, make_build, tmp_path):
    """It was downloaded again at a new address, dropped by measure, and stayed in images/."""
    taken, other = Image.fromarray(blobs(1, (320, 240))), Image.fromarray(blobs(2, (320, 240)))
    pages = {"/new.jpg": encoded(taken.resize((300, 225))), "/other.jpg": encoded(other)}
    web = serve({path: (200, {}, data) for path, data in pages.items()})
    build = make_build(web, sources=SITE)
    (tmp_path / "taken.png").write_bytes(encoded(taken, "PNG"))
    forget(build.store, [], Request(pictures=[tmp_path / "taken.png"]))
    admit(build, [candidate(web.url(path)) for path in pages])
    fetch.run_partition(build, PARTITION)
    record = build.stage("fetch").record(PARTITION)
    reasons = {row["image_url"]: row["reason"] for row in build.stage("fetch").table(record).to_pylist()}
    assert reasons == {web.url("/new.jpg"): "forgotten", web.url("/other.jpg"): ""}
    [data] = [path.read_bytes() for path in (Path(build.out) / "images").glob("*.tar")]
    assert (pages["/new.jpg"] in data, pages["/other.jpg"] in data) == (False, True)
    assert (record.counts["kept"], record.counts["dropped"]) == (1, 1)
    known = build.store.features(feature_id()).get([hashlib.sha256(data).hexdigest() for data in pages.values()])
    assert known is not None
    assert known["sha256"].to_pylist() == [hashlib.sha256(pages["/other.jpg"]).hexdigest()], "what `measure` finds"
