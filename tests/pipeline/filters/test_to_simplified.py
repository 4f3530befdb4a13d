"""to_simplified: the conversion, and the original that is kept beside it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_specs.shard import Text
from pipeline.filters.to_simplified import ToSimplified, simplifier
from tests.judged import same_in_a_chunk


def test_simplified_keeps_the_original_if_asked_to():
    text = Text("alt", "臺灣的軟體")
    assert ToSimplified().rewrite(text) == Text("alt", "台湾的软体", "臺灣的軟體")
    assert ToSimplified(config="tw2sp").rewrite(text).text == "台湾的软件"
    assert ToSimplified(keep_original=False).rewrite(text) == Text("alt", "台湾的软体")
    once = ToSimplified().rewrite(text)
    assert ToSimplified().rewrite(once) is once


def test_what_stands_for_the_end_of_a_line_or_of_a_text_moves_no_text():
    assert same_in_a_chunk(simplifier("tw2sp"), ["臺\n灣", "反\0覆", "土"])
    assert same_in_a_chunk(simplifier("tw2sp"), ["反\0覆", "土", "臺灣"])


@pytest.mark.parametrize("config", ["t2s", "tw2sp"])
@given(texts=st.lists(st.text(st.sampled_from("乾坤反覆臺灣軟體土坏 \n\x00a豈"), max_size=10), max_size=6))
def test_texts_are_converted_in_a_chunk_as_each_by_itself(config, texts):
    assert same_in_a_chunk(simplifier(config), texts)
