"""The order in which the rows of an index answer a query: by vector, and by vector and words together.

A ranking is a fixed order of all rows that may be found. `first(n)` returns its beginning, and a longer beginning
starts with the shorter one, so that pages never overlap. Ties are ordered by row.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from data_specs.search.vectors import Approximate, Flags, Floats, Rows, Stack, best

DEEP = 500
"""Rows of an approximate ranking, and of each ranking that is fused: 25 pages of 20."""

CANDIDATES = 1_000
"""Rows that an approximate search returns to have the DEEP best among them."""

FUSION = 60
"""The constant of reciprocal rank fusion, as its authors chose it."""

Enough = Callable[[Floats], Flags]
"""[n] whether a hit may have such a cosine; never false above a cosine for which it is true."""


class ByVector:
    """By cosine with a query of length 1: exactly, or first the DEEP best that an approximate search finds."""

    def __init__(
        self, stack: Stack, query_D: Floats, allowed_N: Flags, approximate: Approximate | None, enough: Enough
    ) -> None:
        self._stack, self._query_D, self._allowed_N, self._enough = stack, query_D, allowed_N, enough
        self._products: tuple[Floats, float] | None = None
        near = np.empty(0, np.int64) if approximate is None else approximate.candidates(query_D, allowed_N, CANDIDATES)
        self._candidates, self._near = near, stack.products_of(near, query_D)

    def first(self, count: int) -> Rows:
        """The first rows, best first: `count` of them, fewer only if the rows end before."""
        near = self._best(*self._near, min(count, DEEP), self._candidates)
        if count <= len(near):
            return near
        near = self._best(*self._near, DEEP, self._candidates)
        if self._products is None:
            products_N, margin = self._stack.products(self._query_D, self._allowed_N)
            products_N[~self._enough(products_N + np.float32(margin))] = -np.inf
            self._products = products_N, margin
        products = self._products
        return joined(near, lambda count: self._best(*products, count), count)

    def _best(self, products: Floats, margin: float, count: int, rows: Rows | None = None) -> Rows:
        found, cosines = best(self._stack, self._query_D, products, margin, count, rows)
        return found[self._enough(cosines)]


def fused(by_vector: Rows, by_words: Rows, weight: float) -> Rows:
    """Reciprocal rank fusion (Cormack, Clarke and Buettcher, SIGIR 2009) of the DEEP best of two rankings.

    (1 - weight) / (60 + rank by vector) + weight / (60 + rank by words): a cosine and a BM25 lack a common scale.
    """
    rows = np.union1d(by_vector[:DEEP], by_words[:DEEP])
    points = np.zeros(len(rows), np.float64)
    for ranked, share in ((by_vector[:DEEP], 1 - weight), (by_words[:DEEP], weight)):
        points[np.searchsorted(rows, ranked)] += share / (FUSION + 1 + np.arange(len(ranked)))
    order: Rows = rows[np.lexsort((rows, -points))]
    return order


def joined(rows: Rows, first: Callable[[int], Rows], count: int) -> Rows:
    """The first `count` rows of a list followed by a ranking, without repeats."""
    if count <= len(rows):
        return rows[:count]
    rest = first(count + len(rows))
    return np.concatenate([rows, rest[~np.isin(rest, rows)]])[:count]
