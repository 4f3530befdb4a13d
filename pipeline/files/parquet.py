"""Parquet files: their one writer, with the compression and encodings that columns want, a reader of whole ones, and
what damage to those of others costs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.files.damage import Hole, is_damage
from pipeline.files.inputs import reason


def dictionary_columns(schema: pa.Schema) -> list[str]:
    """Columns that Parquet writes through a dictionary of distinct values: strings, since those repeat.

    Digests, hashes and signatures are all different, and reading them back through a dictionary takes ten times as
    long.
    """
    return [field.name for field in schema if pa.types.is_string(field.type)]


def write_parquet(path: Path, table: pa.Table, row_group_size: int = 10_000) -> None:
    """Write a table: zstd, dictionaries for strings only, `row_group_size` rows per group."""
    dictionary = dictionary_columns(table.schema)
    pq.write_table(table, path, compression="zstd", row_group_size=row_group_size, use_dictionary=dictionary)


def read_parquet(source: Path | pa.NativeFile, columns: Sequence[str] | None = None) -> pa.Table:
    """A whole file, or some columns of it in the order asked for. Raises KeyError for a column that it lacks.

    `pq.read_table` makes a dataset of every file: four times the time where one is small, and a column more where a
    folder above it is called a=b.
    """
    with pq.ParquetFile(source, pre_buffer=False) as file:
        table = file.read(columns=columns)
    return table if columns is None else table.select(columns)


def is_damaged(error: Exception) -> bool:
    """True if pyarrow raised it about a file's bytes."""
    if isinstance(error, pa.lib.ArrowNotImplementedError):  # of this pyarrow, about every group
        return False
    return isinstance(error, pa.ArrowException) or is_damage(error)


def hole_of(metadata: pq.FileMetaData, number: int, first: int, stop: int, error: Exception) -> Hole:
    """Rows [first, stop) of a damaged row group, whose bytes it shares among its rows."""
    group, before = metadata.row_group(number), sum(metadata.row_group(n).num_rows for n in range(number))
    columns = [group.column(n) for n in range(group.num_columns)]
    start = min(column.dictionary_page_offset or column.data_page_offset for column in columns)
    share = (stop - first) / max(1, group.num_rows)
    size = round(share * sum(column.total_compressed_size for column in columns))
    return Hole(start, size, f"rows {before + first + 1:,} to {before + stop:,}: {reason(error)}", stop - first)


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
