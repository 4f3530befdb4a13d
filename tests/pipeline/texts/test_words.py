"""words: the bound on the number of words agrees with segmentation."""

from __future__ import annotations

import functools
import os
import re
import subprocess
import sys
from pathlib import Path

import jieba
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_specs.text.segmenter import segmenter
from pipeline.texts.words import count_words, has_words, weight, words_of

WORDS = "清晨 的 第一缕 阳光 照 在 故宫 角楼 上 卡拉OK T恤 hello 3.14 年 、 ， 一 帆 风 顺 𠮷 a+b 侵华日军 南京"


@pytest.mark.slow
@pytest.mark.parametrize(
    "text", ["清晨的第一缕阳光", "故宫雪景", "卡拉OK厅里的T恤", "hello world", "！！！", "", "王小明在故宫前留影"]
)
def test_words_are_those_of_jieba(text):
    cut = [word for word in jieba.cut(text, HMM=False) if any(c.isalnum() for c in word)]
    assert count_words(text) == len(cut)


@pytest.mark.slow
@given(st.lists(st.sampled_from(WORDS.split()), max_size=12).map("".join) | st.text(max_size=20), st.integers(1, 8))
def test_the_short_cut_never_errs(text, at_least):
    assert has_words(text, at_least) == (count_words(text) >= at_least)


@functools.cache
def dictionary() -> list[str]:
    return list(segmenter().dt.FREQ)


@functools.cache
def odd() -> list[str]:
    """Words of the dictionary that are not Chinese characters alone."""
    return [word for word in dictionary() if not re.fullmatch("[\u4e00-\u9fd5]+", word)]


@given(st.deferred(lambda: st.sampled_from(dictionary())))
def test_a_word_of_the_dictionary_is_no_two_words_for_sure(word):
    assert has_words(word, 2) == (count_words(word) >= 2)


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


COUNTING = """
import shutil, sys
from types import SimpleNamespace
shutil.disk_usage = lambda folder: SimpleNamespace(free=int(sys.argv[1]))
from pipeline.texts.words import has_words
print(has_words("故宫雪景", 2))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("free", "kept"), [(1 << 20, [])])
def test_a_temporary_folder_without_room_is_not_filled_by_the_dictionary(tmp_path: Path, free: int, kept: list[str]):
    """jieba left what it had written of it when the disk was full, and printed a traceback."""
    environment = os.environ | {"TMPDIR": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[3])}
    words = [sys.executable, "-c", COUNTING, str(free)]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("True\n", "")
    assert [path.name for path in tmp_path.iterdir()] == kept


CHARACTERS = "ab1.+#&_%- 的做法红烧肉番茄超T恤，。！/（C𠀀㐀鿰豈😀é한ぁＡ\n　"


@pytest.mark.slow
@settings(max_examples=100)
@given(
    st.text(CHARACTERS, max_size=30)
    | st.lists(st.sampled_from(["C++", "at&t", "4.1.4", "x-y", "50%", "红烧肉", "李白", "0.5"])).map("".join)
)
def test_words_are_those_of_jieba_itself(text: str) -> None:
    jieba = segmenter()
    assert words_of(text) == [word for word in jieba.lcut(text) if any(map(str.isalnum, word))]
