"""Section `funnel`: known is a bar of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.report import page

Weeks = tuple[tuple[str, dict[str, Any]], tuple[str, dict[str, Any]]]


def test_known_has_a_bar_a_count_and_a_line_in_the_legend(grown: Weeks, part: Callable[[str, str], str]) -> None:
    (first, _), (second, report) = grown
    dedup = next(row for row in report["funnel"] if row["stage"] == "dedup")
    assert (dedup["seen"], dedup["kept"], dedup["dropped"], dedup["known"]) == (15, 3, 0, 12)
    html = part(second, "funnel")
    assert '<i class="known" style="width:80.0%" title="known: 12"></i>' in html
    assert '<span class="equal">=12</span>' in html
    assert "the dataset has decided on its image already" in html.partition('<ol class="funnel">')[0]
    assert (
        "the dataset has decided on its image already" not in part(first, "funnel").partition('<ol class="funnel">')[0]
    )


def test_every_bar_has_a_colour() -> None:
    css = Path(page.__file__).with_name("templates").joinpath("report.css").read_text("utf-8")
    assert ".flow .known" in css
    assert css.count("--known:") == css.count("--accent:") == 3, "light, dark by the system, dark by the switch"
