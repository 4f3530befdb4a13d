"""A row of each layout is the same decision in Python and in SQL."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.records import sha256_hex
from pipeline.studio.layouts import AS_DECISION, ID_OF_INDEX, LISTED, SELECTED, id_of_index

ID = "ab" * 32
SAMPLE = {"candidate_id": ID, "source": "s", "page_url": "", "image_url": "http://x/1.jpg",
          "sha256": "cd" * 32, "texts": [{"kind": "alt", "text": "一只猫"}]}  # fmt: skip
ROW = {"id": "a name", "source": None, "page_url": "http://x/", "url": "http://x/2.jpg", "caption": "狗"}


@pytest.mark.parametrize(("layout", "row"), [("samples", SAMPLE), ("index", ROW)])
def test_a_row_that_was_packed_is_a_kept_candidate(layout: str, row: dict[str, Any], tmp_path: Path) -> None:
    assert set(LISTED[layout]) == set(row)
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "rows.parquet")
    rows = duckdb.sql(f"SELECT {SELECTED[layout]} FROM '{tmp_path}/rows.parquet'")
    (told,) = (dict(zip(rows.columns, values, strict=True)) for values in rows.fetchall())
    own = AS_DECISION[layout](row)
    assert own["kept"] is True
    for name in set(told) - {"page_url"}:
        assert told[name] == own[name], name
    assert (told["page_url"] or "") == own["page_url"]


@pytest.mark.parametrize("name", [ID, "ab" * 16, "000000012", "AB" * 32, "一"])
def test_an_id_of_an_index_is_the_same_in_sql(name: str) -> None:
    assert duckdb.sql(f"SELECT {ID_OF_INDEX} FROM (SELECT ? AS id)", params=[name]).fetchall() == [(id_of_index(name),)]
    assert id_of_index(name) in (name, sha256_hex(name))
