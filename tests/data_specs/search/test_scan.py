"""scan: products within their error of the cosine, by either kernel, and ties that are ties."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_specs.search import scan
from tests.indexed import random_units, units


@pytest.mark.parametrize("multiply", [scan._numpy, scan._numkong], ids=["numpy", "numkong"])
@pytest.mark.parametrize("width", [1, 3, 64, 2_048])
def test_products_are_within_their_error(multiply: scan.Products, width: int) -> None:
    rows, query = random_units(300, width).astype(np.float16), random_units(1, width, seed=1)[0]
    rows[0] = query
    error = np.abs(multiply(rows, query) - rows.astype(np.float64) @ query.astype(np.float64))
    assert error.max() <= scan.ERROR / 2


def test_numkong_is_what_searches_here() -> None:
    assert scan.kernel() is scan._numkong


def test_a_kernel_that_is_off_is_not_used(monkeypatch) -> None:
    monkeypatch.setattr(scan, "_numkong", lambda rows, query: scan._numpy(rows, query) + np.float32(1e-5))
    scan.kernel.cache_clear()
    assert scan.kernel() is scan._numpy
    scan.kernel.cache_clear()


@given(
    st.lists(st.lists(st.integers(-1, 1), min_size=4, max_size=4).filter(any), min_size=1, max_size=40),
    st.lists(st.integers(0, 40), max_size=5),
    st.integers(0, 45),
    st.randoms(use_true_random=False),
)
def test_the_best_are_those_of_a_sorted_list(vectors, cuts, count, random) -> None:
    whole = units(vectors).astype(np.float16)
    bounds = sorted({0, len(whole), *(min(cut, len(whole)) for cut in cuts)})
    stack = scan.Stack([whole[a:b] for a, b in pairwise(bounds)], 4)
    query = units([[1, 2, 3, 5]])[0]
    allowed = np.array([random.random() < 0.7 for _ in whole])
    rows, cosines = scan.best(stack, query, stack.products(query, allowed), count)
    truth = (whole.astype(np.float64) @ query.astype(np.float64)).astype(np.float32)
    expected = sorted(np.flatnonzero(allowed).tolist(), key=lambda n: (-truth[n], n))[:count]
    assert rows.tolist() == expected
    assert np.array_equal(cosines, truth[expected])


def test_rows_of_several_chunks_are_read_in_bounded_pieces(monkeypatch) -> None:
    monkeypatch.setattr(scan, "CHUNK", 2 * 16 * 7)
    whole = random_units(100, 16).astype(np.float16)
    sizes = []
    multiply = scan.kernel()
    monkeypatch.setattr(scan, "kernel", lambda: lambda rows, query: (sizes.append(len(rows)), multiply(rows, query))[1])
    stack = scan.Stack([whole[:40], whole[40:]], 16)
    products = stack.products(random_units(1, 16)[0], np.ones(100, np.bool_))
    assert max(sizes) == 7
    assert np.isfinite(products).all()
    assert stack.take(np.array([99, 0, 40, 39])).tolist() == whole[[99, 0, 40, 39]].tolist()
