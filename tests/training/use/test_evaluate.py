from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.errors import InputError
from training.use.evaluate import KS, Embeddings, chance_recall, retrieval


def embeddings(seed: int, count: int, clusters: int) -> Embeddings:
    rng = np.random.default_rng(seed)
    image, text = (rng.normal(size=(count, 4)).astype(np.float32) for _ in range(2))
    ids = [rng.integers(0, clusters, count) for _ in range(2)]
    return Embeddings(image, text, *ids)


def brute_force(queries: np.ndarray, gallery: np.ndarray, found: Embeddings) -> tuple[dict[int, float], float]:
    """Sort the gallery for each query and look, sample by sample, where the first hit stands."""
    ranks = []
    for i, query in enumerate(queries):
        order = sorted(range(len(gallery)), key=lambda j: -float(np.float32(query) @ gallery[j]))
        hits = [
            found.image_ids_N[i] == found.image_ids_N[j] or found.text_ids_N[i] == found.text_ids_N[j] for j in order
        ]
        ranks.append(1 + hits.index(True))
    return {k: sum(r <= k for r in ranks) / len(ranks) for k in KS}, float(np.median(ranks))


@given(seed=st.integers(0, 10_000), count=st.integers(1, 25), clusters=st.integers(1, 40))
@settings(deadline=None, max_examples=40)
def test_recall_and_rank_equal_brute_force(seed: int, count: int, clusters: int) -> None:
    found = embeddings(seed, count, clusters)
    result = retrieval(found)
    for direction, queries, gallery in (
        (result.image_to_text, found.image_ND, found.text_ND),
        (result.text_to_image, found.text_ND, found.image_ND),
    ):
        recall, median = brute_force(queries, gallery, found)
        assert direction.recall == pytest.approx(recall)
        assert direction.median_rank == median


@given(total=st.integers(1, 7), hits=st.lists(st.integers(1, 7), min_size=1, max_size=3), k=st.integers(1, 10))
@settings(deadline=None)
def test_chance_equals_the_count_over_all_rankings(total: int, hits: list[int], k: int) -> None:
    hits = [min(h, total) for h in hits]
    expected = []
    for h in hits:
        draws = list(itertools.combinations(range(total), min(k, total)))
        expected.append(sum(min(draw) < h for draw in draws) / len(draws))
    assert chance_recall(total, hits, k) == pytest.approx(np.mean(expected))


def test_random_features_reach_chance_on_average() -> None:
    results = [retrieval(embeddings(seed, 40, 30)) for seed in range(60)]
    for k in KS:
        found = np.mean([r.image_to_text.recall[k] for r in results])
        assert found == pytest.approx(np.mean([r.image_to_text.chance[k] for r in results]), abs=0.03)


def test_a_collapsed_model_gets_nothing_for_its_ties() -> None:
    same = np.ones((20, 4), dtype=np.float32)
    result = retrieval(Embeddings(same, same, np.arange(20), np.arange(20)))
    assert result.image_to_text.recall == {1: 0.0, 5: 0.0, 10: 0.0}
    assert result.text_to_image.median_rank == 20


def test_a_perfect_model_gets_all_of_it() -> None:
    unit = np.eye(12, dtype=np.float32)
    result = retrieval(Embeddings(unit, unit, np.arange(12), np.arange(12)))
    assert result.mean_recall == 1.0
    assert result.to_json()["i2t"] == {
        "r1": 1.0,
        "r5": 1.0,
        "r10": 1.0,
        "chance_r1": pytest.approx(1 / 12),
        "chance_r5": pytest.approx(5 / 12),
        "chance_r10": pytest.approx(10 / 12),
        "median_rank": 1.0,
    }


def test_features_that_are_not_finite_are_an_error() -> None:
    bad = np.full((3, 2), np.nan, dtype=np.float32)
    with pytest.raises(InputError, match="not finite"):
        retrieval(Embeddings(bad, bad, np.arange(3), np.arange(3)))
