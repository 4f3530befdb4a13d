"""Tally: what the report counts over all rows of a build, by groups of partitions, each a small summary.

A pass goes over the files of partitions, one after another, and keeps counts, bins, counters that are cut, or rows with
the smallest keys. Its state is JSON values, and tables of what may be many. States of neighbouring groups, merged in
order, are the state of all: so the report is the same whatever the groups.

Stage `tally` makes the summaries of a large build in parallel and commits them. The report takes these, and makes all
others itself, by the same function (`summary`). It passes over what is of other files than there are now, or was made
for other takedowns.

Limits: memory is what the passes hold (`fates`, `figures`). A build's records are all read to cut it into groups.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol

from pipeline.detectors import detector_ids
from pipeline.report.fates import Fates
from pipeline.report.figures import WORD_SAMPLES, Figures, KnownHosts
from pipeline.report.limits import Charts
from pipeline.report.marked import Marked
from pipeline.report.removed import RemovedTexts
from pipeline.report.scored import ScoredPairs
from pipeline.store.build import Build, sha256_of
from pipeline.store.frames import decisions_of
from pipeline.store.partitions import Record
from pipeline.store.takedowns import Takedowns

VERSION = 1
"""Of what passes keep, and how summaries hold it."""

GROUP = 2_000_000
"""Rows of a group, where single partitions do not have more; a sample counts for SAMPLE, a partition for FILE more."""

SAMPLE, FILE = 6, 300
"""Rows that take as long as one sample, with its texts, hosts and regions; and as opening the files of a partition."""

State = dict[str, Any]
"""JSON values; some may be tables."""


class Pass(Protocol):
    """What goes over the files of all partitions."""

    def add(self, build: Build, record: Record) -> None:
        """Count what a partition committed, if it is of a stage that the pass looks at."""

    def state(self) -> State:
        """All that it has counted, from which `merge` makes it again."""

    def merge(self, state: State) -> None:
        """Add the state of what comes after all that was counted so far."""


@dataclass(frozen=True)
class Tally:
    """The passes of one report."""

    fates: Fates
    kept: Figures
    hosts: KnownHosts
    removed: RemovedTexts
    limits: Charts
    scored: ScoredPairs
    marked: Marked

    @staticmethod
    def of(build: Build, takedowns: Takedowns, shards: int) -> Tally:
        """With nothing counted. shards: of the whole build."""
        kept = Figures(detector_ids(build.spec), max(1, WORD_SAMPLES // max(1, shards)))
        charts = Charts(build.spec, {histogram.name for histogram in kept.histograms})
        fates = Fates(build.spec.seed, build.spec.report.pictures, takedowns)
        marked = Marked(None if build.spec.watermark is None else build.spec.watermark.max_correlation)
        return Tally(fates, kept, KnownHosts(), RemovedTexts(), charts, ScoredPairs(build), marked)

    def passes(self) -> dict[str, Pass]:
        """By their names."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def merge(self, states: dict[str, State]) -> None:
        """Add what `summary` returned, or `read`."""
        for name, own in self.passes().items():
            own.merge(states[name])


@dataclass(frozen=True)
class Group:
    """Partitions number first to last of a stage, by their names.

    shards: of the whole build. mark: of the files that are counted.
    """

    stage: str
    first: int
    last: int
    shards: int
    mark: str

    def __str__(self) -> str:
        return f"{self.stage}-{self.first:07d}-{self.last:07d}-{self.shards}-{self.mark}"

    @staticmethod
    def named(name: str) -> Group:
        stage, first, last, shards, mark = name.split("-")
        return Group(stage, int(first), int(last), int(shards), mark)


def rows_of(record: Record, read: Sequence[str]) -> int:
    """About how many rows passes read of a partition. read: stages whose rows are read, beside decisions."""
    decided = record.fates
    decisions = 0 if decided is None else sum(count for _, count in decided.rows)
    if record.stage == "shard":
        return decisions + SAMPLE * record.counts.get("kept", 0)
    rows = max(record.counts.get(name, 0) for name in ("kept", "pairs", "compared"))
    return decisions + (rows if record.stage in read else 0)


def groups(build: Build) -> list[Group]:
    """All partitions that a pass looks at, in groups of about GROUP rows, in order."""
    read = ("extract", "admit", "dedup", "curate.score", "curate.watermark", "shard")
    shards = len(build.packed()) if "shard" in build.fingerprints else 0
    found: list[Group] = []
    for name in build.fingerprints:
        records = build.stage(name).records()
        if not any(name in read or decisions_of(build, record) for record in records):
            continue
        first, rows = 0, 0
        for number, record in enumerate(records):
            own = FILE + rows_of(record, read)
            if number > first and rows + own > GROUP:
                found.append(_group(name, records, first, number, shards))
                first, rows = number, 0
            rows += own
        found.append(_group(name, records, first, len(records), shards))
    return found


def _group(stage: str, records: list[Record], first: int, end: int, shards: int) -> Group:
    files = [[ref.sha256 for _, ref in sorted(record.files.items())] for record in records[first:end]]
    return Group(stage, first, end - 1, shards, sha256_of(files)[:16])


def summary(
    build: Build, group: Group, takedowns: Takedowns, advance: Callable[[], None] = lambda: None
) -> dict[str, State]:
    """The states of all passes over a group, by their names. advance: called after each partition."""
    stage, tally = build.stage(group.stage), Tally.of(build, takedowns, group.shards)
    partitions = stage.partitions()[group.first : group.last + 1]
    for partition in partitions:
        record = stage.record(partition)
        for own in tally.passes().values():
            own.add(build, record)
        advance()
    return {name: own.state() for name, own in tally.passes().items()}


def tallied(build: Build, takedowns: Takedowns) -> Tally:
    """All that there is to count of a build."""
    own = groups(build)
    tally = Tally.of(build, takedowns, own[0].shards if own else 0)
    for group in own:
        tally.merge(summary(build, group, takedowns))
    return tally
