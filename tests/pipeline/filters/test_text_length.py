"""text_length: thresholds by kind of text, in characters and in words."""

from __future__ import annotations

import pytest

from pipeline.filters.text_length import TextLength
from tests.judged import reason, source


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "text", "kind", "expected"),
    [
        ({}, "故宫雪景图", "alt", ""),
        ({}, "故宫 雪 景", "alt", ""),
        ({}, "故宫 雪 景", "abstract", "text_too_short"),
        ({}, "戚风蛋糕", "title", ""),
        ({}, "首页", "title", "text_too_short"),
        ({}, "正阳门", "alt", ""),
        ({}, "门", "caption", "text_too_short"),
        ({}, "在 Visual Studio Code 里远程调试 Kubernetes 集群中运行的应用程序", "title", ""),
        (
            {"max_chars": 50},
            "在 Visual Studio Code 里远程调试 Kubernetes 集群中运行的应用程序" * 2,
            "title",
            "text_too_long",
        ),
        ({"min_chars": 5}, "正阳门", "alt", "text_too_short"),
        ({"min_chars": {"alt": 4}}, "正阳门", "alt", "text_too_short"),
        ({"min_chars": {"alt": 4}}, "正阳门", "caption", ""),
        ({"max_chars": {"surrounding": 60}}, "云" * 61, "surrounding", "text_too_long"),
        ({}, "云" * 50, "caption", ""),
        ({}, "云" * 51, "caption", "text_too_long"),
        ({}, "云" * 51, "surrounding", ""),
        ({}, "云" * 1001, "surrounding", "text_too_long"),
        ({"min_chars": 2}, "故宫", "alt", ""),
        ({"min_words": 3}, "清晨的第一缕阳光", "alt", ""),
        ({"min_words": 3}, "哈哈哈哈哈！！！", "alt", "text_too_short"),
        ({"max_words": 2}, "清晨的第一缕阳光", "alt", "text_too_long"),
        ({"max_words": 2}, "清晨的第一缕阳光", "content", ""),
        ({"min_words": 2, "min_chars": 2}, "故宫", "alt", "text_too_short"),
        ({"min_words": 2}, "故宫的雪景", "alt", ""),
    ],
)
def test_length(options, text, kind, expected):
    assert reason(TextLength(**options), text, kind) == expected


def test_bounds_for_a_source_are_its_own_whatever_the_filter_judged_before():
    length = TextLength()
    assert reason(length, "门") == "text_too_short"
    assert reason(length.for_source(source("library")), "门") == ""
    assert reason(length, "门") == "text_too_short"
