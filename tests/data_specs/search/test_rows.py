"""rows: columns that a writer may leave out, and that nothing is lost between tables, files and records."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from data_specs.search import rows as rows_of
from data_specs.shard import ContractError

GIVEN = {
    "id": ["a", "b", "c"],
    "caption": ["红烧肉", None, "猫"],
    "texts": [[{"kind": "alt", "text": "红烧肉"}], None, [{"kind": "tag", "text": "猫"}]],
    "boxes": [[0.0, 1.0, 2.0, 3.0], [], []],
    "where": [{"path": "/x.tar", "offset": 512, "size": 3, "sha256": ""}, None, None],
    "similarity": [0.5, None, 0.1],
}


def test_rows_are_the_same_in_tables_files_and_records(tmp_path: Path) -> None:
    columns = {name: pa.array(column, rows_of.ROWS.field(name).type) for name, column in GIVEN.items()}
    rows = rows_of.complete(pa.table(columns), "part 0")
    assert rows.schema == rows_of.ROWS
    rows_of.write_mapped(tmp_path / "r.arrow", rows_of.with_words(rows, ["红烧肉", "", "猫"]))
    mapped = rows_of.read_mapped(tmp_path / "r.arrow")
    assert mapped.select(rows_of.ROWS.names).equals(rows)
    first, second, _ = (rows_of.record(mapped, row) for row in range(3))
    assert (first.boxes, first.where) == (((0, 1, 2, 3),), rows_of.PictureLocation("/x.tar", 512, 3, ""))
    assert (second.caption, second.width, second.texts, second.where) == ("", 0, (), None)
    # a row without a similarity has not the least one
    assert rows_of.Filters(min_similarity=0.2).mask(mapped, "image").tolist() == [True, False, False]
    assert not rows_of.Filters(min_score=0.5).of_rows()


@pytest.mark.parametrize(
    ("columns", "line"),
    [
        ({"caption": ["x"]}, "part 0: rows of an index need the column id"),
        ({"id": ["a"], "colour": ["red"]}, "part 0: unknown columns: colour"),
        ({"id": ["a", "a"]}, "part 0: every row of an index needs a unique id"),
        ({"id": [""]}, "part 0: every row of an index needs a unique id"),
    ],
)
def test_a_faulty_table_is_one_line_that_names_the_part(columns: dict[str, list[str]], line: str) -> None:
    with pytest.raises(ContractError) as raised:
        rows_of.complete(pa.table(columns), "part 0")
    assert str(raised.value).startswith(line)
