"""words: they are those of jieba."""

from __future__ import annotations

import functools
import re

import jieba
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.texts.words import count_words, weight, words_of

WORDS = "清晨 的 第一缕 阳光 照 在 故宫 角楼 上 卡拉OK T恤 hello 3.14 年 、 ， 一 帆 风 顺 𠮷 a+b 侵华日军 南京"


@pytest.mark.slow
@pytest.mark.parametrize(
    "text", ["清晨的第一缕阳光", "故宫雪景", "卡拉OK厅里的T恤", "hello world", "！！！", "", "王小明在故宫前留影"]
)
def test_words_are_those_of_jieba(text):
    cut = [word for word in jieba.cut(text, HMM=False) if any(c.isalnum() for c in word)]
    assert count_words(text) == len(cut)


@functools.cache
def odd() -> list[str]:
    """Words of the dictionary that are not Chinese characters alone."""
    jieba.initialize()
    return [word for word in jieba.dt.FREQ if not re.fullmatch("[\u4e00-\u9fd5]+", word)]


@pytest.mark.slow
@settings(max_examples=100)
@given(
    st.lists(
        st.sampled_from(WORDS.split()) | st.deferred(lambda: st.sampled_from(odd())) | st.text(max_size=3), max_size=9
    ).map("".join)
)
def test_words_are_counted_as_by_jieba_without_guessing(text):
    for written in (text, text.upper()):
        cut = [word for word in jieba.cut(written, HMM=False) if any(map(str.isalnum, word))]
        assert count_words(written) == len(cut)


@given(st.text(st.sampled_from("云abc1 -é，"), max_size=30))
def test_a_text_weighs_its_characters_at_most_and_a_latin_word_as_much_as_a_third_of_four(text):
    assert 0 <= weight(text) <= sum(map(len, text.split()))
    assert weight("three English words") == pytest.approx(4)
    assert weight("云" + text) == pytest.approx(1 + weight(text))


def test_names_that_the_dictionary_lacks_are_guessed():
    assert words_of("王小明，在故宫前留影 C++") == ["王小明", "在", "故宫", "前", "留影", "C++"]
