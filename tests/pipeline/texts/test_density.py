"""Density of texts, beside jieba itself: its words, their parts of speech and its frequencies."""

from __future__ import annotations

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.texts.density import CONTENT, FUNCTION, NAMING, cut, density, outside_gbk
from pipeline.texts.forms import even
from pipeline.texts.words import stop_words

WORDS = [
    "红烧肉",
    "的",
    "做法",
    "故宫",
    "雪景",
    "很",
    "好看",
    "iPhone",
    "8",
    "，",
    "新款",
    "们",
    "鱻",
    "😀",
    " ",
    "點擊",
    "夏天",
]
texts = st.lists(st.sampled_from(WORDS), max_size=12).map("".join) | st.text(max_size=30)


@pytest.mark.slow
@given(texts)
def test_words_are_those_that_jieba_cuts_without_guessing(text):
    jieba = pytest.importorskip("jieba")
    assert cut(text) == list(jieba.cut(even(text), HMM=False))


@pytest.mark.slow
@given(texts)
def test_counts_are_those_of_jiebas_parts_of_speech(text):
    from jieba import posseg

    plain = even(text)
    tagged = [pair for pair in posseg.cut(plain, HMM=False) if any(map(str.isalnum, pair.word))]
    own = density(text)
    if [pair.word for pair in tagged] != [word for word in cut(text) if any(map(str.isalnum, word))]:
        return  # posseg parts what it does not know at other places: 8.5 and a_b
    of_han = [pair for pair in tagged if not pair.word.isascii() and pair.flag not in ("x", "m", "eng")]
    named = sum(pair.flag.startswith(NAMING) and pair.word not in stop_words() for pair in of_han)
    listed = Counter(pair.flag[0] for pair in of_han if pair.word not in stop_words())
    latin = sum(pair.word.isascii() and len(pair.word) > 1 and not pair.word.isdigit() for pair in tagged)
    assert own.words == len(tagged)
    assert named <= own.nouns <= named + latin + len(tagged) - len(of_han)
    assert sum(listed[tag] for tag in CONTENT) <= own.content <= own.words
    assert own.stop >= sum(listed[tag] for tag in FUNCTION)


@pytest.mark.parametrize(
    ("text", "words", "nouns", "content", "stop"),
    [
        ("红烧肉的做法步骤图", 5, 3, 4, 1),
        ("點擊查看", 2, 0, 2, 0),
        ("我们的", 2, 0, 0, 2),
        ("iPhone 手机壳", 3, 3, 3, 0),
        ("薰衣草", 1, 1, 1, 0),
        ("大鵟", 2, 1, 2, 0),
        ("，！ 😀", 0, 0, 0, 0),
        ("", 0, 0, 0, 0),
    ],
)
def test_examples(text, words, nouns, content, stop):
    own = density(text)
    assert (own.words, own.nouns, own.content, own.stop) == (words, nouns, content, stop)


@pytest.mark.slow
def test_entropy_follows_the_dictionarys_frequencies():
    jieba = pytest.importorskip("jieba")
    jieba.initialize()
    words = ["故宫", "的", "雪景", "的"]
    p = {word: jieba.dt.FREQ[word] / jieba.dt.total for word in words}
    own = density("故宫的雪景的")
    assert own.entropy == pytest.approx(-sum(p[word] * math.log(p[word]) for word in set(words)))
    assert density("").entropy == 0


@given(texts)
def test_shares_are_shares_and_order_does_not_matter_to_them(text):
    own = density(text)
    assert 0 <= own.content + own.stop <= own.words
    assert 0 <= own.nouns <= own.content
    assert own.stop_share + own.content_share <= 1


def test_unknown_are_characters_without_a_code_in_gbk():
    assert outside_gbk("故宫雪景 ABC，１２") == 0
    assert outside_gbk("東京の") == 0
    assert outside_gbk("😀😀 한국 𠮷") == 5
