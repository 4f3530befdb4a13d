"""Crawls of real servers on loopback, and what they kept, for tests of the parts of a crawl."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from warcio.archiveiterator import ArchiveIterator

from pipeline.stages import crawl
from pipeline.store.build import Build
from pipeline.store.commits import DECISIONS


def site(url: str, **options: object) -> list[dict[str, object]]:
    """The sources of a spec that crawls one site from one page."""
    return [{"kind": "site", "name": "s", "source_kind": "news", "start": [url], **options}]


def html(*links: str, head: str = "", text: str = "") -> bytes:
    """A page with links."""
    anchors = "".join(f'<a href="{link}">链接</a>' for link in links)
    return f"<!doctype html><html><head>{head}</head><body>{anchors}{text}</body></html>".encode()


def noting(when: list[float], status: int = 404, **headers: str) -> Callable[[Any], None]:
    """A page of `serve` without a body, which notes the time of each request for it."""

    def page(handler: Any) -> None:
        when.append(time.monotonic())
        handler.send_response(status)
        for name, value in {"Content-Type": "text/html", "Content-Length": "0", **headers}.items():
            handler.send_header(name, value)
        handler.end_headers()

    return page


def redirecting(location: bytes) -> Callable[[Any], None]:
    """A page of `serve` that redirects by these very bytes."""

    def page(handler: Any) -> None:
        handler.wfile.write(b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\nLocation: " + location + b"\r\n\r\n")

    return page


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


def take_down(build: Build, *hashes: str) -> None:
    """Make STORE hold a takedown of these hashes."""
    build.store.folder.write_json("forgotten/x.json", {"version": 1, "hashes": sorted(hashes), "looks": []})
