"""The dataset that a build is added to: the release to compare with, its builds, and their combined figures.

A build is compared with the newest release that lacks it. That is the newest of all until the build is published, and
stays the same afterwards, whatever is released later. Its number is part of the report's fingerprint.

Bins of histograms are fixed, so the figures of a release are the sums of those of its builds, taken from each
report.json. A build whose report is gone is named (`EarlierRelease.missing`) and left out.

Limits: report.json lists the DOMAINS largest hosts of each build (`pipeline.report.sections.shapes`), so a rare host
may seem new although an earlier build had it.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from data_specs.shard import ShardFiles
from pipeline.report import drift, state
from pipeline.report.words import ranked
from pipeline.store.build import Build
from pipeline.store.dataset import samples_by_split

DOMAINS = 200
"""Hosts that report.json lists; the page shows the first of them."""

Values = dict[str, Any]


@dataclass(frozen=True)
class EarlierBuild:
    """A build of the release before: where it lies, and its shards as the release lists them."""

    build_id: str
    snapshot: str
    out: str
    shards: tuple[ShardFiles, ...]

    @functools.cached_property
    def report(self) -> Values | None:
        """Its report.json; None if that is gone or is of another build."""
        return drift.read(self.out, self.build_id) if self.out else None


@dataclass(frozen=True)
class EarlierRelease:
    """The release that a build is compared with.

    release: its number. created_at: RFC 3339.
    parts: its builds, oldest first; none if its manifest is no longer kept.
    """

    release: int
    created_at: str
    generation: int
    parts: tuple[EarlierBuild, ...]

    def remaining_builds(self, build: Build) -> list[EarlierBuild]:
        """Builds that stay in the release with the new build: all but those whose place it takes."""
        return [part for part in self.parts if self.generation == build.generation and part.snapshot != build.snapshot]

    @property
    def missing(self) -> list[str]:
        """Builds without figures here."""
        return [part.build_id for part in self.parts if part.report is None]

    def remaining_samples(self, build: Build) -> int:
        """Number of samples of the builds that stay."""
        return sum(shard.samples for part in self.remaining_builds(build) for shard in part.shards)

    def earlier_report(self, snapshot: str) -> Values | None:
        """Report of the newest build of an earlier snapshot; None if missing."""
        earlier = (part.report for part in reversed(self.parts) if part.snapshot < snapshot)
        return next((report for report in earlier if report is not None), None)


def earlier_number(build: Build) -> int:
    """Number of the newest release that lacks a build; 0 for none."""
    current = build.store.releases(build.spec.name).latest().current
    if current is None:
        return 0
    if state.manifest_of(build) is None:
        return current.release
    report = drift.read(build.out, build.build_id)
    if report is not None:
        return int((report["dataset"] or {}).get("release", 0))
    first = state.first_release(build)  # its report is gone, and with it what it remembered
    return first - 1 if first else current.release


def earlier_release(build: Build) -> EarlierRelease | None:
    """The release that a build is compared with; None for the first build of a dataset."""
    number = earlier_number(build)
    if not number:
        return None
    releases = build.store.releases(build.spec.name)
    if number not in releases.numbers():
        return EarlierRelease(number, "", build.generation, ())
    manifest = releases.read(number)
    parts = (
        EarlierBuild(own.build_id, own.snapshot, own.out, tuple(s for s in manifest.shards if s.build == own.build_id))
        for own in manifest.builds
    )
    return EarlierRelease(number, manifest.created_at, manifest.generation, tuple(parts))


def totals(shards: Sequence[ShardFiles]) -> Values:
    """Samples by split, shards and the bytes of their tars."""
    samples, size = samples_by_split(shards), sum(shard.tar.bytes for shard in shards)
    return {"samples": samples, "all": sum(samples.values()), "shards": len(shards), "bytes": size}


def total_of(reports: Sequence[Values], name: str) -> Values:
    """The figures of several builds as those of one: what `drift.compare` and the section `dataset` ask of a report.

    reports: figures as report.json has them. A histogram that not all of them have with the same bins is left out.
    """
    histograms = []
    for first in reports[0]["histograms"] if reports else ():
        same = [h for report in reports for h in report["histograms"] if _bins(h) == _bins(first)]
        if len(same) == len(reports):
            counts = [sum(b["count"] for b in bins) for bins in zip(*(h["bins"] for h in same), strict=True)]
            labels = [b["label"] for b in first["bins"]]
            bins = [{"label": label, "count": n} for label, n in zip(labels, counts, strict=True)]
            histograms.append({**first, "total": sum(counts), "bins": bins})
    kept = sum(report["totals"]["kept"] for report in reports)
    return {
        "build": {"id": name, "snapshot": ""},
        "totals": {"kept": kept},
        "histograms": histograms,
        "kinds": _rows(reports, "kinds", "primary"),
        "formats": _rows(reports, "formats", "count"),
        "sources": _rows(reports, "sources", "kept"),
        "image_domains": _rows(reports, "image_domains", "count")[:DOMAINS],
        "reasons": [],
    }


def _bins(histogram: Values) -> tuple[str, list[str]]:
    return histogram["name"], [b["label"] for b in histogram["bins"]]


def _rows(reports: Iterable[Values], part: str, count: str) -> list[Values]:
    total: Counter[str] = Counter()
    for report in reports:
        total.update({row["name"]: row[count] for row in report[part]})
    return [{"name": name, count: n} for name, n in ranked(total, len(total))]
