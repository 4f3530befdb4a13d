"""Pictures and vectors as they stand in a request."""

from __future__ import annotations

import base64

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

pytest.importorskip("fastapi")

from training.serve.inputs import picture_of, vector_of
from training.serve.refusals import Refused


@given(st.binary(min_size=1, max_size=200), st.sampled_from(["", "data:image/jpeg;base64,", "DATA:;charset=x;BASE64,"]))
@example(b"\xff\xf0", "")  # //A=: begins as an address without a scheme does
def test_base64_and_data_uris_hold_a_pictures_bytes(content: bytes, before: str) -> None:
    assert picture_of(before + base64.b64encode(content).decode(), "input") == content


@given(st.text(max_size=60))
def test_no_text_is_anything_but_bytes_or_a_refusal(text: str) -> None:
    try:
        content: bytes | Refused = picture_of(text, "input")
    except Refused as e:
        content = e
    assert content if isinstance(content, bytes) else (content.status, content.param) == (400, "input")


@given(st.lists(st.floats(-1e300, 1e300), min_size=3, max_size=3))
def test_a_vector_is_of_length_one_or_refused(numbers: list[float]) -> None:
    if any(numbers):
        assert np.linalg.norm(vector_of(numbers, 3, "v")) == pytest.approx(1, abs=1e-5)
    else:
        with pytest.raises(Refused, match="not all zero"):
            vector_of(numbers, 3, "v")
