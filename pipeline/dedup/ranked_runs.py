"""Runs: neighbouring partitions of filter, and sorted tables merged into one sequence.

Limits: each table is an open file of the merge.
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

from pipeline.files.digests import Digests, digests_of
from pipeline.records import LOOKS
from pipeline.store.build import Build
from pipeline.store.identities import Identities
from pipeline.store.partitions import Record, StageDir
from pipeline.store.ranges import KeyRange

Keys = npt.NDArray[np.void]
"""[N] ranks, each of so many bytes, which compare like them."""

BUFFER = 20_000
"""Rows that a merge holds beside the block that it returns."""

ALL = "all"
"""The one partition of pass `dedup.leaders`, which goes over all runs in order."""


def run_name(partitions: Sequence[str]) -> str:
    """The name of the run of neighbouring partitions of filter."""
    first, last = KeyRange.named(partitions[0]), KeyRange.named(partitions[-1])
    return str(KeyRange(first.first, last.last, first.of, run=True))


def partitions_of(run: str) -> list[str]:
    """The partitions of filter that a run is made of."""
    return [str(part) for part in KeyRange.named(run).parts()]


def pairs_of(build: Build, run: str, columns: list[str]) -> pa.Table:
    """The run's pairs by (order_key, candidate_id): columns of PAIR_SCHEMA, and LOOKS of their images."""
    filtered, measured = build.stage("filter"), build.stage("measure")
    own, looks = [name for name in columns if name not in LOOKS], [name for name in columns if name in LOOKS]
    tables = []
    for partition in partitions_of(run):
        table = filtered.table(filtered.record(partition), columns=own)
        images = measured.table(measured.record(partition), columns=["sha256", *looks])
        row = pc.index_in(table["sha256"], images["sha256"].combine_chunks())
        tables.append(pa.table({name: (images[name].take(row) if name in looks else table[name]) for name in columns}))
    return pa.concat_tables(tables).combine_chunks()


def merged(
    stage: StageDir, records: Sequence[Record], block: int, keys_of: Callable[[pa.Table], Keys]
) -> Iterator[tuple[pa.Table, Any]]:
    """Sorted tables of a stage as one sequence: (rows, record of each row as a number in `records`), `block` at a time.

    keys_of: of rows, by which each table is sorted already. Holds about BUFFER rows beside a block.
    """
    with contextlib.ExitStack() as files:
        size = max(1, BUFFER // len(records)) if len(records) > 1 else block
        tables = [_parquet(files.enter_context(stage.file(record, "parquet")), size) for record in records]
        yield from _blocks(_in_order([_Cursor(own, keys_of) for own in tables]), block)


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


def kept_by(build: Build, candidate_id: Digests, part: str) -> npt.NDArray[np.int32]:
    """[N] the number of the build in `made_from` that kept each of distinct candidates, 0 for the oldest one.

    As many as there are builds for a candidate that none kept. part: the file of STORE's identities that lists what a
    build kept; a build without it kept none.
    """
    identities, number = Identities(build.store), np.full(len(candidate_id), len(build.made_from), np.int32)
    own = np.ascontiguousarray(candidate_id).view("V32").ravel()
    for at, known in enumerate(map(identities.read, identities.made_from(build))):
        for batch in identities.batches(known, part, ["candidate_id"]) if part in known.files else ():
            kept = np.ascontiguousarray(digests_of(batch["candidate_id"])).view("V32").ravel()
            _, rows, _ = np.intersect1d(own, kept, return_indices=True)
            number[rows] = np.minimum(number[rows], at)
    return number
