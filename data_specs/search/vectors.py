"""Vectors of an index: exact products by numkong, approximate candidates by faiss, and the order in which rows answer.

Exact: numkong, the kernels of usearch, multiplies float16 by float16 with float32 sums at the speed of memory: a
million rows of 2,048 numbers in 0.8 s of CPU, where NumPy takes 17 s, most of it for the conversion to float32.
The query is rounded to float16 for it, so a product is off by at most the length of what rounding took away. Rows that
could be among the best within that margin are multiplied again in float64 and rounded to float32 (`cosines_of`): rows
with equal vectors have equal cosines, ties are ordered by row, and a query has one answer on every machine.

Approximate: faiss's inverted lists of RaBitQ codes (Gao and Long, arXiv 2405.12497): vectors are rotated, put into the
cell of the nearest of about sqrt(N) centroids, and kept as one bit per coordinate. A query looks into PROBED of the
cells; the cosines of what it returns are computed exactly. The file is made again whenever rows come or go, so it holds
nothing of removed ones.
"""

from __future__ import annotations

import errno
import functools
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Half = npt.NDArray[np.float16]
Floats = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

CHUNK = 64 << 20
"""Bytes of float16 that are multiplied, or copied, at once."""

ROUNDING = 4e-6
"""Bound of the float32 rounding in a product: ten times what is seen."""

_BLOCK = 4_096
"""Rows that are multiplied in float64 at once."""

FROM = 1 << 30
"""Bytes of one modality's vectors from which on an index gets an approximate search: an exact one takes 0.1 s there."""

LEAST = 1_000
"""Rows below which there are too few to train centroids on."""

PROBED, FEWEST = 1 / 16, 32
"""Share of the cells that a query looks into, and the least number of them."""

_SAMPLES = 40
"""Rows per centroid that it is trained on."""

_BATCH = 16_384
_SEED = 1234


class Stack:
    """Memory-mapped vectors [N, D] of one modality: those of all parts, one behind another."""

    def __init__(self, parts: Sequence[Half], width: int) -> None:
        self.parts, self.width = tuple(parts), width
        self.starts = np.concatenate([[0], np.cumsum([len(part) for part in parts], dtype=np.int64)])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def take(self, rows: Rows) -> Half:
        """[n, D] vectors of some rows, in their order."""
        taken = np.empty((len(rows), self.width), np.float16)
        of = np.searchsorted(self.starts, rows, "right") - 1
        for number in np.unique(of).tolist():
            here = of == number
            taken[here] = self.parts[number][rows[here] - self.starts[number]]
        return taken

    def cosines(self, rows: Rows, query_D: Floats) -> Floats:
        """[n] cosines of some rows with a query of length 1: the product in float64, rounded to float32."""
        blocks = [rows[low : low + _BLOCK] for low in range(0, len(rows), _BLOCK)]
        return np.concatenate([np.empty(0, np.float32), *(cosines_of(self.take(own), query_D) for own in blocks)])

    def products(self, query_D: Floats, allowed_N: Flags) -> tuple[Floats, float]:
        """[N] products of a query of length 1 with each allowed row, -inf for the others; and their margin."""
        products, step = np.full(len(self), -np.inf, np.float32), max(1, CHUNK // (2 * self.width))
        query = query_D.astype(np.float16)
        for part, start in zip(self.parts, self.starts.tolist(), strict=False):
            for low in range(0, len(part), step):
                rows = part[low : low + step]
                here = slice(start + low, start + low + len(rows))
                allowed, count = allowed_N[here], int(np.count_nonzero(allowed_N[here]))
                if 2 * count > len(rows):
                    products[here] = np.where(allowed, _product(rows, query), -np.inf)
                elif count:
                    products[here][allowed] = _product(rows[allowed], query)
        return products, _margin(query_D)

    def products_of(self, rows: Rows, query_D: Floats) -> tuple[Floats, float]:
        """[n] products of a query of length 1 with some rows; and their margin."""
        none = np.empty(0, np.float32)
        return _product(self.take(rows), query_D.astype(np.float16)) if len(rows) else none, _margin(query_D)


def cosines_of(vectors_nD: Half, query_D: Floats) -> Floats:
    """[n] cosines: the product in float64, rounded to float32."""
    found: Floats = (vectors_nD.astype(np.float64) @ query_D.astype(np.float64)).astype(np.float32)
    return found


def best(
    stack: Stack, query_D: Floats, products: Floats, margin: float, count: int, rows: Rows | None = None
) -> tuple[Rows, Floats]:
    """The `count` best rows and their cosines, best first, ties by row; fewer where fewer are allowed.

    products: of all rows of the stack or of those given, within `margin` of the cosines; -inf for what is not allowed.
    """
    count = min(count, int(np.count_nonzero(products > -np.inf)))
    if not count:
        return np.empty(0, np.int64), np.empty(0, np.float32)
    last = len(products) - count
    least = float(np.partition(products, last)[last])
    near: Rows = np.flatnonzero(products >= least - 2 * margin).astype(np.int64)
    near = near if rows is None else rows[near]
    cosines = stack.cosines(near, query_D)
    order = np.lexsort((near, -cosines))[:count]
    return near[order], cosines[order]


def _margin(query_D: Floats) -> float:
    """Largest error of a product of a query against its cosine."""
    return 1.01 * float(np.linalg.norm(query_D - query_D.astype(np.float16).astype(np.float32))) + ROUNDING


def _product(rows_nD: Half, query_D: Half) -> Floats:
    import numkong

    found = numkong.cdist(query_D[None], np.ascontiguousarray(rows_nD), "dot", threads=_threads())
    products: Floats = np.asarray(found)[0].astype(np.float32)
    return products


@functools.cache
def _threads() -> int:
    return min(8, len(os.sched_getaffinity(0)))


# --- approximate


def cell_count(rows: int) -> int:
    """Number of cells: a power of two near sqrt(rows), small enough that each cell trains on enough rows.

    Twice as many would take four times as long to train.
    """
    return int(2 ** max(2, min(round(math.log2(math.sqrt(rows))), int(math.log2(rows / _SAMPLES)))))


def write_approximate(path: Path, stack: Stack, present: Rows) -> None:
    """Write the approximate search over rows that have a vector, at least LEAST, to a path. Raises OSError."""
    import faiss

    count = cell_count(len(present))
    index: Any = faiss.index_factory(stack.width, f"HR,IVF{count},RaBitQ", faiss.METRIC_INNER_PRODUCT)
    inner: Any = faiss.downcast_index(faiss.extract_index_ivf(index))
    inner.cp.seed = _SEED
    rng = np.random.default_rng(_SEED)
    sample = np.sort(rng.choice(present, min(len(present), _SAMPLES * count), replace=False))
    index.train(stack.take(sample).astype(np.float32))
    for low in range(0, len(present), _BATCH):
        rows = present[low : low + _BATCH]
        index.add_with_ids(stack.take(rows).astype(np.float32), rows)
    try:
        faiss.write_index(index, str(path))
    except RuntimeError as e:  # faiss's error for a full disk
        raise OSError(errno.EIO, "faiss: write error") from e


class Approximate:
    """The approximate search of one modality, memory-mapped."""

    def __init__(self, path: Path) -> None:
        import faiss

        self._faiss: Any = faiss
        self._index: Any = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
        self._inner: Any = faiss.downcast_index(faiss.extract_index_ivf(self._index))

    def candidates(self, query_D: Floats, allowed_N: Flags, count: int) -> Rows:
        """At most `count` rows that are likely the best of those allowed, in no order."""
        probed = min(self._inner.nlist, max(FEWEST, math.ceil(self._inner.nlist * PROBED)))
        bits = np.packbits(allowed_N, bitorder="little")
        few = {} if allowed_N.all() else {"sel": self._faiss.IDSelectorBitmap(bits)}
        inner = self._faiss.IVFRaBitQSearchParameters(nprobe=probed, qb=self._inner.qb, **few)
        wanted = self._faiss.SearchParametersPreTransform(index_params=inner)
        _, found = self._index.search(query_D[None], count, params=wanted)
        rows: Rows = found[0][found[0] >= 0].astype(np.int64)
        return rows


DEEP = 500
"""Rows of an approximate ranking, and of each ranking that is fused: 25 pages of 20."""

CANDIDATES = 1_000
"""Rows that an approximate search returns to have the DEEP best among them."""

FUSION = 60
"""The constant of reciprocal rank fusion, as its authors chose it."""

Enough = Callable[[Floats], Flags]
"""[n] whether a hit may have such a cosine; never false above a cosine for which it is true."""


class VectorRanking:
    """Ranking by cosine with a query of length 1: exact, or first the DEEP best that an approximate search finds."""

    def __init__(
        self, stack: Stack, query_D: Floats, allowed_N: Flags, approximate: Approximate | None, enough: Enough
    ) -> None:
        self._stack, self._query_D, self._allowed_N, self._enough = stack, query_D, allowed_N, enough
        self._products: tuple[Floats, float] | None = None
        near = np.empty(0, np.int64) if approximate is None else approximate.candidates(query_D, allowed_N, CANDIDATES)
        self._candidates, self._near = near, stack.products_of(near, query_D)

    def top_rows(self, count: int) -> Rows:
        """The `count` best rows, best first; fewer only if the rows end before."""
        near = self._best(*self._near, min(count, DEEP), self._candidates)
        if count <= len(near):
            return near
        near = self._best(*self._near, DEEP, self._candidates)
        if self._products is None:
            products_N, margin = self._stack.products(self._query_D, self._allowed_N)
            products_N[~self._enough(products_N + np.float32(margin))] = -np.inf
            self._products = products_N, margin
        products = self._products
        return append_ranking(near, lambda count: self._best(*products, count), count)

    def _best(self, products: Floats, margin: float, count: int, rows: Rows | None = None) -> Rows:
        found, cosines = best(self._stack, self._query_D, products, margin, count, rows)
        return found[self._enough(cosines)]


def fuse_rankings(by_vector: Rows, by_words: Rows, weight: float) -> Rows:
    """Reciprocal rank fusion (Cormack, Clarke and Buettcher, SIGIR 2009) of the DEEP best of two rankings.

    (1 - weight) / (60 + rank by vector) + weight / (60 + rank by words): a cosine and a BM25 lack a common scale.
    """
    rows = np.union1d(by_vector[:DEEP], by_words[:DEEP])
    points = np.zeros(len(rows), np.float64)
    for ranked, share in ((by_vector[:DEEP], 1 - weight), (by_words[:DEEP], weight)):
        points[np.searchsorted(rows, ranked)] += share / (FUSION + 1 + np.arange(len(ranked)))
    order: Rows = rows[np.lexsort((rows, -points))]
    return order


def append_ranking(rows: Rows, first: Callable[[int], Rows], count: int) -> Rows:
    """The first `count` rows of a list followed by a ranking, without repeats."""
    if count <= len(rows):
        return rows[:count]
    rest = first(count + len(rows))
    return np.concatenate([rows, rest[~np.isin(rest, rows)]])[:count]
