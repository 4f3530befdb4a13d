"""Tables that are written as their rows come: by run and read back (`Spill`), or as one Parquet file (`Rows`)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.files.parquet import dictionary_columns

SPILL = 100_000
"""Rows that wait in memory before they are appended to the files of their runs."""


class Spill:
    """Rows by run: kept in memory up to SPILL, then appended to one file per run. No file stays open."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder, self._name = folder, name
        self._waiting: list[tuple[Any, pa.Table]] = []
        self._rows = 0

    def add(self, run_of_row: Any, table: pa.Table) -> None:
        if not table.num_rows:
            return
        self._waiting.append((run_of_row, table))
        self._rows += table.num_rows
        if self._rows >= SPILL:
            self._flush()

    def has(self, run: int) -> bool:
        self._flush()
        return self._path(run).exists()

    def read(self, run: int) -> Iterator[pa.Table]:
        """A run's rows, in the order in which they came."""
        if not self.has(run):
            return
        with self._path(run).open("rb") as f:
            size = self._path(run).stat().st_size
            while f.tell() < size:  # each flush appended an Arrow stream of its own
                yield pa.ipc.open_stream(f).read_all()

    def _flush(self) -> None:
        if not self._waiting:
            return
        run_of_row = np.concatenate([runs for runs, _ in self._waiting])
        # Rows sorted by run, those of a run in the order in which they came; run runs[i] is rows starts[i] to
        # starts[i + 1].
        order = np.argsort(run_of_row, kind="stable")
        table = pa.concat_tables([table for _, table in self._waiting]).take(pa.array(order))
        runs, starts = np.unique(run_of_row[order], return_index=True)
        for run, start, end in zip(runs, starts, [*starts[1:], len(order)], strict=True):
            with self._path(run).open("ab") as f, pa.ipc.new_stream(f, table.schema) as out:
                out.write_table(table.slice(start, end - start))
        self._waiting, self._rows = [], 0

    def _path(self, run: int) -> Path:
        return self._folder / f"{self._name}-{run}"


class Rows:
    """A Parquet file written row group by row group."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._writer = pq.ParquetWriter(path, schema, compression="zstd", use_dictionary=dictionary_columns(schema))
        self._schema = schema
        self._waiting: list[pa.Table] = []

    def __enter__(self) -> Rows:
        return self

    def __exit__(self, *_: object) -> None:
        self._flush()
        self._writer.close()

    def add(self, table: pa.Table) -> None:
        self._waiting.append(table.cast(self._schema))
        if sum(t.num_rows for t in self._waiting) >= 10_000:
            self._flush()

    def _flush(self) -> None:
        if self._waiting:
            self._writer.write_table(pa.concat_tables(self._waiting))
        self._waiting = []
