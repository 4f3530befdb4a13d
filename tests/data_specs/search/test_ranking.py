"""ranking: a longer beginning starts with the shorter one, whatever is fused and however deep one looks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from data_specs.search import approximate, ranking
from data_specs.search.approximate import Cells
from data_specs.search.ranking import ByBoth, ByVector, Listed, Ranking
from data_specs.search.scan import Stack
from tests.indexed import random_units


@pytest.fixture
def rankings(tmp_path: Path) -> dict[str, Ranking]:
    vectors = random_units(1_500, 16).astype(np.float16)
    stack, query, every = Stack([vectors[:700], vectors[700:]], 16), random_units(1, 16, 5)[0], np.ones(1_500, np.bool_)
    approximate.write(tmp_path / "a", stack, np.arange(1_500))
    words = np.random.default_rng(0).permutation(1_500)[:900]
    exact = ByVector(stack, query, every, None, -2)
    near = ByVector(stack, query, every, Cells(tmp_path / "a"), -2)
    return {
        "exact": exact,
        "near": near,
        "words": Listed(words),
        "both": ByBoth(exact, words, 0.4),
        "near and words": ByBoth(near, words, 0.4),
    }


@pytest.mark.parametrize("name", ["exact", "near", "words", "both", "near and words"])
def test_a_longer_beginning_starts_with_the_shorter_one(rankings: dict[str, Ranking], name: str) -> None:
    order = rankings[name]
    whole = order.first(2_000)
    assert len(whole) == len(np.unique(whole)) == (900 if name == "words" else 1_500)
    for count in (1, 20, 499, 500, 501, 1_000, 1_499):
        assert order.first(count).tolist() == whole[:count].tolist()
    assert order.exact == ("near" not in name)


def test_an_approximate_ranking_is_nearly_the_exact_one(rankings: dict[str, Ranking]) -> None:
    exact, near = (rankings[name].first(100).tolist() for name in ("exact", "near"))
    assert len(set(exact) & set(near)) >= 95


def test_a_fused_rank_is_the_sum_of_both(rankings: dict[str, Ranking]) -> None:
    by_vector = {row: n for n, row in enumerate(rankings["exact"].first(ranking.DEEP).tolist(), 1)}
    by_words = {row: n for n, row in enumerate(rankings["words"].first(ranking.DEEP).tolist(), 1)}
    points = {
        row: (0.6 / (60 + by_vector[row]) if row in by_vector else 0)
        + (0.4 / (60 + by_words[row]) if row in by_words else 0)
        for row in by_vector.keys() | by_words.keys()
    }
    expected = sorted(points, key=lambda row: (-points[row], row))
    assert rankings["both"].first(len(expected)).tolist() == expected


def test_nothing_below_the_least_cosine_is_found(rankings: dict[str, Ranking], tmp_path: Path) -> None:
    vectors = random_units(1_500, 16).astype(np.float16)
    query = random_units(1, 16, 5)[0]
    least = float(np.sort((vectors.astype(np.float64) @ query.astype(np.float64)).astype(np.float32))[-7])
    for cells in (None, Cells(tmp_path / "a")):
        order = ByVector(Stack([vectors], 16), query, np.ones(1_500, np.bool_), cells, least)
        assert order.first(1_500).tolist() == rankings["exact"].first(7).tolist()
