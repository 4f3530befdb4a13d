"""Stage semantic_dedup: of images that show the same, by the features of a tower, one pair is kept.

SemDeDup (arXiv 2303.09540) and DanQing (arXiv 2601.10305) remove what a perceptual hash cannot see: the same product on
another background, another frame of one scene. `pipeline.stages.nearest` decides by leaders, ranked by a column that
the spec names, in one pass that begins with what earlier builds kept; here its verdicts are applied in parallel. A
Decision names the leader and the cosine distance from it.

A spec without `semantic_dedup` has a stage without partitions.

Limits: texts of duplicates do not go over to their leader, as those of copies do: they tell of another picture. A
leader that `balance` drops takes its duplicates with it. Distances mean nothing without their tower.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from data_specs.shard import SPLITS
from pipeline import pulse
from pipeline.matching.semantic import MILLION
from pipeline.records import Decision, DropReason, candidates_of, drop
from pipeline.stages._survivors import SCORED_FILES, split_file, survivors_in
from pipeline.stages._vectors import ALL, NEAR, PLACED_NEAR_SCHEMA
from pipeline.store.build import Build
from pipeline.store.stage import Stage, StageFile

ROW_GROUP = 1_000


def token(build: Build) -> Any:
    return None  # the rules and the identities are in the tokens of `vectors` and `nearest`


def partitions(build: Build) -> list[str]:
    return [] if build.spec.semantic_dedup is None else build.stage("fetch").partitions()


def run_partition(build: Build, partition: str) -> None:
    """Kept pairs of each split in a fetch partition's range, a Decision for each other, and all that lies near one."""
    nearest = build.stage("nearest")
    verdicts = nearest.table(nearest.record(ALL), f"{partition}.verdicts")
    rows_of = {split: survivors_in(build, partition, split, before="semantic_dedup") for split in SPLITS}
    pulse.expect(sum(rows.num_rows for rows in rows_of.values()))
    verdict_of = {row["candidate_id"]: row for row in verdicts.filter(verdicts["dropped"]).to_pylist()}
    duplicates = pa.array(sorted(verdict_of), pa.string())
    decisions, counts = list[Decision](), {"seen": 0}
    with build.stage("semantic_dedup").attempt(partition) as attempt:
        attempt.write_table(NEAR, _placed(verdicts, rows_of.values()), row_group_size=ROW_GROUP)
        for split, rows in rows_of.items():
            gone = pc.is_in(rows["candidate_id"], duplicates)
            decisions += [_drop(candidate, verdict_of) for candidate in candidates_of(rows.filter(gone))]
            kept = rows.filter(pc.invert(gone))
            attempt.write_table(split_file(split), kept, row_group_size=ROW_GROUP)
            counts[split] = kept.num_rows
            counts["seen"] += rows.num_rows
            pulse.advance(rows.num_rows)
        attempt.decide(decisions)
        attempt.commit({**counts, "kept": counts["seen"] - len(decisions), "dropped": len(decisions)})


def _placed(verdicts: pa.Table, tables: Iterable[pa.Table]) -> pa.Table:
    """PLACED_NEAR_SCHEMA of the verdicts: `explain` finds a row by its order key."""
    keys = dict[str, str]()
    for rows in tables:
        keys |= zip(rows["candidate_id"].to_pylist(), rows["order_key"].to_pylist(), strict=True)
    order_key = pa.array([keys[name] for name in verdicts["candidate_id"].to_pylist()], pa.string())
    placed = verdicts.add_column(0, "order_key", order_key)
    return placed.sort_by([("order_key", "ascending"), ("candidate_id", "ascending")])


def _drop(candidate: Any, verdict_of: dict[str, dict[str, Any]]) -> Decision:
    verdict = verdict_of[candidate.candidate_id]
    whose = "an earlier build's" if verdict["earlier"] else "the"
    evidence = f"cosine distance {verdict['millionths'] / MILLION:.4f} from {whose} picture {verdict['leader'][:12]}"
    reason = DropReason.SEMANTIC_DUPLICATE
    return drop(candidate, "semantic_dedup", reason, evidence, duplicate_of=verdict["leader"])


STAGE = Stage(
    name="semantic_dedup",
    zh="语义去重",
    folder="semantically_deduped",
    inputs=("choose", "nearest"),
    version=1,
    token=token,
    partitions=partitions,
    run=run_partition,
    files=(StageFile(NEAR, PLACED_NEAR_SCHEMA, "candidate_id"), *SCORED_FILES),
    came_later=True,
    rewrites_others=False,
)
