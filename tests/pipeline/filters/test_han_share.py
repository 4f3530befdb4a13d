"""han_share: texts in Chinese, and in other languages that use Chinese characters."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.filters.han_share import HanShare, scripts
from tests.judged import reason, same_in_a_chunk


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("故宫雪景", ""),
        ("高清壁纸 1920x1080", ""),
        ("iPhone手机", ""),
        ("Chrome 调试", ""),
        ("Installing the GRUB boot loader on a disk 图", "low_han_share"),
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


def test_a_stated_share_is_one_of_letters_and_a_title_needs_more_han_than_a_caption():
    assert reason(HanShare(min_share=0.5), "iPhone手机") == "low_han_share"
    assert reason(HanShare(), "VS Code 与 Docker Compose 图", "caption") == ""
    assert reason(HanShare(), "VS Code 与 Docker Compose 图", "title") == "low_han_share"
    assert reason(HanShare(min_share={"title": 0.1}), "VS Code 与 Docker Compose 图", "title") == ""


@given(st.lists(st.text(st.characters() | st.sampled_from("故𠮷〇か한ㄱｶa1_é "), max_size=12), max_size=6))
def test_scripts_of_a_chunk_are_those_of_its_texts(texts):
    assert same_in_a_chunk(scripts, texts)
