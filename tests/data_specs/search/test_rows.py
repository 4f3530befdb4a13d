"""rows: what a writer may leave out, and that nothing is lost between Parquet, Arrow and records."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from data_specs.search import rows as rows_of
from data_specs.shard import ContractError


def test_columns_that_a_writer_leaves_out_are_empty() -> None:
    whole = rows_of.complete(pa.table({"id": ["a"], "caption": pa.array([None], pa.string())}), "part 0")
    assert whole.schema == rows_of.ROWS
    (row,) = whole.to_pylist()
    assert (row["caption"], row["width"], row["texts"], row["where"]) == ("", 0, [], None)


@pytest.mark.parametrize(
    ("columns", "line"),
    [
        ({"caption": ["x"]}, "part 0: rows of an index have an id"),
        ({"id": ["a"], "colour": ["red"]}, "part 0: rows of an index have an id and know no colour"),
        ({"id": ["a", "a"]}, "part 0: every row of an index needs an id of its own"),
        ({"id": [""]}, "part 0: every row of an index needs an id of its own"),
    ],
)
def test_a_faulty_table_is_one_line_that_names_the_part(columns: dict[str, list[str]], line: str) -> None:
    with pytest.raises(ContractError) as raised:
        rows_of.complete(pa.table(columns), "part 0")
    assert str(raised.value).startswith(line)


def _rows() -> pa.Table:
    values = {
        "id": ["a", "b", "c"],
        "caption": ["红烧肉", "", "猫"],
        "texts": [[{"kind": "alt", "text": "红烧肉"}], [], [{"kind": "tag", "text": "猫"}]],
        "width": [1, 2, 3],
        "source": ["news", "", "news"],
        "image_leader": ["b" * 64, "b" * 64, ""],
        "boxes": [[0.0, 1.0, 2.0, 3.0], [], []],
        "where": [{"path": "/x.tar", "offset": 512, "size": 3, "sha256": ""}, None, None],
    }
    columns = {name: pa.array(column, rows_of.ROWS.field(name).type) for name, column in values.items()}
    return rows_of.complete(pa.table(columns), "part 0")


def test_the_mapped_form_holds_the_same_rows(tmp_path: Path) -> None:
    rows = _rows()
    rows_of.write_mapped(tmp_path / "r.arrow", rows_of.mapped_form(rows, ["红烧肉", "", "猫"]))
    mapped = rows_of.read_mapped(tmp_path / "r.arrow")
    assert rows_of.plain_form(mapped).equals(rows)
    assert rows_of.record(mapped, 0).boxes == ((0, 1, 2, 3),)
    assert rows_of.record(mapped, 0).where == rows_of.Where("/x.tar", 512, 3, "")
    assert rows_of.record(mapped, 1).where is None


def test_rows_are_looked_up_by_their_hashes() -> None:
    mapped = rows_of.mapped_form(_rows(), ["", "", ""])
    hashes = np.array([rows_of.hash_of("b" * 64), rows_of.hash_of("none"), rows_of.hash_of("b" * 64)], np.uint64)
    found = [sorted(same.tolist()) for same in rows_of.rows_with(mapped, "image", hashes)]
    assert found == [[0, 1], [], [0, 1]]


def test_a_row_without_a_similarity_has_not_the_least_one() -> None:
    rows = _rows().set_column(17, "similarity", pa.array([0.5, None, 0.1], pa.float32()))
    mapped = rows_of.mapped_form(rows, ["", "", ""])
    assert rows_of.Filters(min_similarity=0.2).mask(mapped, "image").tolist() == [True, False, False]
    assert not rows_of.Filters(min_score=0.5).of_rows()
