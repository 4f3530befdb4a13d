"""The funnel: the outcome of every candidate, counted from the decisions of all stages.

Each candidate has exactly one row in the decisions: dropped by a stage for a first reason, known because the dataset
holds its image already, or kept by `shard`. So what entered a stage is everything minus what did not pass earlier ones,
and the funnel adds up by construction, seen = kept + dropped + known; `faults` then holds it against what the stages
counted themselves, which is the check that no row was lost or decided twice.

Limits: memory is one number for each (source, stage, reason).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.rows.account import Account
from pipeline.rows.decisions import DropReason
from pipeline.store.build import Build, in_funnel
from pipeline.store.commits import REMOVED_LATER
from pipeline.store.sql import Tables

Counts = dict[tuple[str, str, str], int]

UNNAMED = {DropReason.OPT_OUT.value, DropReason.FORGOTTEN.value}
"""Reasons whose URLs and texts are never shown."""

EXPIRED = "gc has deleted the output of the stages before shard: the funnel does not show what they dropped"


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
        """Number that entered and was not known at this stage: a share of these may be dropped."""
        return self.seen - self.known


@dataclass(frozen=True)
class Funnel:
    """Counts of one subject (candidates, or captures) by (source, stage, reason); reason "" = kept to the end."""

    counts: Counts

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    @property
    def kept(self) -> int:
        return sum(n for (_, _, reason), n in self.counts.items() if not reason)

    @property
    def known(self) -> int:
        """Number that the dataset holds already."""
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
            own = Funnel({k: n for k, n in self.counts.items() if k[1] == name and k[2]})
            kept = seen - own.total
            rows.append(StageFunnel(name, seen, kept, own.dropped, own.known, tuple(own.reasons())))
            seen = kept
        return rows


def read_funnels(build: Build) -> tuple[Funnel, Funnel]:
    """(candidates, captures) of a build."""
    with Tables.of(build) as tables:
        return count(build, tables)


def count(build: Build, tables: Tables) -> tuple[Funnel, Funnel]:
    """Like `read_funnels`, of tables that are open already."""
    counts: dict[str, Counts] = {"candidate": {}, "capture": kept_captures(build)}
    for row in tables.rows("SELECT subject, source, stage, reason, count(*) AS count FROM decisions GROUP BY ALL"):
        counts[row["subject"]][row["source"], row["stage"], row["reason"]] = row["count"]
    return Funnel(counts["candidate"]), Funnel(counts["capture"])


def kept_captures(build: Build) -> Counts:
    """Pages that no stage dropped, without a Decision: by source, as the last stage that read them counts them."""
    counts = Counter[tuple[str, str, str]]()
    for record in build.records("extract"):
        if "pages" in record.counts:
            source = record.partition.rpartition("-")[0]
            counts[source, "extract", ""] += record.counts["pages"] - record.counts["pages_dropped"]
    read = {source for source, _, _ in counts}
    for record in build.records("crawl"):
        if record.partition not in read:
            counts[record.partition, "crawl", ""] += record.counts["kept"]
    return {key: n for key, n in counts.items() if n}


def accounts(build: Build) -> dict[str, Account]:
    """Accounts by the name of the source; empty before extract is finished, and once it expired."""
    reduced = build.stage("extract").find_reduced() if "extract" in build.fingerprints else None
    return {name: Account.of_json(values) for name, values in (reduced or {}).items()}


def faults(build: Build, candidates: Funnel, captures: Funnel | None = None) -> list[str]:
    """Differences between the decisions and a stage's own counts, one line each; empty for a sound build.

    Compares every stage from extract to shard with its records' seen, kept, dropped and known; with `captures` also
    what crawl dropped. What a takedown removed from a build that then went on is in no decision, which is not a fault.
    That the funnel of an expired build, on which a takedown reports again, lacks what was dropped is one.
    """
    stages = [name for name in in_funnel(build, "extract", "shard") if name in build.fingerprints]
    rows: list[tuple[StageFunnel, tuple[str, ...]]] = [
        (row, ("seen", "kept", "dropped", "known")) for row in candidates.stages(stages)
    ]
    rows += [] if captures is None else [(row, ("dropped",)) for row in captures.stages(["crawl"])]
    differences = [EXPIRED] if build.expired else []
    removed = build.counted("extract", REMOVED_LATER)
    for row, names in rows:
        for what in names:
            if not any(what in record.counts for record in build.records(row.stage)):
                continue
            noted, decided = build.counted(row.stage, what), int(getattr(row, what))
            if not noted - (removed if what in ("seen", "kept") else 0) <= decided <= noted:
                differences.append(f"{row.stage}: its records count {noted:,} {what}, but its decisions {decided:,}")
    return differences


@dataclass(frozen=True, slots=True)
class Reason:
    """A reason for which a stage dropped something: how often, and one example.

    url, evidence: "" for reasons whose URLs are never shown.
    """

    stage: str
    reason: str
    count: int
    url: str
    evidence: str


_MAY_NAME = f"NOT list_has_any(list_append(reasons, reason), {sorted(UNNAMED)})"


def top_reasons(build: Build, stage: str = "", limit: int = 3, sources: Sequence[str] = ()) -> list[Reason]:
    """The most frequent reasons for which something was dropped, each with its first example; of a stage and of some
    sources, if given."""
    where = "(? = '' OR stage = ?) AND (len(?::VARCHAR[]) = 0 OR list_contains(?::VARCHAR[], source))"
    values = [stage, stage, list(sources), list(sources)]
    largest = (
        f"SELECT any_value(stage) AS stage, reason, count(*) AS count FROM decisions WHERE {where} "
        f"AND reason NOT IN ('', '{DropReason.KNOWN.value}') GROUP BY reason ORDER BY count DESC, reason LIMIT ?"
    )
    first = f"SELECT url, evidence FROM decisions WHERE {where} AND reason = ? AND {_MAY_NAME} LIMIT 1"
    with Tables.of(build) as tables:
        reasons = []
        for row in tables.rows(largest, [*values, limit]):
            example = tables.rows(first, [*values, row["reason"]]) or [{"url": "", "evidence": ""}]
            reasons.append(Reason(**row, **example[0]))
    return reasons
