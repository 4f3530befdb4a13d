"""Parquet files: one writer for all stages, with the compression and encodings that their columns want."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq


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
