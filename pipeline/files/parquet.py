"""Parquet files: their one writer, with the compression and encodings that columns want, a reader of whole ones, and
what damage to those of others costs."""

from __future__ import annotations

import functools
import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

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


class _Pandas:
    """An import hook: pandas is not installed while it is `hidden`; pyarrow is told when it is imported after all."""

    hidden = True

    def find_spec(self, name: str, path: object = None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Implements `importlib.abc.MetaPathFinder`."""
        if name != "pandas":
            return None
        if self.hidden:
            raise ModuleNotFoundError(name, name=name)
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def run_and_tell(module: ModuleType) -> None:
                run(module)
                _ = pa.lib._pandas_api.pd  # it looks again

            spec.loader.exec_module = run_and_tell  # type: ignore[method-assign]
        return spec


@functools.cache
def arrow_without_pandas() -> None:
    """Keeps pyarrow from importing pandas in this process, unless other code has imported it.

    It tries once, at its first scalar, filter or group, in case it is handed a Series: half a second and 50 MB of
    every command and worker, none of which has one. Code that asks for a DataFrame, or imports pandas, makes it try
    again. Called where a process of ours begins.
    """
    if "pandas" not in sys.modules:
        hook = _Pandas()
        sys.meta_path.insert(0, hook)
        try:
            pa.scalar(None)
        finally:
            hook.hidden = False
