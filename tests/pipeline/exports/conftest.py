"""What tests of exports share: the synthetic dataset in a format, and the rows that it was made from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipeline.exports import export
from pipeline.store.dataset import Dataset


@pytest.fixture
def exported(shards_of: Path, tmp_path: Path) -> Callable[..., Path]:
    """exported(to, *splits): the synthetic dataset in a format."""

    def make(to: str, *splits: Any) -> Path:
        export(Dataset.open(shards_of), to, tmp_path / to, splits)
        return tmp_path / to

    return make


@pytest.fixture
def rows(shards_of: Path) -> dict[str, dict[str, Any]]:
    """key -> row of the dataset's own tables."""
    tables = [pq.read_table(path) for path in sorted(shards_of.glob("*.parquet"))]
    return {row["key"]: row for table in tables for row in table.to_pylist()}
