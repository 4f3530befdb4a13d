"""Drift: how much a build's distributions differ from those of an earlier build, its baseline.

The measure is the population stability index (PSI) over the report's fixed bins: the sum of (p - q) ln(p / q), where p
and q are the shares of a bin now and before. A bin that is empty on one side counts as half a sample there. By the
usual rule of thumb a PSI below STEADY is not a change, and one above MOVED should be looked at. A sample of n has an
expected PSI of about (bins - 1) / n, so with fewer than FEW samples it is noise, and no gate judges it.

Two things are compared. `compare` sets what a build adds against its baseline: the newest build of an earlier snapshot
in the release that the build is compared with (`pipeline.report.dataset`), unless another one is named. The gate
`max_drift` judges this. `sample_drift` sets the whole dataset with the build against the release without it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from pipeline.errors import StoreError
from pipeline.files.folder import Folder

REPORT_VERSION = 3

STEADY, MOVED = 0.1, 0.25
"""PSI below which a distribution is steady, and from which it has moved; between them it has shifted."""
FEW = 1_000
"""Samples below which a PSI is noise."""
LISTED = 20
"""Most reasons that are listed."""
DOMAIN_SHARE = 0.001
"""Share of the samples below which a new or lost domain is not listed."""


def psi(before: Sequence[int], now: Sequence[int]) -> float:
    """Population stability index of two lists of counts over the same bins; 0 if one list is without counts.

    Raises ValueError for lists of different lengths.
    """
    if len(before) != len(now):
        raise ValueError("counts of different bins")
    if not sum(before) or not sum(now):
        return 0.0
    p, q = (_shares(counts) for counts in (now, before))
    used = [(a, b) for a, b, x, y in zip(p, q, now, before, strict=True) if x or y]  # without bins empty on both sides
    return sum((a - b) * math.log(a / b) for a, b in used)


def _shares(counts: Sequence[int]) -> list[float]:
    """The share of each bin, an empty one taken for half a sample: ln(p / q) is not defined at 0."""
    filled = [max(n, 0.5) for n in counts]
    return [n / sum(filled) for n in filled]


def level(index: float) -> str:
    """The level of a PSI: "steady", "shifted" or "moved"."""
    return "steady" if index < STEADY else "shifted" if index < MOVED else "moved"


def compare(now: dict[str, Any], before: dict[str, Any]) -> dict[str, Any]:
    """Drift between two reports (report.json): the part `drift` of the newer one."""
    reasons = [reasons_of(report) for report in (before, now)]
    return {
        **sample_drift(now, before),
        "baseline": before["build"]["id"],
        "snapshot": before["build"]["snapshot"],
        "reasons": reason_changes(*reasons)[:LISTED],
    }


def sample_drift(now: dict[str, Any], before: dict[str, Any]) -> dict[str, Any]:
    """Drift of the samples alone, between the figures of two builds or of two releases (`dataset.total_of`)."""
    rows = [
        _row(h["name"], h["title"], h["title_zh"], [b["count"] for b in old["bins"]], [b["count"] for b in h["bins"]])
        for h in now["histograms"]
        for old in before["histograms"]
        if h["name"] == old["name"] and [b["label"] for b in h["bins"]] == [b["label"] for b in old["bins"]]
    ]
    for name, title, title_zh, count in (
        ("kinds", "Kinds of primary text", "主文本种类", "primary"),
        ("formats", "Formats as fetched", "原始格式", "count"),
        ("sources", "Sources of samples", "样本来源", "kept"),
    ):
        new, old = ({row["name"]: row[count] for row in report[name]} for report in (now, before))
        names = sorted(new.keys() | old.keys())
        rows.append(_row(name, title, title_zh, [old.get(n, 0) for n in names], [new.get(n, 0) for n in names]))
    if not before["totals"]["kept"] or not now["totals"]["kept"]:
        rows = []  # nothing to compare
    return {
        "samples": [before["totals"]["kept"], now["totals"]["kept"]],
        "steady": STEADY,
        "moved": MOVED,
        "few": FEW,
        "distributions": sorted(rows, key=lambda row: (-row["psi"], row["name"])),
    }


def _row(name: str, title: str, title_zh: str, before: list[int], now: list[int]) -> dict[str, Any]:
    index = round(psi(before, now), 4)
    return {"name": name, "title": title, "title_zh": title_zh, "psi": index, "level": level(index)}


def reasons_of(report: dict[str, Any]) -> dict[str, int]:
    """Number of candidates by reason to drop, in a report.json; "" for kept ones, "known" for those held already."""
    totals = report["totals"]
    known = {"known": totals["known"]} if totals["known"] else {}
    return {"": totals["kept"], **known, **{r["name"]: r["count"] for r in report["reasons"]}}


def reason_changes(a: dict[str, int], b: dict[str, int]) -> list[dict[str, Any]]:
    """Counts and shares of each reason among all candidates in A and B, the largest change of share first.

    a, b: candidates by reason, "" for kept ones, which are listed as "kept". Empty if either has none.
    """
    total_a, total_b = sum(a.values()), sum(b.values())
    if not total_a or not total_b:
        return []
    rows = []
    for name in a.keys() | b.keys():
        before, now = a.get(name, 0), b.get(name, 0)
        share_a, share_b = before / total_a, now / total_b
        rows.append(
            {"name": name or "kept", "before": before, "now": now, "share_before": share_a, "share_now": share_b}
        )
    return sorted(rows, key=lambda row: (-abs(row["share_now"] - row["share_before"]), row["name"]))


def read(out: str, build_id: str = "") -> dict[str, Any] | None:
    """report.json of the build in folder `out`; None if it has none, one of another version, or of another build.

    build_id: of the build that it must be of, if that matters.
    Raises StoreError, with what to do, for one that is damaged: later builds are compared with it.
    """
    folder = Folder(out)
    try:
        report = folder.find_json("report/report.json", None)
    except StoreError as e:
        todo = f"delete the folder {folder.at('report')} and run wenlan-data build again to rewrite the report"
        raise StoreError(e.subject, f"{e.message}; {todo}") from None
    if not isinstance(report, dict) or report.get("report_version") != REPORT_VERSION:
        return None
    return report if build_id in ("", report["build"]["id"]) else None
