"""The funnel: what became of every candidate, counted from the union of the stages' decisions.

Each candidate has exactly one row in the decisions: dropped by a stage for a first reason, known because the dataset
holds its image already, or kept by `shard`. So what entered a stage is everything minus what did not pass earlier ones,
and the funnel adds up by construction, seen = kept + dropped + known; `faults` then holds it against what the stages
counted themselves, which is the check that no row was lost or decided twice.

Limits: memory is one number for each (source, stage, reason), and the decisions of a partition whose record does not
say what became of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.records import DropReason
from pipeline.store.build import Build
from pipeline.store.frames import Frames
from pipeline.store.partitions import DECISIONS, REMOVED_LATER, Record
from pipeline.store.stage import in_funnel

UNNAMED = {DropReason.OPT_OUT.value, DropReason.FORGOTTEN.value}
"""Reasons whose URLs and texts are shown to nobody."""

EXPIRED = "gc has deleted what the stages before shard wrote: what they dropped is not in the funnel"


@dataclass(frozen=True, slots=True)
class StageFunnel:
    """One stage: how many entered, left it, were dropped and were known, and the reasons to drop, largest first."""

    stage: str
    seen: int
    kept: int
    dropped: int
    known: int
    reasons: tuple[tuple[str, int], ...]

    @property
    def new(self) -> int:
        """What entered and was not known at this stage: that of which a share may be dropped."""
        return self.seen - self.known


@dataclass(frozen=True)
class Funnel:
    """Counts of one subject (candidates, or captures) by (source, stage, reason); reason "" = kept to the end."""

    counts: dict[tuple[str, str, str], int]

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    @property
    def kept(self) -> int:
        return sum(n for (_, _, reason), n in self.counts.items() if not reason)

    @property
    def known(self) -> int:
        """What the dataset holds already."""
        return sum(n for (_, _, reason), n in self.counts.items() if reason == DropReason.KNOWN.value)

    @property
    def dropped(self) -> int:
        return self.total - self.kept - self.known

    @property
    def drop_share(self) -> float:
        """Dropped share of all, 0 to 1; 1 where nothing entered, since nothing is left either."""
        return self.dropped / self.total if self.total else 1.0

    def sources(self) -> list[str]:
        """Names of sources, the one with most entries first."""
        totals: Counter[str] = Counter()
        for (source, _, _), n in self.counts.items():
            totals[source] += n
        return [name for name, _ in sorted(totals.items(), key=lambda item: (-item[1], item[0]))]

    def of_source(self, source: str) -> Funnel:
        """The funnel of one source."""
        return Funnel({key: n for key, n in self.counts.items() if key[0] == source})

    def reasons(self) -> list[tuple[str, int]]:
        """(reason, count) of all that was dropped, largest first."""
        totals: Counter[str] = Counter()
        for (_, _, reason), n in self.counts.items():
            if reason and reason != DropReason.KNOWN.value:
                totals[reason] += n
        return sorted(totals.items(), key=lambda item: (-item[1], item[0]))

    def stages(self, names: list[str]) -> list[StageFunnel]:
        """One row per stage of `names`, in the order of the build: from all that entered to all that was kept."""
        rows, seen = [], self.total
        for name in names:
            here = Funnel({k: n for k, n in self.counts.items() if k[1] == name and k[2]})
            kept = seen - here.total
            rows.append(StageFunnel(name, seen, kept, here.dropped, here.known, tuple(here.reasons())))
            seen = kept
        return rows


def read_funnels(build: Build) -> tuple[Funnel, Funnel]:
    """(candidates, captures) of a build, from its decisions, as they were counted when they were committed."""
    counts: dict[str, Counter[tuple[str, str, str]]] = {"candidate": Counter(), "capture": Counter()}
    for part in Frames.of(build).parts("decisions"):
        for fate, n in part.fates().items():
            counts[fate.subject][fate.source, fate.stage, fate.reason] += n
    counts["capture"].update(kept_captures(build))
    return Funnel(dict(counts["candidate"])), Funnel(dict(counts["capture"]))


def kept_captures(build: Build) -> dict[tuple[str, str, str], int]:
    """Pages that no stage dropped, which have no Decision: by source, as the last stage that read them counts them."""
    counts = Counter[tuple[str, str, str]]()
    for record in build.stage("extract").records() if "extract" in build.fingerprints else ():
        if "pages" in record.counts:
            source = record.partition.rpartition("-")[0]
            counts[source, "extract", ""] += record.counts["pages"] - record.counts["pages_dropped"]
    read = {source for source, _, _ in counts}
    for record in build.stage("crawl").records() if "crawl" in build.fingerprints else ():
        if record.partition not in read:
            counts[record.partition, "crawl", ""] += record.counts["kept"]
    return {key: n for key, n in counts.items() if n}


def faults(build: Build, candidates: Funnel, captures: Funnel | None = None) -> list[str]:
    """Where the decisions and a stage's own counts differ, one line each; empty for a sound build.

    Compares every stage from extract to shard with its records' seen, kept and dropped; with `captures` also what crawl
    dropped. What a takedown removed from a build that then went on is in no decision, which is no fault. That the
    funnel of an expired build, on which a takedown reports again, lacks what was dropped is one.
    """
    stages = in_funnel(build, "extract", "shard")
    differences = [EXPIRED] if build.expired else []
    extracted = build.stage("extract").records() if "extract" in build.fingerprints else []
    removed = sum(record.counts.get(REMOVED_LATER, 0) for record in extracted)
    for row in candidates.stages([name for name in stages if name in build.fingerprints]):
        records = build.stage(row.stage).records()
        for what in ("seen", "kept", "dropped", "known"):
            if not any(what in record.counts for record in records):
                continue
            counted, decided = sum(record.counts.get(what, 0) for record in records), int(getattr(row, what))
            if not counted - (removed if what in ("seen", "kept") else 0) <= decided <= counted:
                differences.append(f"{row.stage}: its records count {counted:,} {what}, the decisions say {decided:,}")
    if captures is not None and "crawl" in build.fingerprints:
        counted = sum(record.counts["dropped"] for record in build.stage("crawl").records())
        [row] = captures.stages(["crawl"])
        if counted != row.dropped:
            differences.append(f"crawl: its records count {counted:,} dropped, the decisions say {row.dropped:,}")
    return differences


@dataclass(frozen=True, slots=True)
class Reason:
    """A reason for which a stage dropped something: how often, and one example. exact: whether all were counted.

    url, evidence: "" for reasons whose URLs are shown to nobody.
    """

    stage: str
    reason: str
    count: int
    exact: bool
    url: str
    evidence: str


def top_reasons(build: Build, stage: str, most: int = 3, files: int = 20) -> list[Reason]:
    """The most frequent reasons for which a stage dropped something, each with an example.

    The decisions of the first `files` partitions are read; where there are more, counts are extrapolated from these.
    """
    directory = build.stage(stage)
    records = [record for record in directory.records() if _lost(record) and DECISIONS in record.files]
    counts, first = Counter[str](), dict[str, tuple[str, str]]()
    for record in records[:files]:
        rows = directory.table(record, DECISIONS, ["reason", "reasons", "url", "evidence"], [("reason", "!=", "")])
        for reason in rows["reason"].value_counts().to_pylist():
            counts[reason["values"]] += reason["counts"]
            if reason["values"] not in first:
                row = rows.filter(pc.equal(rows["reason"], reason["values"])).slice(0, 1).to_pylist()[0]
                named = not {row["reason"], *row["reasons"]} & UNNAMED
                first[row["reason"]] = (row["url"], row["evidence"]) if named else ("", "")
    counts.pop(DropReason.KNOWN.value, None)
    exact = len(records) <= files
    scale = 1.0 if exact else sum(map(_lost, records)) / sum(map(_lost, records[:files]))
    ranked = sorted(counts.items(), key=lambda entry: (-entry[1], entry[0]))[:most]
    return [Reason(stage, reason, round(n * scale), exact, *first[reason]) for reason, n in ranked]


def _lost(record: Record) -> int:
    """Candidates and pages that a partition dropped."""
    return record.counts.get("dropped", 0) + record.counts.get("pages_dropped", 0)


def examples(
    build: Build, count: int, subject: str = "candidate", stage: str = "", sources: Sequence[str] = ()
) -> list[str]:
    """`count` dropped candidates (or captures), one line each, taken in turn from the reasons there are.

    Of one stage and some sources only, if given. Whoever opted out, or was taken down, is counted but not named.
    Decisions of which none can be among them are not read.
    """
    by_reason: dict[str, list[str]] = {}
    for part in Frames.of(build).parts("decisions"):
        asked = {
            fate.reason
            for fate in part.fates()
            if fate.subject == subject and not fate.kept and stage in ("", fate.stage)
            if not sources or fate.source in sources
        } - {DropReason.KNOWN.value}
        if all(len(by_reason.get(reason, ())) == count or reason in UNNAMED & by_reason.keys() for reason in asked):
            continue
        table = part.table()
        wanted = pc.and_(pc.equal(table["subject"], subject), pc.invert(table["kept"]))
        wanted = pc.and_(wanted, pc.not_equal(table["reason"], DropReason.KNOWN.value))
        if stage:
            wanted = pc.and_(wanted, pc.equal(table["stage"], stage))
        if sources:
            wanted = pc.and_(wanted, pc.is_in(table["source"], pa.array(sources, pa.string())))
        for row in table.filter(wanted).slice(0, 1_000).to_pylist():
            lines = by_reason.setdefault(row["reason"], [])
            if len(lines) < count and not {*row["reasons"], row["reason"]} & UNNAMED:
                text = f" {row['text'][:40]!r}" if row["text"] else ""
                where = f"{row['stage']}/{row['reason']}: {row['url'][:120]}"
                lines.append(f"{where}{text} {row['evidence'][:80]}".rstrip())
    picked: list[str] = []
    while len(picked) < count and any(by_reason.values()):
        for lines in by_reason.values():
            if lines and len(picked) < count:
                picked.append(lines.pop(0))
    return picked
