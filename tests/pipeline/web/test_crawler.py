"""Crawl and rate limit on a Ray cluster: visits spread by host, one pace per host, and a visitor that dies."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from pipeline.stages import crawl
from pipeline.web.pace import RateLimiter
from tests.processes import descendants, wait_until

pytestmark = pytest.mark.slow


def sites(serve: Any, hosts: int, pages: int) -> list[Any]:
    """Hosts whose start pages link to their own pages and to the next host."""
    webs = [serve() for _ in range(hosts)]
    for number, web in enumerate(webs):
        links = [web.url(f"/{i}.html") for i in range(pages)] + [webs[(number + 1) % hosts].url()]
        anchors = "".join(f'<a href="{link}">页</a>' for link in links)
        web.pages = {"/": anchors.encode(), **{f"/{i}.html": chr(0x4E10 + i).encode() for i in range(pages)}}
    return webs


def visitors() -> list[int]:
    """Processes of visitors of this test's own Ray, as Ray names them."""
    return [pid for pid, title in descendants(os.getpid()).items() if title.startswith(b"ray::Visitor")]


@pytest.mark.drill(20)
def test_a_visitor_that_is_killed_costs_no_page_and_hosts_keep_their_pace(ray, serve, make_build):
    webs = sites(serve, hosts=3, pages=12)
    source = {"kind": "site", "name": "s", "source_kind": "news", "start": [webs[0].url()]}
    source["hosts"] = [web.host for web in webs]
    build = make_build(*webs, sources=[source], egress={"delay_s": 0.1, "timeout_s": 240})
    seen: list[int] = []
    killed = threading.Event()

    def held_back(body: bytes) -> Callable[[Any], None]:
        """A page that is not answered between the twelfth request and the kill, so that this comes in the middle."""

        def page(handler: Any) -> None:
            if sum(len(web.asked) for web in webs) >= 12:
                killed.wait(200)
            handler.send_response(200)
            handler.send_header("Content-Type", "text/html; charset=utf-8")
            handler.send_header("Content-Length", str(len(body)))
            handler.end_headers()
            handler.wfile.write(body)

        return page

    for web in webs:
        web.pages = {path: held_back(body) for path, body in web.pages.items()}

    def kill() -> None:
        try:
            wait_until(lambda: sum(len(web.asked) for web in webs) >= 12, "twelve requests")
            wait_until(lambda: len(visitors()) == 3, "one visitor per host")
            seen.extend(visitors())
            os.kill(seen[0], signal.SIGKILL)
        finally:
            killed.set()

    killer = threading.Thread(target=kill)
    killer.start()
    start = time.monotonic()
    crawl.run_partition(build, "s")
    seconds = time.monotonic() - start
    killer.join()
    record = build.stage("crawl").record("s")
    rows = build.stage("crawl").table(record).to_pylist()
    assert {row["url"] for row in rows} == {web.url(path) for web in webs for path in web.pages}
    assert len(rows) == 3 * 13
    assert len(seen) == 3, "one visitor per host"
    assert seconds >= 0.1 * 13
    asked = [path for web in webs for path in web.asked if path != "/robots.txt"]
    assert len(asked) <= 3 * 13 + 3, "at most what was in the air is asked for again"
    wait_until(lambda: not visitors(), "they end with the crawl")


@pytest.mark.drill(20)
def test_workers_of_a_cluster_share_one_pace(ray):
    @ray.remote
    def take(host: str, times: int) -> float:
        async def taken() -> None:
            limiter = RateLimiter()
            for _ in range(times):
                await asyncio.sleep(await limiter.next_slot(host, 0.3))

        asyncio.run(taken())
        return time.time()

    ray.get([take.remote("other.example", 1), take.remote("other.example", 1)])  # so that both workers are there
    start = time.time()  # a slot is late on a busy machine and never early
    assert max(ray.get([take.remote("shared.example", 4), take.remote("shared.example", 4)])) - start >= 0.3 * 7 - 0.05
    start = time.time()
    asyncio.run(RateLimiter().pause("shared.example", 1.5))
    assert ray.get(take.remote("shared.example", 1)) - start >= 1.45
