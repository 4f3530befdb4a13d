"""Survivors: the pairs that dedup, screen and balance kept, which go on to detect and shard.

Without pixel filters in the spec the stage `screen` has no partitions, and without `balance` the stage of that name has
none: what goes on is what the last stage that has partitions kept. Each writes it as SPLIT_FILES, one file per split.
"""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from data_specs.shard import SPLITS
from pipeline.filters import last_to_drop, pixel_filters
from pipeline.records import DEDUP_SCHEMA
from pipeline.stages._runs import partitions_of
from pipeline.store.build import Build
from pipeline.store.partitions import StageDir
from pipeline.store.ranges import KeyRange
from pipeline.store.stage import StageFile


def split_file(split: str) -> str:
    """Suffix of the file with the pairs of one split."""
    return f"{split}.parquet"


SPLIT_FILES = tuple(StageFile(split_file(split), DEDUP_SCHEMA, "candidate_id") for split in SPLITS)
"""The files that dedup, screen and balance commit for a partition."""


def survivors(build: Build) -> StageDir:
    """The stage whose SPLIT_FILES hold what goes on to detect and shard."""
    return build.stage(last_to_drop(build.spec))


def survivors_in(build: Build, partition: str, split: str, columns: list[str] | None = None) -> pa.Table:
    """The survivors of one split, in a fetch partition's range of order keys."""
    if build.spec.balance is None:
        return screened_in(build, partition, split, columns)
    stage = build.stage("balance")
    return stage.table(stage.record(partition), split_file(split), columns)


def screened_in(build: Build, partition: str, split: str, columns: list[str] | None = None) -> pa.Table:
    """What dedup and screen kept of one split, in a fetch partition's range of order keys."""
    if not pixel_filters(build.spec):
        return deduplicated_in(build, partition, split, columns)
    stage = build.stage("screen")
    return stage.table(stage.record(partition), split_file(split), columns)


def deduplicated_in(build: Build, partition: str, split: str, columns: list[str] | None = None) -> pa.Table:
    """What dedup kept of one split, in a fetch partition's range of order keys.

    The partitions of dedup are runs, each over several fetch partitions: only the rows of this one are read.
    """
    low, high = KeyRange.named(partition).bounds
    stage = build.stage("dedup")
    record = next(stage.record(run) for run in stage.partitions() if partition in partitions_of(run))
    within = [("order_key", ">=", low), ("order_key", "<", high)]
    return stage.table(record, split_file(split), columns, within)


def primary_texts(rows: pa.Table) -> list[str]:
    """The primary text of each row."""
    texts: list[str] = pc.struct_field(pc.list_element(rows["texts"], 0), "text").to_pylist() if rows.num_rows else []
    return texts
