"""Orders in which the rows of an index answer a query: by vector, by words, and by both.

A ranking is a fixed order of all rows that may be found. `first(n)` returns its beginning, and a longer beginning
starts with the shorter one: so pages never overlap, however they are asked for.

    ByVector    cosine, exactly; or the DEEP best that an approximate search finds, and exactly from there on
    Listed      as given: by BM25, as the word search returns its rows, or in the order of the index
    ByBoth      reciprocal rank fusion (Cormack, Clarke and Buettcher, SIGIR 2009) of the DEEP best of each:
                (1 - weight) / (60 + rank by vector) + weight / (60 + rank by words); behind them the rest by vector.
                Ranks, because a cosine and a BM25 have no common scale

Ties are ordered by row.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from data_specs.search.approximate import Cells
from data_specs.search.scan import ERROR, Floats, Rows, Stack, best, kernel

DEEP = 500
"""Rows of an approximate ranking, and of each ranking that is fused: 25 pages of 20."""

CANDIDATES = 1_000
"""Rows that an approximate search returns to have the DEEP best among them."""

FUSION = 60
"""The constant of reciprocal rank fusion, as its authors chose it."""

NONE: Rows = np.empty(0, np.int64)


class Ranking(Protocol):
    """An order of rows. exact: whether it depends on no approximate search."""

    @property
    def exact(self) -> bool: ...

    def first(self, count: int) -> Rows:
        """The first rows, best first: `count` of them, fewer only if there are no more."""
        ...


class ByVector:
    """By cosine with a query of length 1. least: rows with a lower cosine are not found."""

    def __init__(
        self, stack: Stack, query_D: Floats, allowed_N: npt.NDArray[np.bool_], cells: Cells | None, least: float
    ) -> None:
        self._stack, self._query_D, self._allowed_N, self._cells, self._least = stack, query_D, allowed_N, cells, least
        self._products_N: Floats | None = None
        self._near: tuple[Rows, Floats] | None = None

    @property
    def exact(self) -> bool:
        return self._cells is None

    def first(self, count: int) -> Rows:
        if self._cells is None:
            return self._exactly(count)
        near = self._approximately(min(count, DEEP))
        if count <= len(near):
            return near
        near = self._approximately(DEEP)
        rest = self._exactly(count + len(near))
        return np.concatenate([near, rest[~np.isin(rest, near)]])[:count]

    def _approximately(self, count: int) -> Rows:
        """The best of the rows that the approximate search finds."""
        if self._near is None:
            assert self._cells is not None
            allowed_N = None if self._allowed_N.all() else self._allowed_N
            rows = self._cells.candidates(self._query_D, allowed_N, CANDIDATES)
            products = kernel()(self._stack.take(rows), self._query_D) if len(rows) else np.empty(0, np.float32)
            self._near = rows, products
        rows, products = self._near
        found, cosines = best(self._stack, self._query_D, products, count, rows)
        return found[cosines >= self._least]

    def _exactly(self, count: int) -> Rows:
        if self._products_N is None:
            products_N = self._stack.products(self._query_D, self._allowed_N)
            products_N[products_N < self._least - ERROR] = -np.inf
            self._products_N = products_N
        rows, cosines = best(self._stack, self._query_D, self._products_N, count)
        return rows[cosines >= self._least]


class Listed:
    """Rows in the order in which they are given."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows

    @property
    def exact(self) -> bool:
        return True

    def first(self, count: int) -> Rows:
        return self._rows[:count]


class ByBoth:
    """The fusion of both; `weight` of the words, 0 to 1. The words' rows must be among those that the vector finds."""

    def __init__(self, vector: ByVector, words: Rows, weight: float) -> None:
        self._vector, self._words, self._weight = vector, words, weight
        self._fused: Rows | None = None

    @property
    def exact(self) -> bool:
        return self._vector.exact

    def first(self, count: int) -> Rows:
        fused = self._both()
        if count <= len(fused):
            return fused[:count]
        rest = self._vector.first(count + len(fused))
        return np.concatenate([fused, rest[~np.isin(rest, fused)]])[:count]

    def _both(self) -> Rows:
        if self._fused is None:
            by_vector, by_words = self._vector.first(DEEP), self._words[:DEEP]
            rows = np.union1d(by_vector, by_words)
            points = np.zeros(len(rows), np.float64)
            for ranked, share in ((by_vector, 1 - self._weight), (by_words, self._weight)):
                points[np.searchsorted(rows, ranked)] += share / (FUSION + 1 + np.arange(len(ranked)))
            self._fused = rows[np.lexsort((rows, -points))]
        return self._fused
