"""text_rows: texts come back from their column as they were, and no leader that shares a band is left out."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from data_specs.text.folding import normal, normals, text_id
from pipeline.matching import text_rows
from pipeline.matching.text_rows import FIELDS, BandFilter, TextRows

texts = st.lists(st.text("春夏秋冬天a1", min_size=1, max_size=40).filter(normal), max_size=12)


def values(rows: TextRows) -> list[tuple[object, ...]]:
    """Every field of each text, as Python values."""
    own = rows.sketches
    shingles = np.split(own.shingles, own.starts[1:-1]) if len(rows) else []
    return [
        (rows.ids[row].tobytes(), shingles[row].tolist(), own.numerals[row], own.parity[row], own.keys[row].tolist())
        for row in range(len(rows))
    ]


@given(texts, st.integers(0, 12), st.integers(0, 12))
def test_texts_come_back_from_any_slice_and_chunks_of_their_column(written: list[str], start: int, cut: int) -> None:
    """Arrow's slices keep the buffers of the whole: offsets count from its beginning."""
    rows = text_rows.made(normals(written), 0.7)
    column = rows.columns()
    assert column.type == FIELDS
    expected = values(rows)
    assert [row[0].hex() for row in expected] == [text_id(normal(text)) for text in written]  # type: ignore[attr-defined]
    assert values(text_rows.read(column)) == expected
    assert values(text_rows.read(column.slice(start))) == expected[start:]
    assert values(text_rows.read(column.slice(start, cut))) == expected[start : start + cut]
    assert values(text_rows.read(pa.chunked_array([column.slice(0, cut), column.slice(cut)]))) == expected
    keys = text_rows.keys_of(column.slice(start).flatten()[FIELDS.get_field_index("keys")])
    assert keys.tolist() == [key for row in expected[start:] for key in row[4]]  # type: ignore[attr-defined]


@given(texts, texts)
def test_the_band_filter_lets_every_text_pass_that_shares_a_band(of_build: list[str], leaders: list[str]) -> None:
    bands = BandFilter()
    keys = text_rows.made(normals(leaders), 0.7).sketches.keys
    assert bands.rows(keys).tolist() == [], "nothing passes a filter of no text"
    own = text_rows.made(normals(of_build), 0.7).sketches.keys
    bands.add(own)
    shared = [row for row, bands_of_row in enumerate(keys) if set(bands_of_row.tolist()) & set(own.ravel().tolist())]
    assert set(shared) <= set(bands.rows(keys).tolist())


def test_texts_of_other_shingles_do_not_pass_the_band_filter() -> None:
    bands = BandFilter()
    bands.add(text_rows.made(normals(["今天天气很好我们去公园散步吧", "红烧肉"]), 0.7).sketches.keys)
    others = text_rows.made(normals(["江南水乡的清晨薄雾", "一只小猫在睡觉"]), 0.7).sketches.keys
    assert bands.rows(others).tolist() == []


def test_few_others_pass_the_band_filter() -> None:
    rng = np.random.default_rng(5)
    bands = BandFilter()
    bands.add(rng.integers(0, 2**32, (10_000, 26), dtype=np.uint32))
    others = rng.integers(0, 2**32, (20_000, 26), dtype=np.uint32)
    assert len(bands.rows(others)) < 200  # 158; by one of both tables 6,612
