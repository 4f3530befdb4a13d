"""Section `data_profile`: lengths, density, hosts, and words that moved more than by chance."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pipeline.report.sections.data_profile import compared, hosts

Week = tuple[str, dict[str, Any]]
WORDS = [f"词{i}" for i in range(40)]


def drawn(seed: int, texts: int, shares: dict[str, float]) -> dict[str, int]:
    rng = np.random.default_rng(seed)
    return {word: int(rng.binomial(texts, share)) for word, share in shares.items()}


def test_words_that_moved_are_found_and_those_that_did_not_are_not() -> None:
    shares = dict.fromkeys(WORDS, 0.02)
    now = drawn(1, 5_000, shares | {"词0": 0.06, "词1": 0.002})
    before = drawn(2, 20_000, shares)
    rose, fell = compared(now, 5_000, before, 20_000)
    assert [row["name"] for row in rose] == ["词0"]
    assert [row["name"] for row in fell] == ["词1"]
    assert rose[0]["now"] == now["词0"] / 5_000
    assert rose[0]["z"] > 3


@given(st.integers(0, 10_000))
def test_what_is_drawn_alike_on_both_sides_hardly_moves(seed: int) -> None:
    shares = dict.fromkeys(WORDS, 0.03)
    rose, fell = compared(drawn(seed, 2_000, shares), 2_000, drawn(seed + 20_000, 4_000, shares), 4_000)
    assert len(rose) + len(fell) <= 3  # of 40 words at 3 standard errors; the prior holds them back further


@given(
    st.dictionaries(st.sampled_from(WORDS), st.integers(1, 500)),
    st.dictionaries(st.sampled_from(WORDS), st.integers(1, 500)),
)
def test_rose_and_fell_change_places_with_the_two_sides(a: dict[str, int], b: dict[str, int]) -> None:
    rose, fell = compared(a, 500, b, 500)
    back, forth = compared(b, 500, a, 500)
    assert [(r["name"], r["z"]) for r in rose] == [(r["name"], -r["z"]) for r in forth]
    assert [(r["name"], r["z"]) for r in fell] == [(r["name"], -r["z"]) for r in back]


def test_a_word_beyond_the_list_of_the_baseline_counts_as_its_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.report.sections.data_profile.VOCABULARY", 2)
    assert compared({"新": 60}, 1_000, {"甲": 60, "乙": 58}, 1_000)[0] == []
    monkeypatch.setattr("pipeline.report.sections.data_profile.VOCABULARY", 3)  # the list is whole: 0 texts held it
    assert [row["name"] for row in compared({"新": 60}, 1_000, {"甲": 60, "乙": 58}, 1_000)[0]] == ["新"]


def test_nothing_is_compared_with_nothing() -> None:
    assert compared({}, 0, {"甲": 1}, 10) == ([], [])


def test_hosts_are_the_largest_with_the_share_of_forty() -> None:
    listed = [{"name": f"h{i}", "count": 50 - i} for i in range(50)]
    said = hosts(listed, 2_000)
    assert [row["name"] for row in said["largest"]] == [f"h{i}" for i in range(10)]
    assert said["share"] == pytest.approx(sum(50 - i for i in range(40)) / 2_000)


@pytest.mark.drill(2)
def test_a_report_has_it_and_the_second_week_compares(
    grown: tuple[Week, Week], part: Callable[[str, str], str]
) -> None:
    (_, first), (page, second) = grown
    assert first["data_profile"]["baseline"] == ""
    assert second["data_profile"]["baseline"] == first["build"]["id"]
    measures = {row["name"]: row for row in second["data_profile"]["measures"]}
    assert second["data_profile"]["texts"] == second["totals"]["kept"]
    bins = next(h for h in second["histograms"] if h["name"] == "characters")["bins"]
    counted = np.cumsum([b["count"] for b in bins])
    median = bins[int(np.searchsorted(counted, counted[-1] / 2))]["label"]  # the bin that holds the median
    low, _, high = median.partition("–")
    assert int(low) <= measures["characters"]["median"] <= int(high or low)
    assert 0 <= measures["content"]["low"] <= measures["content"]["median"] <= measures["content"]["high"] <= 1
    html = part(page, "data_profile")
    assert "这是什么样的数据" in html
    assert "Words that rose" in html
