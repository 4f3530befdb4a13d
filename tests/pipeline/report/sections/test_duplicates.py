"""Section `duplicates`: the sizes of groups."""

from __future__ import annotations

from pipeline.report.sections.duplicates import cluster_sizes


def test_groups_are_counted_by_their_size() -> None:
    sizes = cluster_sizes({2: 2, 3: 1, 9: 1, 10: 1, 11: 1, 500: 1})
    assert sizes["total"] == 7
    counted = {b["label"]: b["count"] for b in sizes["bins"] if b["count"]}
    assert counted == {"2": 2, "3": 1, "8–10": 2, "11–20": 1, "101+": 1}
