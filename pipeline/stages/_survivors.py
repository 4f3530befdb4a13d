"""Survivors: the pairs that dedup and the stages after it kept, which go on to detect and shard.

What a spec does not ask for has no partitions: without pixel filters `screen`, without `watermark` the stage of that
name, without `pair_score` `score`, without a filter of scores `choose`, without `balance` the stage of that name. What
goes on is what the last stage that has partitions kept (`pipeline.filters.pair_stages`). Each writes it as one file per
split.
"""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc

from data_specs.shard import PAIR_SCORE, SPLITS
from pipeline.dedup.ranked_runs import partitions_of
from pipeline.filters import last_to_drop, pair_stages
from pipeline.records import DEDUP_SCHEMA, SCORED_SCHEMA
from pipeline.store.build import Build
from pipeline.store.pair_scores import COUNTS, counted, in_units
from pipeline.store.partitions import StageDir
from pipeline.store.ranges import KeyRange
from pipeline.store.rewrite import Rewrite
from pipeline.store.stage import StageFile


def split_file(split: str) -> str:
    """Suffix of the file with the pairs of one split."""
    return f"{split}.parquet"


SPLIT_FILES = tuple(StageFile(split_file(split), DEDUP_SCHEMA, "candidate_id") for split in SPLITS)
"""The files that dedup, screen, watermark and balance commit; those of balance with scores, if there are any."""

SCORED_FILES = tuple(StageFile(split_file(split), SCORED_SCHEMA, "candidate_id") for split in SPLITS)
"""The files that score and choose commit for a partition."""


def survivors(build: Build) -> StageDir:
    """The stage whose files hold what goes on to detect and shard."""
    return build.stage(last_to_drop(build.spec))


def survivors_in(
    build: Build, partition: str, split: str, columns: list[str] | None = None, before: str = ""
) -> pa.Table:
    """The survivors of one split, in a fetch partition's range of order keys; `before`: those that come to a stage.

    The partitions of dedup are runs, each over several fetch partitions: only the rows of this one are read.
    """
    name = _handing_on(build, before)
    stage = build.stage(name)
    if name != "dedup":
        return stage.table(stage.record(partition), split_file(split), columns)
    low, high = KeyRange.named(partition).bounds
    record = next(stage.record(run) for run in stage.partitions() if partition in partitions_of(run))
    within = [("order_key", ">=", low), ("order_key", "<", high)]
    return stage.table(record, split_file(split), columns, within)


def survivor_tables(build: Build, columns: list[str], before: str) -> Iterator[pa.Table]:
    """The pairs of all splits that come to a stage, in the order of their partitions, a file at a time."""
    stage = build.stage(_handing_on(build, before))
    for record in stage.records():
        for split in SPLITS:
            yield stage.table(record, split_file(split), columns)


def survivors_before(build: Build, before: str) -> int:
    """How many pairs come to a stage."""
    return sum(record.counts["kept"] for record in build.stage(_handing_on(build, before)).records())


def later_ones(build: Build, before: str = "") -> dict[str, str]:
    """Name and fingerprint of the stage that hands the survivors on, unless that is dedup or screen.

    A stage that has `screen` among its inputs adds this to its token: a spec that asks for none of the later ones keeps
    the fingerprints that it had before there were any.
    """
    name = _handing_on(build, before)
    return {} if name in ("dedup", "screen") else {name: build.fingerprints[name]}


def _handing_on(build: Build, before: str) -> str:
    names = pair_stages(build.spec)
    return names[names.index(before) - 1] if before in names else names[-1]


def without_scored(rewrite: Rewrite) -> None:
    """Takedown of a stage that counts scores: removes pairs, and takes them off the counts.

    By these `choose` finds where a share of the pairs ends, also where its filter changes after the takedown.
    """
    columns = ["candidate_id", "source", PAIR_SCORE.name]
    rows = pa.concat_tables([rewrite.stage.table(rewrite.record, split_file(split), columns) for split in SPLITS])
    remaining = rewrite.removal.without(rows)
    if remaining is not None:
        units, there = in_units(remaining[PAIR_SCORE.name])
        sources = remaining["source"].filter(pa.array(there)).to_pylist()
        rewrite.write_table(COUNTS, counted(sources, units[there].tolist()))
    rewrite.remove_rows()


def primary_texts(rows: pa.Table) -> list[str]:
    """The primary text of each row."""
    texts: list[str] = pc.struct_field(pc.list_element(rows["texts"], 0), "text").to_pylist() if rows.num_rows else []
    return texts
