"""frontier: what it counts on the way is what its file says. Kills and limits: tests/pipeline/stages/test_crawl.py."""

from __future__ import annotations

import random
from pathlib import Path

from pipeline.records import Capture, DropReason
from pipeline.web.frontier import Frontier


def test_figures_of_progress_are_those_of_the_file_whatever_happens_and_after_a_restart(tmp_path: Path) -> None:
    dice, images = random.Random(7), 0
    with Frontier(tmp_path, 200, {"software": "test"}) as frontier:
        frontier.add([f"http://a.cn/{i}" for i in range(20)], depth=0)
        for step in range(120):
            page = frontier.next("a.cn")
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
