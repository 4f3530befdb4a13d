"""Runs: the pairs of a build as the stages `rank`, `lead` and `dedup` cut them, and all runs merged by rank.

A run is some neighbouring partitions of filter, in one file of `rank`, sorted by rank: (larger image, candidate_id). In
a build that begins a generation the pairs that builds of the last one kept come first, build by build (KEPT_BY).
`merged` reads all of them as one sequence.

Sorted runs and a merge, and not one sort, because no step may hold all pairs: a run is in memory while it is written
(about 3 KB per pair), and the merge holds BUFFER rows.

Where `deal` has a task for each run, it writes the rows that the merge reads once more, as Arrow record batches
(`write_ordered`): half the time, and 0.12 MB of memory for each run; an open Parquet file takes up to 2.6 MB, however
little is read of it.

Limits: each run is an open file of the merge: 1.2 MB for every million pairs, and 26 MB without files of `deal`.
"""

from __future__ import annotations

import bisect
import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.files.digests import DIGEST, Digests, digests_of
from pipeline.matching import text_rows
from pipeline.records import TEXTS_TYPE
from pipeline.store.build import Build
from pipeline.store.identities import Identities
from pipeline.store.partitions import Record, StageDir
from pipeline.store.ranges import KeyRange

Keys = npt.NDArray[np.void]
"""[N] ranks, each of so many bytes, which compare like them."""

BUFFER = 20_000
"""Rows that a merge holds beside the block that it returns."""

ORDERED_ROWS = 256
"""Rows of a record batch of `write_ordered`: what a merge holds of a run at the least."""

RUN_SCHEMA = pa.schema(
    [
        ("position", pa.int32()),  # among the run's pairs by (order_key, candidate_id)
        ("candidate_id", DIGEST),
        ("fetch_id", DIGEST),
        ("sha256", DIGEST),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("phash", pa.list_(pa.uint64())),
        ("signature", pa.binary()),
        ("details", pa.binary()),  # null of a picture with texture
        ("domain", pa.uint64()),  # of the page; 0 = none
        ("texts", TEXTS_TYPE),
        ("sketches", pa.list_(text_rows.FIELDS)),  # one for each of texts
    ]
)

KEPT_BY = "kept_by"
"""Column beside RUN_SCHEMA in a build that begins a generation: number of the earlier build that kept the pair, 0 for
the oldest one; as many as there are for a pair that none kept."""

ALL = "all"
"""The one partition of stage `lead`, which goes over all runs in order."""


def run_name(partitions: Sequence[str]) -> str:
    """The name of the run of neighbouring partitions of filter."""
    first, last = KeyRange.named(partitions[0]), KeyRange.named(partitions[-1])
    return str(KeyRange(first.first, last.last, first.of, run=True))


def partitions_of(run: str) -> list[str]:
    """The partitions of filter that a run is made of."""
    return [str(part) for part in KeyRange.named(run).parts()]


def pairs_of(build: Build, run: str, columns: list[str] | None = None) -> pa.Table:
    """The run's pairs (PAIR_SCHEMA) by (order_key, candidate_id)."""
    stage = build.stage("filter")
    tables = [stage.table(stage.record(partition), columns=columns) for partition in partitions_of(run)]
    return pa.concat_tables(tables).combine_chunks()


def sorted_by_rank(rows: pa.Table) -> pa.Table:
    """Rows of RUN_SCHEMA, largest image first, equal sizes by candidate_id; by KEPT_BY before that, if it is there."""
    keys = {"pixels": _pixels(rows), "id": rows["candidate_id"]}
    order = [("pixels", "descending"), ("id", "ascending")]
    if KEPT_BY in rows.column_names:
        keys, order = {**keys, KEPT_BY: rows[KEPT_BY]}, [(KEPT_BY, "ascending"), *order]
    return rows.take(pc.sort_indices(pa.table(keys), sort_keys=order))


def merged(
    stage: StageDir,
    records: Sequence[Record],
    block: int,
    keys_of: Callable[[pa.Table], Keys] | None = None,
    ordered: Sequence[Path] = (),
) -> Iterator[tuple[pa.Table, Any]]:
    """All runs as one sequence by rank: (RUN_SCHEMA rows, run of each row as a number in `records`), `block` at a time.

    keys_of: of other rows, which are merged by it; each run is sorted by it already. ordered: files of `write_ordered`,
    one for each run, that are read in place of the runs. Holds about BUFFER rows beside a block, and a file open for
    each run.
    """
    with contextlib.ExitStack() as files:
        size = max(ORDERED_ROWS, BUFFER // len(records)) if len(records) > 1 else block
        if ordered:
            runs = [_ordered(path, size) for path in ordered]
        else:
            runs = [_parquet(files.enter_context(stage.file(record, "parquet")), size) for record in records]
        yield from _blocks(_in_order([_Cursor(tables, keys_of or rank_keys) for tables in runs]), block)


def write_ordered(path: Path, table: pa.Table) -> None:
    """Write a run's rows, which are in memory, as batches of ORDERED_ROWS."""
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    with pa.ipc.new_file(str(path), table.schema, options=options) as file:
        for batch in table.combine_chunks().to_batches(max_chunksize=ORDERED_ROWS):
            file.write_batch(batch)


def _ordered(path: Path, size: int) -> Iterator[pa.Table]:
    """The rows of a file of `write_ordered`, about `size` at a time."""
    with pa.OSFile(str(path)) as source, pa.ipc.open_file(source) as file:
        numbers = range(file.num_record_batches)
        step = max(1, size // ORDERED_ROWS)
        for start in numbers[::step]:
            batches = [file.get_batch(number) for number in numbers[start : start + step]]
            yield pa.Table.from_batches(batches)


def _parquet(path: Path, size: int) -> Iterator[pa.Table]:
    """The rows of a Parquet file, at most `size` at a time."""
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=size):
            yield pa.Table.from_batches([batch])


def _in_order(cursors: Sequence[_Cursor]) -> Iterator[tuple[pa.Table, npt.NDArray[np.int32]]]:
    """Rows of sorted runs, and the run of each, in order, as many at a time as are known.

    Whatever is still to be read of a run ranks after the last of its rows that was read: up to the least of these last
    ones nothing can come any more.
    """
    if len(cursors) == 1:  # most builds: nothing to merge
        yield from ((table, np.zeros(table.num_rows, np.int32)) for table in cursors[0].tables)
        return
    while open_runs := [run for run, cursor in enumerate(cursors) if cursor.read_on()]:
        end = min(cursors[run].last for run in open_runs)
        taken = [cursors[run].take_to(end) for run in open_runs]
        run_of_row = np.repeat(np.array(open_runs, np.int32), [len(keys) for _, keys in taken])
        order = np.argsort(np.concatenate([keys for _, keys in taken]), kind="stable")
        yield pa.concat_tables([table for table, _ in taken]).take(pa.array(order)), run_of_row[order]


def _blocks(
    parts: Iterator[tuple[pa.Table, npt.NDArray[np.int32]]], block: int
) -> Iterator[tuple[pa.Table, npt.NDArray[np.int32]]]:
    """The same rows, `block` at a time, and at the end what is left."""
    waiting, runs = list[pa.Table](), np.zeros(0, np.int32)
    for table, own in parts:
        waiting, runs = [*waiting, table], np.concatenate([runs, own])
        rows = len(runs) - len(runs) % block
        if rows:
            table = pa.concat_tables(waiting)
            for at in range(0, rows, block):
                yield table.slice(at, block).combine_chunks(), runs[at : at + block]
            waiting, runs = [table.slice(rows)], runs[rows:]
    if len(runs):
        yield pa.concat_tables(waiting).combine_chunks(), runs


class _Cursor:
    """Reads one run in order."""

    def __init__(self, tables: Iterator[pa.Table], keys_of: Callable[[pa.Table], Keys]) -> None:
        self.tables, self._keys_of = tables, keys_of
        self._table: pa.Table | None = None
        self._keys: Keys | None = None

    def read_on(self) -> bool:
        """Read rows, if all that were read are taken. Whether there are rows to take."""
        if self._table is None or not self._table.num_rows:
            self._table = next((table for table in self.tables if table.num_rows), None)
            self._keys = None if self._table is None else self._keys_of(self._table)
        return self._table is not None

    @property
    def last(self) -> bytes:
        """The key of the last row that was read; there are rows to take."""
        assert self._keys is not None
        return bytes(self._keys[-1].tobytes())

    def take_to(self, end: bytes) -> tuple[pa.Table, Keys]:
        """The rows up to this key, and their keys; there are rows to take."""
        table, keys = self._table, self._keys
        assert table is not None
        assert keys is not None
        count = bisect.bisect_right(range(len(keys)), end, key=lambda at: keys[at].tobytes())
        self._table, self._keys = table.slice(count), keys[count:]
        return table.slice(0, count), keys[:count]


def rank_keys(table: pa.Table) -> Keys:
    """The ranks of rows of RUN_SCHEMA.

    40 bytes: the larger image first (big-endian, counted down from the maximum), then candidate_id; 4 bytes of KEPT_BY
    before them, where there is such a column.
    """
    smaller = (np.iinfo(np.int64).max - _pixels(table).to_numpy()).astype(">u8")
    parts = [smaller.view(np.uint8).reshape(-1, 8), digests_of(table["candidate_id"])]
    if KEPT_BY in table.column_names:
        parts.insert(0, table[KEPT_BY].to_numpy().astype(">u4").view(np.uint8).reshape(-1, 4))
    joined = np.ascontiguousarray(np.concatenate(parts, axis=1))
    keys: Keys = joined.view(f"V{joined.shape[1]}").ravel()
    return keys


def kept_by(build: Build, candidate_id: Digests, part: str) -> npt.NDArray[np.int32]:
    """For each of distinct candidates [N] the number of the build in `made_from` that kept it, as KEPT_BY has it.

    part: the file of STORE's identities that lists what a build kept; a build without it kept none.
    """
    identities, number = Identities(build.store), np.full(len(candidate_id), len(build.made_from), np.int32)
    own = np.ascontiguousarray(candidate_id).view("V32").ravel()
    for at, earlier in enumerate(build.made_from):
        known = identities.read(identities.of(earlier.build_id) or earlier.identities)  # takedowns rename them
        for batch in identities.batches(known, part, ["candidate_id"]) if part in known.files else ():
            kept = np.ascontiguousarray(digests_of(batch["candidate_id"])).view("V32").ravel()
            _, rows, _ = np.intersect1d(own, kept, return_indices=True)
            number[rows] = np.minimum(number[rows], at)
    return number


def _pixels(rows: pa.Table) -> Any:
    return pc.multiply(rows["width"].cast(pa.int64()), rows["height"].cast(pa.int64()))
