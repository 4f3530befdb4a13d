"""vectors: exact search equals a sorted list of NumPy's cosines; nearly all of the best are found approximately."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_specs.search import vectors
from data_specs.search.vectors import Approximate, Rows, Stack, best, cosines_of, write_approximate
from tests.indexed import random_units, units


@pytest.mark.parametrize("width", [1, 3, 64, 2_048])
@pytest.mark.parametrize("chunk", [1, 64 << 20])
def test_products_are_within_their_margin(width: int, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vectors, "CHUNK", chunk)
    rows, query = random_units(300, width).astype(np.float16), random_units(1, width, seed=1)[0]
    rows[0] = query
    allowed = np.random.default_rng(0).random(300) < 0.8
    allowed[:100] = np.arange(100) == 0
    products, margin = Stack([rows[:100], rows[100:]], width).products(query, allowed)
    assert margin < 5e-4
    assert np.abs(products - cosines_of(rows, query))[allowed].max() <= margin
    assert (products[~allowed] == -np.inf).all()


@pytest.mark.slow
@given(
    st.lists(st.lists(st.integers(-1, 1), min_size=4, max_size=4).filter(any), min_size=1, max_size=40),
    st.lists(st.integers(0, 40), max_size=5),
    st.integers(0, 45),
    st.randoms(use_true_random=False),
)
def test_the_best_are_those_of_a_sorted_list(rows, cuts, count, random) -> None:
    whole = units(rows).astype(np.float16)
    bounds = sorted({0, len(whole), *(min(cut, len(whole)) for cut in cuts)})
    stack = Stack([whole[a:b] for a, b in pairwise(bounds)], 4)
    query = units([[1, 2, 3, 5]])[0]
    allowed = np.array([random.random() < 0.7 for _ in whole])
    found, cosines = best(stack, query, *stack.products(query, allowed), count)
    truth = (whole.astype(np.float64) @ query.astype(np.float64)).astype(np.float32)
    expected = sorted(np.flatnonzero(allowed).tolist(), key=lambda n: (-truth[n], n))[:count]
    assert found.tolist() == expected
    assert np.array_equal(cosines, truth[expected])


@pytest.fixture(scope="module")
def clustered() -> Stack:
    """5,000 vectors in 60 clusters, in two parts; one direction is much larger than the others, as in real towers."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((60, 96))
    points = centres[rng.integers(0, 60, 5_000)] + 0.7 * rng.standard_normal((5_000, 96))
    points[:, 3] += 6
    half = units(points).astype(np.float16)
    return Stack([half[:2_000], half[2_000:]], 96)


def top(stack: Stack, rows: Rows, query: np.ndarray, count: int) -> set[int]:
    return set(rows[np.lexsort((rows, -stack.cosines(rows, query)))][:count].tolist())


@pytest.mark.slow
@pytest.mark.parametrize("share", [1.0, 0.3])
def test_nearly_all_of_the_best_are_found(tmp_path: Path, clustered: Stack, share: float) -> None:
    every = np.arange(5_000)
    for name in ("a", "b"):
        write_approximate(tmp_path / name, clustered, every)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert (tmp_path / "a").stat().st_size < 5_000 * 96 * 2, "smaller than the vectors"
    index, allowed = Approximate(tmp_path / "a"), np.random.default_rng(1).random(5_000) < share
    shares = []
    for seed in range(40):
        near = clustered.take(np.array([seed * 100]))[0].astype(np.float32) + 0.05 * random_units(1, 96, seed)[0]
        query = units([near])[0]
        found = index.candidates(query, allowed, 200)
        assert allowed[found].all()
        shares.append(len(top(clustered, found, query, 10) & top(clustered, every[allowed], query, 10)) / 10)
    assert np.mean(shares) >= 0.95


def test_rows_without_a_vector_are_not_found_approximately(tmp_path: Path) -> None:
    half = random_units(2_000, 8).astype(np.float16)
    write_approximate(tmp_path / "a", Stack([half], 8), np.arange(0, 2_000, 2))
    found = Approximate(tmp_path / "a").candidates(random_units(1, 8)[0], np.ones(2_000, np.bool_), 2_000)
    assert len(found)
    assert (found % 2 == 0).all()


@pytest.mark.parametrize(("rows", "count"), [(1_000, 16), (200_000, 512), (1_000_000, 1_024), (30_000_000, 4_096)])
def test_cells_grow_with_the_square_root_of_the_rows(rows: int, count: int) -> None:
    assert vectors.cell_count(rows) == count
