"""Stage choose: filters of pairs judge their scores: a band, or the best share of each source.

Judges what `pipeline.stages.score` has scored, reads no picture, and is done anew in seconds for another limit. The
driver adds the counts of all partitions up, finds where the share of each source ends, and leaves that for the tasks;
of equal scores the smaller id is kept. So a build is the same on any number of workers, and a larger share keeps all
that a smaller one kept.

Limits: a share is one of this build's own pairs (`pipeline.filters.pair_score`). A leader that is dropped takes its
cluster with it, as in `screen`. Finding the end of a share holds the ids of the pairs that have exactly that score.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from data_specs.shard import PAIR_SCORE, SPLITS
from pipeline import pulse
from pipeline.filters import Drop, PairFilter, pair_filters
from pipeline.records import Decision, DropReason, candidates_of, drop
from pipeline.stages._survivors import SCORED_FILES, split_file, survivors_in, without_scored
from pipeline.store import pair_scores
from pipeline.store.build import Build
from pipeline.store.pair_scores import COUNTS, COUNTS_SCHEMA, UNITS, UNSCORED, Counts, Cut, Cuts, counted, in_units
from pipeline.store.stage import Stage, StageFile

ROW_GROUP = 1_000


def token(build: Build) -> Any:
    filters = pair_filters(build.spec)
    return [f.identity() for f in filters] if filters else None


def partitions(build: Build) -> list[str]:
    """Those of fetch; finds the ends of shares for the tasks."""
    filters = pair_filters(build.spec)
    if not filters:
        return []
    pair_scores.write(build, _cuts(build, filters))
    return build.stage("fetch").partitions()


def run_partition(build: Build, partition: str) -> None:
    """Kept pairs of each split in a fetch partition's range, a Decision for each other, and counts of what is kept."""
    filters = pair_filters(build.spec)
    cuts = pair_scores.read(build) or _cuts(build, filters)
    decisions, counts, after = list[Decision](), Counter[str](), list[tuple[str, int]]()
    with build.stage("choose").attempt(partition) as attempt:
        for split in SPLITS:
            rows = survivors_in(build, partition, split, before="choose")
            pulse.expect(rows.num_rows + counts["seen"], done=counts["seen"])
            drops = list(_judged(rows, filters, cuts, after))
            kept, gone = (pa.array([bool(own) is is_gone for own in drops], pa.bool_()) for is_gone in (False, True))
            dropped = zip(candidates_of(rows.filter(gone)), filter(None, drops), strict=True)
            for candidate, own in dropped:
                reasons = tuple(dict.fromkeys(fault.reason.value for fault in own))
                evidence = "; ".join(dict.fromkeys(fault.evidence for fault in own))
                decisions.append(drop(candidate, "choose", own[0].reason, evidence, reasons=reasons))
            attempt.write_table(split_file(split), rows.filter(kept), row_group_size=ROW_GROUP)
            counts[split] = drops.count([])
            counts["seen"] += rows.num_rows
        attempt.write_table(COUNTS, counted(*zip(*after, strict=True)) if after else COUNTS_SCHEMA.empty_table())
        attempt.decide(decisions)
        counts["dropped"] = len(decisions)
        counts["kept"] = counts["seen"] - counts["dropped"]
        attempt.commit(dict(counts))


def _judged(
    rows: pa.Table, filters: Sequence[PairFilter], cuts: Cuts, after: list[tuple[str, int]]
) -> Iterator[list[Drop]]:
    """Every reason to drop each row, none for those kept, whose source and score are added to `after`."""
    units, there = in_units(rows[PAIR_SCORE.name])
    ids, sources = rows["candidate_id"].to_pylist(), rows["source"].to_pylist()
    for name, source, own, is_there in zip(ids, sources, units.tolist(), there.tolist(), strict=True):
        pulse.advance()
        if not is_there:
            yield [Drop(DropReason.UNREADABLE, UNSCORED)]
            continue
        judged = [judge(f, of_f.get(source), source, own, name) for f, of_f in zip(filters, cuts, strict=True)]
        faults = [fault for fault in judged if fault is not None]
        if not faults:
            after.append((source, own))
        yield faults


def judge(pair_filter: PairFilter, cut: Cut | None, source: str, units: int, candidate_id: str) -> Drop | None:
    """What a filter says of a pair: of its score, and whether it is among the share of its source."""
    fault = pair_filter.judge(units / UNITS)
    if fault is None and cut is not None and not cut.keeps(units, candidate_id):
        share = f"the best {pair_filter.top_share:.4g} of {source} have at least {cut.score:.4f}"
        return Drop(DropReason.BELOW_TOP_SHARE, f"pair score {units / UNITS:.4f}; {share}")
    return fault


def _cuts(build: Build, filters: Sequence[PairFilter]) -> Cuts:
    """Where the share of each source ends, for every filter; nothing for one that keeps all."""
    counts: Counts = {}
    if any(f.top_share < 1 for f in filters):
        counts = pair_scores.summed(build, "score")
    cuts: Cuts = []
    for own in filters:
        of_filter: dict[str, Cut] = {}
        for source, of_source in sorted(counts.items()) if own.top_share < 1 else ():
            within = {units: pairs for units, pairs in of_source.items() if own.judge(units / UNITS) is None}
            if within:
                units, ties = pair_scores.end_of_share(within, own.top_share)
                of_filter[source] = Cut(units, pair_scores.nth_id(build, "score", SPLITS, source, units, ties))
        cuts.append(of_filter)
    return cuts


STAGE = Stage(
    name="choose",
    zh="择优",
    folder="chosen",
    inputs=("score",),
    version=1,
    token=token,
    partitions=partitions,
    run=run_partition,
    files=(*SCORED_FILES, StageFile(COUNTS, COUNTS_SCHEMA)),
    came_later=True,
    rewrites_others=False,
    without=without_scored,
)
