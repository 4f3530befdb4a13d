"""What stage `gather` made of extract's many files, and how ranges of order keys are read from either.

A gathered file holds the rows of neighbouring parts by order_key, as Arrow record batches: batch i of 2^b has the keys
of which the highest b bits are i. Whoever wants a range of keys reads the end of the file, and a batch or two. Rows
with equal keys stay in the order of the parts.
"""

from __future__ import annotations

import bisect
import contextlib
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.records import PROVENANCE, SOURCE_BOXES, USERINFO
from pipeline.store.build import Build
from pipeline.store.partitions import Record, StageDir
from pipeline.store.rewrite import Rewrite

VERSION = 1

SUFFIXES = {"parquet": "candidates.arrow", PROVENANCE: "provenance.arrow", SOURCE_BOXES: "boxes.arrow"}
"""Files of extract that are read by ranges of order keys, and what they are called where they were gathered."""

NAMES = "names.parquet"
"""What pages call their pictures and themselves, by hash (`_templates.names_of`)."""

BATCH, MOST_BITS = 128, 12
"""Rows of a batch on average, and bits at most by which batches are told apart: 4,096 of them."""

KEY_BITS = 64


def write(path: Path, tables: Sequence[pa.Table]) -> int:
    """Write the rows of tables that have an order_key, in one gathered file; returns how many.

    A column that only some of them have is null in the others.
    """
    table = pa.concat_tables(tables, promote_options="default")
    keys = np.array([int(key, 16) for key in table["order_key"].to_pylist()], np.uint64)
    order = np.argsort(keys, kind="stable")
    bits = min(MOST_BITS, max(1, len(keys) // BATCH).bit_length() - 1)
    numbers = (keys[order] >> np.uint64(1) >> np.uint64(KEY_BITS - 1 - bits)).astype(np.int64)  # 64 would be no shift
    borders = np.searchsorted(numbers, np.arange((1 << bits) + 1)).tolist()
    batches = table.take(pa.array(order)).combine_chunks().to_batches()  # one, or none if there are no rows
    with pa.ipc.new_file(str(path), table.schema, options=pa.ipc.IpcWriteOptions(compression="lz4")) as file:
        for start, end in itertools.pairwise(borders) if batches else ():
            file.write_batch(batches[0].slice(start, end - start))
    return len(keys)


def name_of(first: int, last: int) -> str:
    """The partition of `gather` that has extract's parts number first to last."""
    return f"{first:07d}-{last:07d}"


def parts_of(partition: str) -> range:
    """The numbers of the parts of extract, by their names, that a partition of `gather` has."""
    first, last = (int(number) for number in partition.split("-"))
    return range(first, last + 1)


def groups(build: Build) -> list[Record]:
    """What was gathered, in order of the parts; empty where nothing was, or not all of it is there any more."""
    if "gather" not in build.fingerprints:  # a build of an older wenlan
        return []
    stage = build.stage("gather")
    records = stage.records() if stage.finished() else []
    parts = [parts_of(record.partition) for record in records]
    whole = bool(parts) and [own.start for own in parts] == [0, *(own.stop for own in parts[:-1])]
    return records if whole and parts[-1].stop == records[0].info["of"] else []


def rows_between(
    build: Build, suffix: str, low: str, high: str, columns: Sequence[str] | None = None
) -> Iterator[pa.Table]:
    """Rows of extract's files of a kind (SUFFIXES) with an order_key in [low, high), some at a time.

    Those of equal keys come in the order of the parts. columns: those that are returned, all by default.
    """
    within = (pc.field("order_key") >= low) & (pc.field("order_key") < high)
    names = None if columns is None else list(columns)
    gathered, extract = groups(build), build.stage("extract")
    for record in gathered:
        if SUFFIXES[suffix] in record.files:
            rows = _batches(build.stage("gather"), record, SUFFIXES[suffix], low, high)
            keys = rows["order_key"].to_pylist()
            start, end = bisect.bisect_left(keys, low), bisect.bisect_left(keys, high)
            yield (rows if names is None else rows.select(names)).slice(start, end - start)
    for record in extract.records() if not gathered else ():
        if suffix in record.files:
            yield extract.table(record, suffix, names, within)


def _batches(stage: StageDir, record: Record, suffix: str, low: str, high: str) -> pa.Table:
    """The batches of a gathered file that may hold keys in [low, high), in which some key may lie."""
    with _opened(stage, record, suffix) as source, pa.ipc.open_file(source) as file:
        first, end = (1 << KEY_BITS if key == "g" else int(key, 16) for key in (low, high))
        shift = KEY_BITS - max(0, file.num_record_batches.bit_length() - 1)
        numbers = range(first >> shift, (end - 1 >> shift) + 1) if file.num_record_batches else ()
        return pa.Table.from_batches([file.get_batch(number) for number in numbers], schema=file.schema)


@contextlib.contextmanager
def _opened(stage: StageDir, record: Record, suffix: str) -> Iterator[Any]:
    """A committed file open for reading at any position; by Arrow itself where it lies on a disk."""
    if stage.folder.is_local:
        with stage.file(record, suffix) as path, pa.OSFile(str(path)) as file:
            yield file
    else:
        stage.check(record, suffix)
        with stage.folder.opened(record.files[suffix].name) as other:
            yield other


def with_userinfo(build: Build) -> list[Record]:
    """Records of extract with a file of user names and passwords. These are not gathered, but stay where they are."""
    extract = build.stage("extract")
    gathered = groups(build)
    if gathered:
        return [extract.record(part) for record in gathered for part in record.info["userinfos"]]
    return [record for record in extract.records() if USERINFO in record.files]


def without(rewrite: Rewrite) -> None:
    """Deletes all: what reads it does without, from extract's own files."""
    rewrite.stage.empty(VERSION)
