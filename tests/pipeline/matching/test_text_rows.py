"""text_rows: texts come back from their column as they were."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_specs.text.folding import normal, normals, text_id
from pipeline.matching import text_rows
from pipeline.matching.text_rows import FIELDS, TextRows

texts = st.lists(st.text("春夏秋冬天a1", min_size=1, max_size=40).filter(normal), max_size=12)


def values(rows: TextRows) -> list[tuple[object, ...]]:
    """Every field of each text, as Python values."""
    own = rows.sketches
    shingles = np.split(own.shingles, own.starts[1:-1]) if len(rows) else []
    return [
        (rows.ids[row].tobytes(), shingles[row].tolist(), own.numerals[row], own.parity[row], own.keys[row].tolist())
        for row in range(len(rows))
    ]


@pytest.mark.slow
@given(texts, st.integers(0, 12), st.integers(0, 12))
def test_texts_come_back_from_any_slice_and_chunks_of_their_column(written: list[str], start: int, cut: int) -> None:
    """Arrow's slices keep the buffers of the whole: offsets count from its beginning."""
    rows = text_rows.make_text_rows(normals(written), 0.7)
    column = rows.columns()
    assert column.type == FIELDS
    expected = values(rows)
    assert [row[0].hex() for row in expected] == [text_id(normal(text)) for text in written]  # type: ignore[attr-defined]
    assert values(text_rows.read(column)) == expected
    assert values(text_rows.read(column.slice(start))) == expected[start:]
    assert values(text_rows.read(column.slice(start, cut))) == expected[start : start + cut]
    assert values(text_rows.read(pa.chunked_array([column.slice(0, cut), column.slice(cut)]))) == expected
