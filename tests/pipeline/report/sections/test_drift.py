"""Section `drift`: the whole dataset first, then what is new."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Weeks = tuple[tuple[str, dict[str, Any]], tuple[str, dict[str, Any]]]


def test_the_whole_dataset_comes_first_and_few_samples_are_said_to_be_few(
    grown: Weeks, part: Callable[[str, str], str]
) -> None:
    (first, _), (second, report) = grown
    assert part(first, "drift") == ""
    html = part(second, "drift")
    whole, fresh = html.index("The whole dataset"), html.index("What is new, on its own")
    assert whole < fresh
    assert report["drift"]["samples"] == [12, 3]
    assert report["dataset"]["drift"]["samples"] == [12, 15]
    assert "no gate judges it" in html[fresh:]
    names = {row["name"] for row in report["drift"]["distributions"]}
    assert names == {row["name"] for row in report["dataset"]["drift"]["distributions"]}
    worst = [max(row["psi"] for row in of["distributions"]) for of in (report["dataset"]["drift"], report["drift"])]
    assert worst[0] < worst[1], "three of fifteen move the whole less than themselves"
