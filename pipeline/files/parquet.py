"""Parquet files as all stages write them."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq


def dictionary_columns(schema: pa.Schema) -> list[str]:
    """Columns that Parquet may write as a dictionary: words, that is. Digests, hashes and signatures are all different,
    and reading them back through a dictionary of all takes ten times as long."""
    return [field.name for field in schema if pa.types.is_string(field.type)]


def write_parquet(path: Path, table: pa.Table, row_group_size: int = 10_000) -> None:
    """Write a Parquet file as all stages do."""
    dictionary = dictionary_columns(table.schema)
    pq.write_table(table, path, compression="zstd", row_group_size=row_group_size, use_dictionary=dictionary)
