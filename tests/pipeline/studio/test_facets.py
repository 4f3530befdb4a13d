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

FACETS = facets(["image_nsfw"])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sharpness", "entropy", "blankness"])
def test_a_number_is_counted_in_the_bin_in_which_the_report_counts_it(name: str) -> None:
    with duckdb.connect() as db:

        @given(st.floats(-10, 1e5, allow_nan=False))
        def agrees(value: float) -> None:
            query = f"SELECT {FACETS[name].expression} FROM (SELECT ?::DOUBLE AS {name})"
            at = max(0, bisect_right(MEASURES[name].edges, value) - 1)
            assert db.execute(query, [value]).fetchone() == (str(at),)

        agrees()


def test_what_is_unknown_has_a_value_of_its_own() -> None:
    with duckdb.connect() as db:
        assert db.execute(
            f"SELECT {FACETS['sharpness'].expression} FROM (SELECT NULL::FLOAT AS sharpness)"
        ).fetchone() == ("",)


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
