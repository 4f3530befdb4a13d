"""Drift: how far a build's distributions have moved from those of an earlier one, its baseline.

The measure is the population stability index over the report's fixed bins: sum of (p - q) ln(p / q), p and q a bin's
shares now and before. A bin that is empty on one side counts as half a sample there. By the field's rule of thumb below
STEADY nothing has happened, above MOVED somebody should look; a sample of n has an expected index of about
(bins - 1) / n, so below FEW samples it is noise and no gate judges it.

The baseline is the newest published build of the same dataset with an earlier snapshot, unless one is named.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from pipeline.files.folder import Folder
from pipeline.report.diff import moved
from pipeline.store.build import Build

STEADY, MOVED = 0.1, 0.25
FEW = 1_000
LISTED = 20
DOMAIN_SHARE = 0.001
"""Of the samples: a domain below it is no news."""


def psi(before: Sequence[int], now: Sequence[int]) -> float:
    """Population stability index of two rows of counts over the same bins; 0 where one is empty."""
    if len(before) != len(now):
        raise ValueError("counts of different bins")
    if not sum(before) or not sum(now):
        return 0.0
    mine, theirs = ([max(n, 0.5) for n in counts] for counts in (now, before))
    p, q = ([n / sum(counts) for n in counts] for counts in (mine, theirs))
    used = [(a, b) for a, b, x, y in zip(p, q, now, before, strict=True) if x or y]
    return sum((a - b) * math.log(a / b) for a, b in used)


def level(index: float) -> str:
    """steady, shifted or moved."""
    return "steady" if index < STEADY else "shifted" if index < MOVED else "moved"


def compare(now: dict[str, Any], before: dict[str, Any]) -> dict[str, Any]:
    """Drift of a report's figures (report.json's form) against those of another."""
    rows = [
        _row(h["name"], h["title"], h["title_zh"], [b["count"] for b in old["bins"]], [b["count"] for b in h["bins"]])
        for h in now["histograms"]
        for old in before["histograms"]
        if h["name"] == old["name"] and [b["label"] for b in h["bins"]] == [b["label"] for b in old["bins"]]
    ]
    for name, title, title_zh, count in (
        ("kinds", "Kinds of primary texts", "主文本种类", "primary"),
        ("formats", "Formats as fetched", "原始格式", "count"),
        ("sources", "Sources of samples", "样本来源", "kept"),
    ):
        mine, theirs = ({row["name"]: row[count] for row in report[name]} for report in (now, before))
        names = sorted(mine.keys() | theirs.keys())
        rows.append(_row(name, title, title_zh, [theirs.get(n, 0) for n in names], [mine.get(n, 0) for n in names]))
    reasons = [{"": r["totals"]["kept"], **{x["name"]: x["count"] for x in r["reasons"]}} for r in (before, now)]
    if not before["totals"]["kept"] or not now["totals"]["kept"]:
        rows = []  # nothing to compare
    return {
        "baseline": before["build"]["id"],
        "snapshot": before["build"]["snapshot"],
        "samples": [before["totals"]["kept"], now["totals"]["kept"]],
        "steady": STEADY,
        "moved": MOVED,
        "distributions": sorted(rows, key=lambda row: (-row["psi"], row["name"])),
        "domains": {"new": _domains(now, before), "lost": _domains(before, now)},
        "reasons": moved(*reasons)[:LISTED],
    }


def _row(name: str, title: str, title_zh: str, before: list[int], now: list[int]) -> dict[str, Any]:
    index = round(psi(before, now), 4)
    return {"name": name, "title": title, "title_zh": title_zh, "psi": index, "level": level(index)}


def _domains(these: dict[str, Any], those: dict[str, Any]) -> list[dict[str, Any]]:
    """Domains of images in one report that the other does not list, with enough samples to matter."""
    known, total = {row["name"] for row in those["image_domains"]}, max(1, these["totals"]["kept"])
    found = [row for row in these["image_domains"] if row["name"] not in known and row["count"] / total >= DOMAIN_SHARE]
    return found[:LISTED]


def baseline_of(build: Build) -> dict[str, Any] | None:
    """The report of the newest published build of the same dataset with an earlier snapshot; None if there is none."""
    for known in reversed(build.store.registered()):
        if known["name"] == build.spec.name and known["snapshot"] < build.snapshot:
            report = read(known["out"])
            if report is not None:
                return report
    return None


def read(out: str) -> dict[str, Any] | None:
    """report.json of a build's folder, if it has one."""
    folder = Folder(out)
    found: dict[str, Any] | None = (
        folder.read_json("report/report.json") if folder.exists("report/report.json") else None
    )
    return found
