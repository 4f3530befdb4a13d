"""Facets as expressions, in words, and as a URL's query."""

from __future__ import annotations

from bisect import bisect_right

import duckdb
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_specs.build import SpecError
from pipeline.report.measures import MEASURES
from pipeline.stages import STAGES
from pipeline.studio.facets import Filters, facets

FACETS = facets()


@pytest.mark.slow
def test_a_size_is_counted_in_the_bin_in_which_the_report_counts_it() -> None:
    with duckdb.connect() as db:
        query = f"SELECT {FACETS['short_side'].expression} FROM (SELECT ?::INTEGER AS width, 9000 AS height)"

        @given(st.integers(0, 9_000))
        def agrees(value: int) -> None:
            at = max(0, bisect_right(MEASURES["short_side"].edges, value) - 1)
            assert db.execute(query, [value]).fetchone() == (str(at),)

        agrees()
        nothing = query.replace("9000 AS height", "NULL::INTEGER AS height")
        assert db.execute(nothing, [None]).fetchone() == ("",), "what is unknown has a value of its own"


def test_values_have_words_in_both_languages() -> None:
    assert FACETS["reason"].words("image_too_small", STAGES) == ("image too small", "图像过小")
    assert FACETS["stage"].words("dedup", STAGES) == ("dedup", "去重")
    assert FACETS["kind"].words("alt", STAGES) == ("alt text", "替代文字")
    assert FACETS["short_side"].words("1", STAGES)[0] == MEASURES["short_side"].labels[1]
    assert FACETS["source"].words("kept", STAGES) == ("kept", "kept"), "a source may be called anything"


def test_a_query_is_read_and_what_it_must_not_say_is_refused() -> None:
    filters = Filters.parse(
        [("reason", "known"), ("reason", "nsfw"), ("q", " 小猫  睡觉 "), ("g", "x"), ("sort", "large")], FACETS
    )
    assert filters == Filters({"reason": ("known", "nsfw")}, "小猫 睡觉", "", "large")
    assert filters.without_facet("reason") == Filters({}, "小猫 睡觉", "", "large")
    for query in (
        [("sort", "pos; DROP TABLE sources")],
        [("leader", "0" * 63 + "'")],
        [("q", "长" * 2_001)],
        [("source", str(n)) for n in range(201)],
        [("source", "x" * 301)],
    ):
        with pytest.raises(SpecError):
            Filters.parse(query, FACETS)
