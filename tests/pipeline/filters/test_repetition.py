"""repetition: texts that repeat themselves, and Chinese words that double a character."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.filters.repetition import _NO_LETTER, Repetition
from tests.judged import reason


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("哈哈哈哈哈哈哈", "repetition"),
        ("啊啊啊啊啊啊好美", "repetition"),
        ("美女美女美女美女", "repetition"),
        ("小猫小猫小猫", "repetition"),
        ("高清壁纸高清壁纸高清壁纸", "repetition"),
        ("哈哈哈哈哈", ""),
        ("红红火火恍恍惚惚", ""),
        ("滴答滴答滴答雨一直下", ""),
        ("四是四，十是十，十四是十四，四十是四十", ""),
        ("人山人海的人行道", ""),
        ("1000000000 元", ""),
        ("1000000000元", ""),
        ("……………………雪", ""),
    ],
)
def test_repetition(text, expected):
    assert reason(Repetition(), text) == expected


@given(st.text(st.characters(categories=["L"]) | st.sampled_from("一①〇½₂_٣ー々"), max_size=6))
def test_of_a_text_of_letters_nothing_is_left_out(text):
    assert not text.isalpha() or _NO_LETTER.sub("", text) == text
