"""Section `shapes`: the lines of the baseline across the bars."""

from __future__ import annotations

from typing import Any

from pipeline.report.sections.shapes import shares_before


def histogram(name: str, **counts: int) -> dict[str, Any]:
    bins = [{"label": label, "count": count} for label, count in counts.items()]
    return {"name": name, "total": sum(counts.values()), "bins": bins}


def test_a_line_is_drawn_where_the_baseline_has_the_same_bins_and_something_in_them() -> None:
    now = [histogram("same", a=1, b=2), histogram("other", a=1, b=2), histogram("empty", a=1), histogram("new", a=1)]
    before = [histogram("same", a=1, b=3), histogram("other", a=1, c=2), histogram("empty", a=0), histogram("old", a=1)]
    assert shares_before(now, {"histograms": before}) == {"same": [0.25, 0.75]}
    assert shares_before(now, None) == {}
