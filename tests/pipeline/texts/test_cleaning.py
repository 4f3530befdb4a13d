"""cleaning: one Unicode form, single spaces, nothing invisible, and a text that is clean stays as it is."""

from __future__ import annotations

import time
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.texts import cleaning
from pipeline.texts.cleaning import clean


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (" 红烧\u200b肉 \n 和\u3000米饭\t", "红烧肉 和 米饭"),
        ("cafe\u0301", "caf\u00e9"),
        ("\ufeff标题\x00", "标题"),
        ("\u2067标题\u2069", "标题"),
        ("\u200b \u2028", ""),
        ("（全角）ＡＢＣ", "（全角）ＡＢＣ"),  # width is not ours to change
    ],
)
def test_a_text_is_composed_and_spaced_and_holds_nothing_invisible(text: str, expected: str) -> None:
    assert clean(text) == expected


@given(st.text())
def test_what_is_clean_stays_as_it_is(text: str) -> None:
    once = clean(text)
    assert clean(once) == once
    assert unicodedata.is_normalized("NFC", once)
    assert once == once.strip()


def test_marks_that_normalisation_would_sort_are_cut_to_what_a_stream_may_hold():
    began = time.process_time()
    text = clean("a" + "\u0301\u0323" * 400_000 + "文")
    assert time.process_time() - began < 30, "minutes where all are sorted"
    assert text == unicodedata.normalize("NFC", "a" + "\u0301\u0323" * (cleaning.MAX_MARKS // 2) + "文")
    assert clean(text) == text
    few = "e\u0301\u0323" * 100  # Vietnamese taken apart: put together as before
    assert clean(few) == unicodedata.normalize("NFC", few)
