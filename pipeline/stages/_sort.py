"""Pass admit.sort: merges the candidates of extract's many files into few, from which ranges of order keys are read.

Each partition of `admit`, `fetch` and `detect` is a range of order keys, and wants a few rows of every part of every
source: read from the parts, files would be opened as often as the product of both. So the rows of neighbouring parts
are sorted together, GROUP at a time, as Arrow record batches: batch i of 2^b has the keys of which the highest b bits
are i. A reader of a range reads the end of the file, and a batch or two. Rows with equal keys stay in the order of the
parts, those of pages first. On the way alts and captions of very many pictures of a host are removed (`_furniture`),
and the names that pages give their pictures are cleaned and hashed, of which the driver learns templates
(`pipeline.stages._templates`).

Limits: a group is held in memory, about 2 kB a row. User names and passwords of URLs stay in extract's files, so parts
that have some are read once by each partition of `fetch`.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.processes import pulse
from pipeline.rows.records import ARCHIVED, PROVENANCE, SOURCE_BOXES, USERINFO, WITH_REMOVED_SCHEMA
from pipeline.stages import _templates
from pipeline.stages._furniture import without_repeated_words
from pipeline.stages._templates import NAME_SCHEMA, NAMES
from pipeline.store.build import Build, Pass, PassFile
from pipeline.store.commits import Attempt, Record
from pipeline.store.partitions import REDUCED, StageDir

NAME = _templates.PASS_NAME

GROUP = 200_000
"""Candidates and archived pictures of a group, where single parts do not have more."""

NAMES_AT_ONCE = 1_000
"""Names of a row group: of a large build the first ones alone are read."""

SUFFIXES = {
    "parquet": "candidates.arrow",
    PROVENANCE: "provenance.arrow",
    SOURCE_BOXES: "boxes.arrow",
    ARCHIVED: "archived.arrow",
}
"""Files of extract that are read by ranges of order keys, and what they are called where they were gathered."""

BATCH, MOST_BITS = 128, 12
"""Average rows of a batch, and most bits that number a batch: at most 4,096 batches."""

KEY_BITS = 64


def write_sorted(path: Path, tables: Sequence[pa.Table]) -> int:
    """Write the rows of tables that have an order_key, in one gathered file; returns how many.

    A column that only some of them have is null in the others.
    """
    table = pa.concat_tables(tables, promote_options="default")
    keys = np.array([int(key, 16) for key in table["order_key"].to_pylist()], np.uint64)
    order = np.argsort(keys, kind="stable")
    bits = min(MOST_BITS, max(1, len(keys) // BATCH).bit_length() - 1)
    numbers = (keys[order] >> np.uint64(1) >> np.uint64(KEY_BITS - 1 - bits)).astype(np.int64)  # 64 would be no shift
    borders = np.searchsorted(numbers, np.arange((1 << bits) + 1)).tolist()
    batches = table.take(pa.array(order)).combine_chunks().to_batches()  # one, or none without rows
    with pa.ipc.new_file(str(path), table.schema, options=pa.ipc.IpcWriteOptions(compression="lz4")) as file:
        for start, end in itertools.pairwise(borders) if batches else ():
            file.write_batch(batches[0].slice(start, end - start))
    return len(keys)


def _group_name(first: int, last: int) -> str:
    """Name of the partition with extract's parts number first to last."""
    return f"{first:07d}-{last:07d}"


def _part_numbers(partition: str) -> range:
    """The numbers of the parts of extract, by their names, that a partition has."""
    first, last = (int(number) for number in partition.split("-"))
    return range(first, last + 1)


def token(build: Build) -> Any:
    return build.forgotten_revision


def partitions(build: Build) -> list[str]:
    """Groups of neighbouring parts, by the numbers of the first and the last one."""
    extracted = build.stage("extract").records()
    sizes = [record.counts["kept"] + record.counts.get("archived", 0) for record in extracted]
    groups, first, rows = list[str](), 0, 0
    for part, size in enumerate(sizes):
        if part > first and rows + size > GROUP:
            groups, first, rows = [*groups, _group_name(first, part - 1)], part, 0
        rows += size
    return [*groups, _group_name(first, len(sizes) - 1)] if sizes else []


def run_partition(build: Build, partition: str) -> None:
    """Sorts one group and commits it."""
    extract, numbers = build.stage("extract"), _part_numbers(partition)
    parts = extract.partitions()
    records = [extract.record(parts[number]) for number in numbers]
    pulse.expect(sum(record.counts["kept"] for record in records))
    with build.stage(NAME).attempt(partition) as attempt:
        rows = 0
        for suffix, name in SUFFIXES.items():
            own = [record for record in records if suffix in record.files]
            is_candidates = suffix == "parquet"
            tables = _candidates(build, attempt, own) if is_candidates else [extract.table(r, suffix) for r in own]
            written = write_sorted(attempt.path(name), tables) if tables else 0
            if is_candidates:
                rows = written
                pulse.advance(rows)
        userinfos = [record.partition for record in records if USERINFO in record.files]
        attempt.commit({"rows": rows, "parts": len(records)}, {"userinfos": userinfos})


def _candidates(build: Build, attempt: Attempt, records: Sequence[Record]) -> list[pa.Table]:
    """Candidates of some parts, those of pages first and without repeated words. Writes what these pages call their
    pictures and themselves."""
    extract, sources = build.stage("extract"), _templates.page_sources(build)
    pages, others = list[pa.Table](), list[pa.Table]()
    for record in records:
        (pages if record.partition.rpartition("-")[0] in sources else others).append(extract.table(record))
    if not pages:
        return others
    table = without_repeated_words(pa.concat_tables(pages, promote_options="default"))
    attempt.write_table(NAMES, _templates.names_of(table), row_group_size=NAMES_AT_ONCE)
    return [table, *others]


def rows_between(
    build: Build, suffix: str, low: str, high: str, columns: Sequence[str] | None = None
) -> Iterator[pa.Table]:
    """Rows of extract's files of a kind (SUFFIXES) with an order_key in [low, high), some at a time.

    Those of equal keys come in the order of the parts. columns: those that are returned, all by default.
    """
    stage = build.stage(NAME)
    least, most = (1 << KEY_BITS if key == "g" else int(key, 16) for key in (low, high))
    for record in stage.records():
        if SUFFIXES[suffix] in record.files:
            name = SUFFIXES[suffix]
            rows = _read_batches(stage, record, name, lambda shift: range(least >> shift, (most - 1 >> shift) + 1))
            keys = rows["order_key"].to_pylist()
            start, end = bisect.bisect_left(keys, low), bisect.bisect_left(keys, high)
            yield (rows if columns is None else rows.select(list(columns))).slice(start, end - start)


def rows_with(build: Build, suffix: str, keys: Collection[str]) -> Iterator[pa.Table]:
    """Rows of extract's files of a kind (SUFFIXES) with one of these order_keys, some at a time."""
    stage, wanted = build.stage(NAME), pa.array(sorted(keys), pa.string())
    numbers = [int(key, 16) for key in keys]
    for record in stage.records() if keys else ():
        if SUFFIXES[suffix] in record.files:
            rows = _read_batches(stage, record, SUFFIXES[suffix], lambda shift: sorted({n >> shift for n in numbers}))
            yield rows.filter(pc.is_in(rows["order_key"], wanted))


def _read_batches(stage: StageDir, record: Record, suffix: str, numbers: Callable[[int], Iterable[int]]) -> pa.Table:
    """Batches of a gathered file. numbers(shift): those of keys as numbers that are shifted right by so many bits."""
    stage.check(record, suffix)
    with stage.folder.opened(record.files[suffix].name) as source, pa.ipc.open_file(source) as file:
        shift = KEY_BITS - max(0, file.num_record_batches.bit_length() - 1)
        wanted = numbers(shift) if file.num_record_batches else ()
        return pa.Table.from_batches([file.get_batch(number) for number in wanted], schema=file.schema)


def userinfo_records(build: Build) -> list[Record]:
    """Records of extract with a file of user names and passwords. These are not sorted, but stay where they are."""
    extract = build.stage("extract")
    return [extract.record(part) for record in build.stage(NAME).records() for part in record.info["userinfos"]]


PASS = Pass(
    name=NAME,
    over=partitions,
    reads=("extract",),
    run=run_partition,
    token=token,
    version=5,
    reduce=_templates.rows,
    files=(
        PassFile(SUFFIXES["parquet"], WITH_REMOVED_SCHEMA, kind="derived"),
        *(PassFile(SUFFIXES[name]) for name in (PROVENANCE, SOURCE_BOXES, ARCHIVED)),
        PassFile(NAMES, NAME_SCHEMA, kind="derived"),
        PassFile(REDUCED, kind="rows"),
    ),
    done=("rows",),
    working=True,
)
