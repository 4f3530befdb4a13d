"""Section `totals`: the tiles add up."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path
from types import ModuleType
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


def test_texts_held_apart_say_what_they_cost(tmp_path: Path, synthetic: ModuleType, grown: Weeks) -> None:
    html, report = grown[0]
    assert "held_apart" not in report
    assert 'id="held-apart"' not in html
    weeks = importlib.import_module("tests.weeks").Weeks(tmp_path, synthetic.encode)
    spec = weeks.spec(range(14), shards={"dev_share": 0.3, "val_share": 0.3, "apart": "texts"})
    for number, path in enumerate(sorted(tmp_path.glob("pictures-*/*.txt"))):
        path.write_text(("红色的花", "海边的日落")[number % 2], "utf-8")
    build = weeks.build_again("2026-01-01", spec)
    report = json.loads((Path(build.out) / "report" / "report.json").read_bytes())["held_apart"]
    counts = build.stage("leaders").record("all").counts
    assert report["moved"]
    assert sum(move["pairs"] for move in report["moved"]) == sum(n for c, n in counts.items() if c.startswith("moved_"))
    assert (report["texts"], report["dropped"]) == (counts["texts_left_out"], 0)
    html = (Path(build.out) / "report" / "index.html").read_text("utf-8")
    line = html.partition('<p class="muted" id="held-apart">')[2].partition("</p>")[0]
    for move in report["moved"]:
        assert f"{move['from']} → {move['to']} {move['pairs']}" in line
