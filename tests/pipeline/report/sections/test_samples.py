"""Section `samples`: what is new comes first, under its own heading."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from pipeline.report.pictures import KNOWN

Weeks = tuple[tuple[str, dict[str, Any]], tuple[str, dict[str, Any]]]


def test_the_new_ones_come_first_and_all_of_them_are_shown(grown: Weeks, part: Callable[[str, str], str]) -> None:
    _, (second, report) = grown
    html = part(second, "samples")
    fresh, _, rest = html.partition("Dropped, or known")
    assert "New in this build" in fresh
    assert fresh.count("<img") == fresh.count("is-kept") == report["totals"]["kept"] == 3
    assert set(re.findall(r'data-reason="([^"]*)"', rest)) == {"known"}
    assert rest.count("is-known") == rest.count("<img") == min(12, KNOWN)
    assert '<option value="known"' in html


def test_the_first_build_of_a_dataset_has_kept_samples(grown: Weeks, part: Callable[[str, str], str]) -> None:
    (first, _), _ = grown
    html = part(first, "samples")
    assert "Samples, kept and dropped" in html
    assert "New in this build" not in html
    assert html.count("is-kept") == 12
