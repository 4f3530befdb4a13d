"""Section `totals`: the tiles add up."""

from __future__ import annotations

import re
from typing import Any

Weeks = tuple[tuple[str, dict[str, Any]], tuple[str, dict[str, Any]]]


def test_the_tiles_add_up(grown: Weeks) -> None:
    for html, report in grown:
        totals = report["totals"]
        assert totals["candidates"] == totals["kept"] + totals["dropped"] + totals["known"]
        tiles = html.partition('<section class="tiles"')[2].partition("</section>")[0]
        numbers = [int(n) for n in re.findall(r"<b>(\d+)</b>", tiles)]
        known = [totals["known"]] if totals["known"] else []
        head = [totals["candidates"], totals["kept"], *known, totals["dropped"]]
        splits = [] if report["dataset"] else [split["samples"] for split in report["splits"]]
        assert numbers == [*head, *splits, report["duplicates"]]
    assert "new samples" in grown[1][0]
    assert "samples kept" in grown[0][0]
