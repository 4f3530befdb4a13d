"""parquet, read by DuckDB and Polars."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.mark.slow
def test_duckdb_and_polars_read_the_tables(exported: Callable[..., Path], rows: dict[str, Any]) -> None:
    out, wide = exported("parquet"), sum(row["width"] > 200 for row in rows.values())
    duckdb = pytest.importorskip("duckdb", reason="duckdb is not installed")
    counted = duckdb.sql(f"select count(*) from '{out}/*.parquet' where width > 200").fetchall()
    assert counted == [(wide,)]
    polars = pytest.importorskip("polars", reason="polars is not installed")
    assert polars.read_parquet(f"{out}/*.parquet").filter(polars.col("width") > 200).height == wide
