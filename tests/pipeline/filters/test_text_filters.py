"""Filters of texts that judge by the text alone: what each drops and keeps by default, and its options."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_specs.shard import Text
from pipeline.filters.han_share import HanShare
from pipeline.filters.language import Language
from pipeline.filters.repetition import _NO_LETTER, Repetition
from pipeline.filters.text_density import TextDensity
from tests.judged import reason

BY_DEFAULT = {
    HanShare: {
        "": ["故宫雪景", "高清壁纸 1920x1080", "iPhone手机", "Chrome 调试", "2024年Q3财报", "列夫・托尔斯泰", "𠮷野家"],
        "low_han_share": ["Installing the GRUB boot loader on a disk 图", "hello world", "12345", ""],
        "not_chinese": ["桜の花", "東京タワー", "서울 漢字漢字漢字"],
    },
    TextDensity: {
        "": ["红烧肉", "夏日海边日落风景", "红隼", "十字路口", "瞭望塔", "😀😀😀😀😀红烧肉"],
        "no_noun": ["點擊查看", "我们的", "探索"],
        "unknown_characters": ["😀😀😀😀😀😀红烧肉"],
        "stop_words": ["是我的和你的那个在这里的图"],
    },
    Language: {
        "": [
            "故宫雪景",
            "故宮雪景",
            "國立故宮博物院典藏清代瓷器展覽",
            "一個中世紀的城市和它的城牆",
            "口感嫩滑微苦回甘然后撒上香菜即可",
            "台灣歷史与文化研究中心",
            "东京国立博物馆收藏的中国古代青铜器展览",
            "",
        ],
        "not_chinese": [
            "国立西洋美術館常設展示作品一覧",
            "株式会社日本経済新聞社東京本社編集局",
            "東京都千代田区丸内一丁目九番一号",
            "日本国憲法第九条戦争放棄条項全文",
        ],
    },
    Repetition: {
        "repetition": [
            "哈哈哈哈哈哈哈",
            "啊啊啊啊啊啊好美",
            "美女美女美女美女",
            "小猫小猫小猫",
            "高清壁纸高清壁纸高清壁纸",
        ],
        "": [
            "哈哈哈哈哈",
            "红红火火恍恍惚惚",
            "滴答滴答滴答雨一直下",
            "四是四，十是十，十四是十四，四十是四十",
            "人山人海的人行道",
            "1000000000 元",
            "1000000000元",
            "……………………雪",
        ],
    },
}
"""Texts by the reason why each is dropped; "" keeps them."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "text", "expected"),
    [(kind, text, drop) for kind, texts in BY_DEFAULT.items() for drop, own in texts.items() for text in own],
)
def test_by_default(kind, text, expected):
    assert reason(kind(), text) == expected


def test_a_stated_share_is_one_of_letters_and_a_title_needs_more_han_than_a_caption():
    assert reason(HanShare(min_share=0.5), "iPhone手机") == "low_han_share"
    assert reason(HanShare(), "VS Code 与 Docker Compose 图", "caption") == ""
    assert reason(HanShare(), "VS Code 与 Docker Compose 图", "title") == "low_han_share"
    assert reason(HanShare(min_share={"title": 0.1}), "VS Code 与 Docker Compose 图", "title") == ""


@pytest.mark.slow
def test_each_limit_can_be_set_and_switched_off():
    silent = TextDensity(min_nouns=0, max_stop_share=1, max_unknown=100)
    assert reason(silent, "我们的") == ""
    assert silent.limits() == ()
    assert reason(silent.model_copy(update={"min_entropy": 6e-4}), "口水鸡") == "text_entropy"
    assert reason(silent.model_copy(update={"min_entropy": 6e-4}), "锅里的口水鸡") == ""
    assert reason(silent.model_copy(update={"min_content_share": 0.6}), "我的图") == "few_content_words"
    assert reason(silent.model_copy(update={"min_nouns": 3}), "故宫雪景") == "no_noun"
    assert reason(silent.model_copy(update={"min_nouns": 2}), "故宫雪景") == ""


def test_evidence_names_the_count_and_the_limit():
    drop = TextDensity().check(Text("alt", "點擊查看"))
    assert drop is not None
    assert drop.evidence == "0 nouns; needs 1"


@pytest.mark.parametrize(
    "text",
    [
        "故宫雪景",
        "一個中世紀的城市和它的城牆",
        "东京国立博物馆收藏的中国古代青铜器展览",
        "東京タワーの夜景写真集全巻",
        "展覽",
    ],
)
def test_script_decides_without_a_model(text):
    assert not Language().is_doubtful(text)


@given(st.text(st.characters(categories=["L"]) | st.sampled_from("一①〇½₂_٣ー々"), max_size=6))
def test_of_a_text_of_letters_nothing_is_left_out(text):
    assert not text.isalpha() or _NO_LETTER.sub("", text) == text
