"""The text filters: what they keep, and why they drop."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_specs.shard import Text, TextKind
from pipeline.filters import TextFilter
from pipeline.filters.boilerplate import Boilerplate
from pipeline.filters.han_share import HanShare
from pipeline.filters.text_length import TextLength


def reason(f: TextFilter, text: str, kind: TextKind = "alt") -> str:
    found = f.check(Text(kind, text))
    return found.reason.value if found else ""


@pytest.mark.parametrize(
    ("options", "text", "kind", "expected"),
    [
        ({}, "故宫雪景图", "alt", ""),
        ({}, "故宫 雪 景", "alt", "text_too_short"),
        ({}, "云" * 50, "caption", ""),
        ({}, "云" * 51, "caption", "text_too_long"),
        ({}, "云" * 51, "surrounding", ""),
        ({}, "云" * 1001, "surrounding", "text_too_long"),
        ({"min_chars": 2}, "故宫", "alt", ""),
        ({"min_words": 3}, "清晨的第一缕阳光", "alt", ""),
        ({"min_words": 3}, "哈哈哈哈哈！！！", "alt", "text_too_short"),
        ({"max_words": 2}, "清晨的第一缕阳光", "alt", "text_too_long"),
    ],
)
def test_length(options, text, kind, expected):
    assert reason(TextLength(**options), text, kind) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("故宫雪景", ""),
        ("高清壁纸 1920x1080", ""),
        ("iPhone手机", "low_han_share"),
        ("2024年Q3财报", ""),
        ("列夫・托尔斯泰", ""),
        ("桜の花", "not_chinese"),
        ("東京タワー", "not_chinese"),
        ("서울 漢字漢字漢字", "not_chinese"),
        ("hello world", "low_han_share"),
        ("12345", "low_han_share"),
        ("𠮷野家", ""),
        ("", "low_han_share"),
    ],
)
def test_han_share(text, expected):
    assert reason(HanShare(), text) == expected


GONE = """查看源网页 展开全文 点击查看大图 图片来自网络 IMG_1234.jpg 000.jpg 点击查看大图>>展开全文
（图片来源：网络图片） DSC01234 mmexport1536812345678 微信图片_20200101120000 步骤①：准备米粉.jpg 图1 图片 undefined
http://a.com/b.html www.example.com 2024-01-02 d41d8cd98f00b204e9800998ecf8427e"""

KEPT = """点击查看大图：黄山云海 葱烧海参-预览图-5 图片显示故宫雪景 照片里的小猫 故宫雪景www.example.com 广告牌下的行人
下一页的故事 2024年的第一场雪 头像雕塑"""


@pytest.mark.parametrize("text", [*GONE.split(), "alt text"])
def test_boilerplate_goes(text):
    assert reason(Boilerplate(), text) == "boilerplate"


@pytest.mark.parametrize("text", KEPT.split())
def test_texts_that_only_contain_a_phrase_stay(text):
    assert reason(Boilerplate(), text) == ""


def test_phrases_of_the_spec_count_and_the_packaged_ones_can_be_left_out():
    assert reason(Boilerplate(phrases=("本站原创",)), "【本站原创】") == "boilerplate"
    assert reason(Boilerplate(packaged=False), "展开全文") == ""


@given(st.text(max_size=80))
def test_no_text_raises_and_judging_twice_says_the_same(text):
    for f in (TextLength(), HanShare(), Boilerplate()):
        assert f.check(Text("alt", text)) == f.check(Text("alt", text))
