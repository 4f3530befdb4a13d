"""frontier: figures are those of its file, one process holds it, and a torn WARC is cut where it is whole."""

from __future__ import annotations

import io
import random
import time
from pathlib import Path

import pytest
from warcio.archiveiterator import ArchiveIterator

from pipeline.errors import StoreError
from pipeline.rows.decisions import DropReason
from pipeline.rows.records import Capture
from pipeline.web import frontier
from pipeline.web.frontier import Frontier


def test_figures_of_progress_are_those_of_the_file_whatever_happens_and_after_a_restart(tmp_path: Path) -> None:
    dice, images = random.Random(7), 0
    with Frontier(tmp_path, 200, {"software": "test"}) as frontier:
        frontier.add([f"http://a.cn/{i}" for i in range(20)], depth=0)
        for step in range(120):
            page = frontier.next_page("a.cn")
            if page is None:
                break
            links = [f"http://a.cn/{dice.randrange(300)}" for _ in range(3)]
            fate = dice.choice(["keep", "keep", "drop", "move", "refuse", "again"])
            if fate == "keep":
                capture = Capture(page.url, 200, "2026-01-01T00:00:00Z", "text/html", b"<p>x</p>")
                frontier.keep(page, capture, links, likeness=str(step), images=step % 4)
                images += step % 4
            elif fate == "drop":
                frontier.drop(page, DropReason.HTTP_STATUS, "status 404", links)
            elif fate == "move":
                frontier.move(page, f"http://a.cn/moved/{step}", 301)
            elif fate == "refuse":
                frontier.refuse(page.url, DropReason.UNREADABLE, "why")
                frontier.refuse(f"http://a.cn/map{step}.xml", DropReason.UNREADABLE, "why")
            else:
                frontier.retry_later(page)
            totals = frontier.totals()
            assert (frontier.waiting, frontier.dropped) == (totals.waiting, totals.dropped), fate
        assert totals.kept > 10
        assert totals.dropped > 10
        frontier.reopen([page] if page else [])
        assert frontier.images == images > 0
    with Frontier(tmp_path, 200, {"software": "test"}) as again:
        totals = again.totals()
        assert (again.waiting, again.dropped, again.images) == (totals.waiting, totals.dropped, images)


def test_two_processes_never_go_on_with_one_crawl(tmp_path, monkeypatch):
    monkeypatch.setattr(frontier, "LOCK_WAIT_S", 0.2)
    with frontier.Frontier(tmp_path, 10, {}), pytest.raises(StoreError, match="another process is running"):
        frontier.Frontier(tmp_path, 10, {})
    with frontier.Frontier(tmp_path, 10, {}):
        pass  # free again


def test_a_torn_record_at_the_end_of_the_warc_is_cut_off(tmp_path):
    from pipeline.rows.records import Capture
    from pipeline.web.frontier import Frontier

    def capture(url: str) -> Capture:
        return Capture(url, 200, "2026-01-01T00:00:00Z", "text/html", b"body of " + url.encode())

    with Frontier(tmp_path, 10, {"software": "t"}) as frontier:
        frontier.add(["http://a.cn/1", "http://a.cn/2", "http://a.cn/3"], 0)
        for name in ("1", "2"):
            page = frontier.next_page("a.cn")
            frontier.keep(page, capture(f"http://a.cn/{name}"), [])
    whole = frontier.warc.read_bytes()
    for damage in (whole + whole[-40:], whole[:-7]):
        frontier.warc.write_bytes(damage)
        with Frontier(tmp_path, 10, {"software": "t"}) as frontier:
            while (page := frontier.next_page("a.cn")) is not None:
                frontier.keep(page, capture(page.url), [])
        entries = ArchiveIterator(io.BytesIO(frontier.warc.read_bytes()), check_digests="raise")
        urls = [entry.rec_headers.get_header("WARC-Target-URI") for entry in entries]
        assert sorted(filter(None, urls)) == [f"http://a.cn/{i}" for i in (1, 2, 3)]


def test_the_hours_of_a_crawl_that_was_killed_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1_800_000_000.0]
    monkeypatch.setattr(time, "time", lambda: now[0])
    killed = Frontier(tmp_path, 200, {})
    now[0] += 3 * 3600
    for opened in (killed._out, killed._db, killed._lock):  # as its process ends
        opened.close()
    with Frontier(tmp_path, 200, {}) as frontier:
        assert frontier.hours() == pytest.approx(3)
