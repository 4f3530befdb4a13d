"""pair_scores: counts of scores say where a share ends, as sorting all pairs would."""

from __future__ import annotations

from collections import Counter

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.store.pair_scores import UNITS, Cut, end_of_share, in_units, in_words

SCORES = st.lists(st.integers(-UNITS, UNITS), min_size=1, max_size=60)


@pytest.mark.slow
@given(st.lists(st.integers(-20, 20), min_size=1, max_size=60), st.floats(0.001, 1))
def test_a_share_ends_where_sorting_says(units, share):
    pairs = sorted(((-own, f"{n:04x}") for n, own in enumerate(units)))
    wanted = max(1, round(share * len(units)))
    end, ties = end_of_share(Counter(units), share)
    ids = sorted(name for own, name in pairs if own == -end)
    cut = Cut(end, ids[ties - 1])
    assert [pair for pair in pairs if cut.keeps(-pair[0], pair[1])] == pairs[:wanted]


@given(SCORES)
def test_scores_come_back_from_float32_as_they_were(units):
    table = pa.chunked_array([pa.array([own / UNITS for own in units] + [None], pa.float32())])
    own, there = in_units(table)
    assert own.tolist() == [*units, 0]
    assert there.tolist() == [True] * len(units) + [False]


def test_a_score_in_words() -> None:
    counts = {"news": Counter({1_000: 3, 2_000: 1})}
    assert in_words(counts, "news", 0.2) == "pair score 0.2000, better than 75% of the 4 pairs of news"
    assert in_words(counts, "other", 0.2) == "pair score 0.2000"
    assert in_words(counts, "news", None).startswith("not scored")
