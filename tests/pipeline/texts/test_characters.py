"""characters: tables over all code points say of texts in a row what they say of one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.texts.characters import NOTHING, SEVERAL, Table, concat, count_flags, split_texts

TEXTS = st.lists(st.text(max_size=12), max_size=8)


@given(TEXTS)
def test_texts_in_a_row_are_cut_as_they_were_joined(texts):
    points, bounds = concat(texts)
    assert len(bounds) == len(texts) + 1
    assert split_texts(points, bounds) == texts


@pytest.mark.slow
@given(TEXTS)
def test_counts_are_those_of_each_text_by_itself(texts):
    points, bounds = concat(texts)
    assert count_flags(points > 0x7F, bounds) == [sum(not c.isascii() for c in text) for text in texts]


@given(st.text(max_size=30))
def test_a_table_says_the_same_of_code_points_as_to_translate(text):
    table = Table(lambda c: c.upper() if c.isalpha() else "" if c.isspace() else c)
    points, _ = concat([text])
    for _ in range(2):
        become = ["" if p == NOTHING else None if p == SEVERAL else chr(p) for p in table.of_points(points)]
        forms = [c.translate(table) for c in text]
        assert become == [form if len(form) < 2 else None for form in forms]  # ß becomes SS
