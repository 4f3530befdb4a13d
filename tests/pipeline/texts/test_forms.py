"""forms: disguises disappear, and positions in a form lead back to the text."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.texts.forms import bare, even, positions


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("法*轮 功", "法轮功"),
        ("ＶＸ：Ａｂｃ１２３４", "vxabc1234"),
        ("①③⑧ 1️⃣3️⃣", "13813"),
        ("臺灣國語，乾淨", "台湾国语干净"),
        ("➕薇❤", "加薇心"),
        ("e\u0301t\u00e9", "ete"),
        ("零\u200b宽\u2060字\ufeff符", "零宽字符"),
        ("⑩㈱", "10株"),
        ("……！", ""),
    ],
)
def test_bare(text, expected):
    assert bare(text) == expected


@given(st.text(max_size=40))
def test_forms_are_done_in_one_step_and_places_lead_back(text):
    assert bare(bare(text)) == bare(text)
    assert even(even(text)) == even(text)
    assert len(even(text)) == len(text)
    assert bare(even(text)) == bare(text)
    assert len(positions(text)) == len(bare(text))
    assert "".join(bare(text[at]) for at in dict.fromkeys(positions(text))) == bare(text)


@given(st.text(st.characters(min_codepoint=0x4E00, max_codepoint=0x9FFF), max_size=20))
def test_width_and_case_of_what_stands_beside_han_do_not_matter(han):
    assert bare(f"{han}ＡＢ１２") == bare(f"{han}ab12")
    assert bare(unicodedata.normalize("NFD", f"{han}é")) == bare(f"{han}é")
