"""Section `dataset`: before, new and after; hosts that are new, and those that were not seen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from pipeline.report.sections.dataset import LISTED, new_of
from pipeline.rows.records import sha256_hex
from pipeline.store.takedowns import Takedowns

Weeks = tuple[tuple[str, dict[str, Any]], tuple[str, dict[str, Any]]]


@pytest.mark.drill(2)
def test_before_and_after_stand_under_each_other(grown: Weeks, part: Callable[[str, str], str]) -> None:
    (first, _), (second, report) = grown
    assert part(first, "dataset") == ""
    html = part(second, "dataset")
    rows = [html.partition(f'<tr class="{name}">')[2].partition("</tr>")[0] for name in ("before", "own", "after")]
    for row, total in zip(rows, ("12", "+3", "15"), strict=True):
        assert f"<b>{total}</b>" in row
    after = report["dataset"]["after"]["samples"]
    assert [rows[2].count(f'<td class="num">{n}</td>') >= 1 for n in after.values()] == [True] * 3
    assert f"Compared with release</span> {report['dataset']['release']}" in html


@pytest.mark.slow
def test_what_was_known_counts_as_seen(grown: Weeks) -> None:
    _, (_, report) = grown
    assert report["dataset"]["hosts"] == {"new": [], "vanished": []}


def test_hosts_are_listed_largest_first_without_those_that_were_taken_down() -> None:
    counted = Counter({"a.example": 5, "b.example": 9, "c.example": 1, "": 50})
    others = Counter({"c.example": 1})
    rows = new_of(counted, others, Takedowns())
    assert rows == [{"name": "b.example", "count": 9}, {"name": "a.example", "count": 5}]
    takedowns = Takedowns(frozenset({sha256_hex("b.example")}))
    assert [row["name"] for row in new_of(counted, others, takedowns)] == ["a.example"]
    assert new_of(counted, Counter(), Takedowns(), total=8_000) == [{"name": "b.example", "count": 9}]
    assert len(new_of(Counter({f"{n}.example": n + 1 for n in range(50)}), Counter(), Takedowns())) == LISTED
