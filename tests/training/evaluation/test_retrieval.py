"""Ranks, recall, chance and intervals against brute force, closed forms and torchmetrics."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.errors import InputError
from training.evaluation import retrieval as module
from training.evaluation.evaluate import retrieval
from training.evaluation.features import Embeddings
from training.evaluation.hits import Captions, Clusters, Features, Hits
from training.evaluation.retrieval import KS, chance_recall, figures, rank


def unit(rows: np.ndarray) -> Features:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def embeddings(seed: int, count: int, clusters: int) -> Embeddings:
    rng = np.random.default_rng(seed)
    image, text = (unit(rng.normal(size=(count, 4))) for _ in range(2))
    ids = [rng.integers(0, clusters, count) for _ in range(2)]
    return Embeddings(image, text, *ids)


def brute_force(queries: np.ndarray, gallery: np.ndarray, hits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """In float64, query by query: 1 + the misses that are as similar as the best hit; and which queries have one."""
    similar = queries.astype(np.float64) @ gallery.astype(np.float64).T
    best = np.where(hits, similar, -np.inf).max(1, keepdims=True)
    return 1 + (~hits & (similar >= best)).sum(1), hits.any(1)


def clusters_of(found: Embeddings) -> np.ndarray:
    same_image = found.image_ids_N[:, None] == found.image_ids_N
    return np.asarray(same_image | (found.text_ids_N[:, None] == found.text_ids_N))


def matrix(hits: Hits) -> np.ndarray:
    found = np.zeros((hits.images, hits.texts), bool)
    found[hits.pairs(0, hits.images)] = True
    return found


SIZES = st.tuples(st.integers(1, 300), st.integers(1, 30), st.integers(1, 30))


@pytest.mark.slow
@given(seed=st.integers(0, 10_000), count=st.integers(1, 25), clusters=st.integers(1, 40), sizes=SIZES)
def test_ranks_of_clusters_equal_brute_force_in_tiles_of_any_size(
    seed: int, count: int, clusters: int, sizes: tuple[int, int, int]
) -> None:
    found = embeddings(seed, count, clusters)
    hits = clusters_of(found)
    with pytest.MonkeyPatch.context() as patch:
        for name, size in zip(("_BLOCK", "_ROWS", "_TILE"), sizes, strict=True):
            patch.setattr(module, name, size)
        ranks = rank(found.image_ND, found.text_ND, Clusters(found.image_ids_N, found.text_ids_N))
    assert ranks.image_N.tolist() == brute_force(found.image_ND, found.text_ND, hits)[0].tolist()
    assert ranks.text_M.tolist() == brute_force(found.text_ND, found.image_ND, hits.T)[0].tolist()
    assert ranks.image_hits_N.tolist() == hits.sum(1).tolist()
    result = figures(ranks)
    assert result == retrieval(found)
    assert result.image_to_text.recall == {k: float(np.mean(ranks.image_N <= k)) for k in KS}
    assert result.text_to_image.median_rank == float(np.median(ranks.text_M))


@pytest.mark.slow
@given(st.data())
def test_captions_may_describe_several_images_and_images_may_have_none(data: st.DataObject) -> None:
    images, texts = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 20))
    pair = st.tuples(st.integers(0, images - 1), st.integers(0, texts - 1))
    pairs = np.array(data.draw(st.lists(pair, min_size=1, max_size=30))).T
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    image, text = (unit(rng.integers(-2, 3, (n, 3)) + 0.5) for n in (images, texts))  # few values: many ties
    hits = Captions(images, texts, *pairs)
    ranks = rank(image, text, hits)
    for found, counts, queries, gallery, of in (
        (ranks.image_N, ranks.image_hits_N, image, text, matrix(hits)),
        (ranks.text_M, ranks.text_hits_M, text, image, matrix(hits).T),
    ):
        expected, asks = brute_force(queries, gallery, of)
        assert counts.tolist() == of.sum(1).tolist()
        assert found.tolist() == np.where(asks, expected, 0).tolist()


def captions(images: int, each: int) -> Captions:
    return Captions(images, images * each, np.repeat(np.arange(images), each), np.arange(images * each))


@pytest.fixture(scope="module")
def thousand() -> tuple[Features, Features, Captions]:
    """1,000 images with 5 captions each, somewhat like their image."""
    rng = np.random.default_rng(7)
    image = rng.normal(size=(1000, 64))
    text = np.repeat(image, 5, axis=0) + 4 * rng.normal(size=(5000, 64))
    return unit(image), unit(text), captions(1000, 5)


@pytest.mark.slow
def test_recall_equals_that_of_torchmetrics(thousand: tuple[Features, Features, Captions]) -> None:
    torchmetrics = pytest.importorskip("torchmetrics", reason="torchmetrics is not installed (extra: dev)")
    import torch

    image, text, hits = (part[:500] if i < 2 else captions(100, 5) for i, part in enumerate(thousand))
    image = image[:100]
    result = figures(rank(image, text, hits))
    similar, relevant = torch.from_numpy(image @ text.T), torch.from_numpy(matrix(hits))
    for direction, scores, wanted in (
        (result.image_to_text, similar, relevant),
        (result.text_to_image, similar.T, relevant.T),
    ):
        queries = torch.arange(len(scores))[:, None].expand_as(scores)
        for k in KS:
            metric = torchmetrics.retrieval.RetrievalHitRate(top_k=k)
            value = float(metric(scores.flatten(), wanted.flatten(), queries.flatten()))
            assert direction.recall[k] == pytest.approx(value)


@pytest.mark.slow
@given(total=st.integers(1, 7), hits=st.lists(st.integers(1, 7), min_size=1, max_size=3), k=st.integers(1, 10))
@settings(deadline=None)
def test_chance_equals_the_count_over_all_rankings(total: int, hits: list[int], k: int) -> None:
    hits = [min(h, total) for h in hits]
    expected = []
    for h in hits:
        draws = list(itertools.combinations(range(total), min(k, total)))
        expected.append(sum(min(draw) < h for draw in draws) / len(draws))
    assert chance_recall(total, hits, k) == pytest.approx(np.mean(expected))


def collapsed() -> Iterator[Features]:
    """Features that are one, to the bit and to within rounding, of several widths."""
    for width in (4, 300):
        same = unit(np.random.default_rng(0).normal(size=(1, width)))
        yield np.repeat(same, 400, axis=0)
        yield unit(np.repeat(same, 400, axis=0) + 1e-9 * np.random.default_rng(1).normal(size=(400, width)))


@pytest.mark.parametrize("same", list(collapsed()))
def test_a_collapsed_model_gets_nothing_for_its_ties(same: Features) -> None:
    result = retrieval(Embeddings(same, same.copy(), np.arange(400), np.arange(400)))
    assert result.image_to_text.recall == {1: 0.0, 5: 0.0, 10: 0.0}
    assert result.text_to_image.median_rank == 400


def test_a_mask_restricts_the_queries_and_not_the_candidates(thousand: tuple[Features, Features, Captions]) -> None:
    image, text, hits = thousand
    ranks = rank(image, text, hits)
    some = np.arange(1000) % 3 == 0
    part, rest = (figures(ranks, mask, np.repeat(mask, 5)) for mask in (some, ~some))
    assert (part.samples, part.text_to_image.queries) == (334, 1670)
    assert part.text_to_image.chance[1] == pytest.approx(1 / 1000)
    for k in KS:
        together = (334 * part.image_to_text.recall[k] + 666 * rest.image_to_text.recall[k]) / 1000
        assert together == pytest.approx(figures(ranks).image_to_text.recall[k])


@pytest.mark.slow
def test_intervals_cover_what_independent_queries_would_and_widen_for_captions_of_one_image(
    thousand: tuple[Features, Features, Captions],
) -> None:
    image, text, hits = thousand
    ranks = rank(image, text, hits)
    result = figures(ranks, intervals=True)
    assert result == figures(ranks, intervals=True), "the same at every call"
    assert result.image_to_text.intervals is not None
    assert result.text_to_image.intervals is not None
    assert result.interval is not None
    for k in KS:
        share = result.image_to_text.recall[k]
        low, high = result.image_to_text.intervals[k]
        normal = 1.96 * (share * (1 - share) / 1000) ** 0.5  # of independent queries, the images
        assert (low, high) == pytest.approx((share - normal, share + normal), abs=0.006)
    assert result.interval[0] < result.mean_recall < result.interval[1]

    alike = unit(np.repeat(text[::5], 5, axis=0))  # five captions that are one: as many queries, a fifth of the facts
    same = figures(rank(image, alike, hits), intervals=True).text_to_image
    assert same.intervals is not None
    share, (low, high) = same.recall[1], same.intervals[1]
    assert high - low == pytest.approx(2 * 1.96 * (share * (1 - share) / 1000) ** 0.5, abs=0.012)
    assert result.to_json()["t2i"]["queries"] == 5000
    assert result.to_json()["mean_recall_interval"] == list(result.interval)


def test_features_that_are_not_finite_are_an_error() -> None:
    bad = np.full((3, 2), np.nan, dtype=np.float32)
    with pytest.raises(InputError, match="not finite"):
        retrieval(Embeddings(bad, bad, np.arange(3), np.arange(3)))


def test_no_query_with_a_hit_is_an_error() -> None:
    eye = np.eye(3, dtype=np.float32)
    ranks = rank(eye, eye, Clusters(np.arange(3), np.arange(3)))
    with pytest.raises(InputError, match="no query"):
        figures(ranks, np.zeros(3, bool), np.zeros(3, bool))
