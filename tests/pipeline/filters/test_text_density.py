"""text_density: texts that say little, and short ones that say enough."""

from __future__ import annotations

import pytest

from data_specs.shard import Text
from pipeline.filters.text_density import TextDensity
from tests.judged import reason


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("红烧肉", ""),
        ("夏日海边日落风景", ""),
        ("红隼", ""),
        ("十字路口", ""),
        ("瞭望塔", ""),
        ("點擊查看", "no_noun"),
        ("我们的", "no_noun"),
        ("探索", "no_noun"),
        ("😀😀😀😀😀😀红烧肉", "unknown_characters"),
        ("😀😀😀😀😀红烧肉", ""),
        ("是我的和你的那个在这里的图", "stop_words"),
    ],
)
def test_by_default(text, expected):
    assert reason(TextDensity(), text) == expected


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
