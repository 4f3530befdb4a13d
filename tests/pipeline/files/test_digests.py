"""digests: hex, raw bytes and Arrow columns of the same digests, whatever slice of a column they are read from."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.files.digests import DIGEST, bytes_of, column_of, digests_of, hexed, rows_of, unhex

pytestmark = pytest.mark.slow


@given(st.lists(st.binary(min_size=32, max_size=32), max_size=9), st.integers(0, 9), st.integers(0, 9))
def test_digests_are_the_same_in_every_form(raw: list[bytes], start: int, cut: int) -> None:
    digests = unhex(value.hex() for value in raw)
    assert rows_of(digests) == raw
    assert hexed(digests).to_pylist() == [value.hex() for value in raw]
    column = column_of(digests)
    assert (column.type, column.to_pylist()) == (DIGEST, raw)
    assert rows_of(digests_of(column.slice(start, cut))) == raw[start : start + cut]
    assert rows_of(digests_of(pa.chunked_array([column.slice(0, cut), column.slice(cut)]))) == raw
    assert rows_of(digests[::2]) == raw[::2], "of rows that do not lie side by side too"
    assert column_of(digests[::2]).to_pylist() == raw[::2]


@given(st.lists(st.binary(max_size=5), max_size=9), st.integers(0, 9), st.integers(0, 9))
def test_bytes_of_a_slice_are_those_of_its_rows(rows: list[bytes], start: int, count: int) -> None:
    data, starts = bytes_of(pa.array(rows, pa.binary()).slice(start, count))
    assert data.tobytes() == b"".join(rows[start : start + count])
    assert [part.tobytes() for part in np.split(data, starts[1:-1])][: len(starts) - 1] == rows[start : start + count]
