"""Runs: the pairs of a build as the stages `rank`, `lead` and `dedup` cut them, and all runs merged by rank.

A run is some neighbouring partitions of filter, in one file of `rank`, sorted by rank: (larger image, candidate_id). In
a build that begins a generation the pairs that builds of the last one kept come first, build by build (KEPT_BY).
`merged` reads all of them as one sequence.

Sorted runs and a merge, and not one sort, because no step may hold all pairs: a run is in memory while it is written
(about 3 KB per pair), and the merge holds BUFFER rows, however many runs there are.
"""

from __future__ import annotations

import contextlib
import heapq
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
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

BUFFER = 20_000
"""Rows that a merge holds beside the block that it returns."""

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
    keys_of: Callable[[pa.Table], list[bytes]] | None = None,
    without: Collection[str] = (),
) -> Iterator[tuple[pa.Table, Any]]:
    """All runs as one sequence by rank: (RUN_SCHEMA rows, run of each row as a number in `records`), `block` at a time.

    keys_of: of other rows, which are merged by it; each run is sorted by it already. without: columns that are not
    read. Holds BUFFER rows beside a block.
    """
    with contextlib.ExitStack() as files:
        paths = [files.enter_context(stage.file(record, "parquet")) for record in records]
        size = max(256, BUFFER // max(1, len(paths)))
        cursors = [_Cursor(str(path), size, number, keys_of or rank_keys, without) for number, path in enumerate(paths)]
        if len(cursors) == 1:  # most builds: nothing to merge
            for table in cursors[0].tables(block):
                yield table, np.zeros(table.num_rows, np.int32)
            return
        keys = heapq.merge(*(cursor.keys() for cursor in cursors))
        while runs := [run for _, run in _first(keys, block)]:
            run_of_row = np.array(runs, np.int32)
            yield _rows_of_block(cursors, run_of_row), run_of_row


def _rows_of_block(cursors: Sequence[_Cursor], run_of_row: Any) -> pa.Table:
    """The next rows of the runs, interleaved as `run_of_row` [N] says."""
    present, counts = np.unique(run_of_row, return_counts=True)
    by_run = pa.concat_tables([cursors[run].take(count) for run, count in zip(present, counts, strict=True)])
    # `by_run` has the block's rows run after run, each run in order: a stable sort of run_of_row lists the block's rows
    # in just that order, so its inverse says for each row of the block where in `by_run` it is.
    where = np.empty(len(run_of_row), np.int64)
    where[np.argsort(run_of_row, kind="stable")] = np.arange(len(run_of_row))
    return by_run.take(pa.array(where)).combine_chunks()


class _Cursor:
    """Reads one run in order: keys are read ahead, and the rows whose keys were read are taken afterwards."""

    def __init__(
        self,
        path: str,
        size: int,
        number: int,
        keys_of: Callable[[pa.Table], list[bytes]],
        without: Collection[str] = (),
    ) -> None:
        self._path, self._size, self._number, self._keys_of, self._without = path, size, number, keys_of, without
        self._ahead: deque[pa.Table] = deque()

    def tables(self, size: int) -> Iterator[pa.Table]:
        with pq.ParquetFile(self._path) as file:
            columns = [name for name in file.schema_arrow.names if name not in self._without]
            for batch in file.iter_batches(batch_size=size, columns=columns):
                yield pa.Table.from_batches([batch])

    def keys(self) -> Iterator[tuple[bytes, int]]:
        """(key, number of this run) of each row; keys compare as bytes in the order of ranks."""
        for table in self.tables(self._size):
            self._ahead.append(table)
            for key in self._keys_of(table):
                yield key, self._number

    def take(self, count: int) -> pa.Table:
        """The next `count` rows, of those whose keys were read."""
        parts = []
        while count:
            first = self._ahead.popleft()
            parts.append(first.slice(0, count))
            if first.num_rows > count:
                self._ahead.appendleft(first.slice(count))
            count -= parts[-1].num_rows
        return pa.concat_tables(parts)


def rank_keys(table: pa.Table) -> list[bytes]:
    """The ranks of rows of RUN_SCHEMA, as bytes that compare like them.

    40 bytes: the larger image first (big-endian, counted down from the maximum), then candidate_id; 4 bytes of KEPT_BY
    before them, where there is such a column.
    """
    smaller = (np.iinfo(np.int64).max - _pixels(table).to_numpy()).astype(">u8")
    parts = [smaller.view(np.uint8).reshape(-1, 8), digests_of(table["candidate_id"])]
    if KEPT_BY in table.column_names:
        parts.insert(0, table[KEPT_BY].to_numpy().astype(">u4").view(np.uint8).reshape(-1, 4))
    joined = np.ascontiguousarray(np.concatenate(parts, axis=1))
    keys: list[bytes] = joined.view(f"V{joined.shape[1]}").ravel().tolist()
    return keys


def kept_by(build: Build, candidate_id: Digests, part: str) -> npt.NDArray[np.int32]:
    """For each of distinct candidates [N] the number of the build in `made_from` that kept it, as KEPT_BY has it.

    part: the file of STORE's identities that lists what a build kept; a build without it kept none.
    """
    identities, number = Identities(build.store), np.full(len(candidate_id), len(build.made_from), np.int32)
    own = np.ascontiguousarray(candidate_id).view("V32").ravel()
    for at, earlier in enumerate(build.made_from):
        known = identities.read(earlier.identities)
        for batch in identities.batches(known, part, ["candidate_id"]) if part in known.files else ():
            kept = np.ascontiguousarray(digests_of(batch["candidate_id"])).view("V32").ravel()
            _, rows, _ = np.intersect1d(own, kept, return_indices=True)
            number[rows] = np.minimum(number[rows], at)
    return number


def _first(keys: Iterator[tuple[bytes, int]], count: int) -> Iterator[tuple[bytes, int]]:
    for _, key in zip(range(count), keys, strict=False):  # the range first: otherwise one key more is read, and lost
        yield key


def _pixels(rows: pa.Table) -> Any:
    return pc.multiply(rows["width"].cast(pa.int64()), rows["height"].cast(pa.int64()))
