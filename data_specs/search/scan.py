"""Exact search: the cosines of a query with every row, read from memory-mapped float16 vectors in chunks.

NumPy converts float16 so slowly (1.1 s per 100,000 rows of 2,048 numbers) that it would be most of a search. numkong,
the kernels of usearch, multiplies float16 with float32 sums at the speed of memory (0.04 s). It wants the query in
float16 too: the query is the sum of two float16 vectors, `high` and what is missing to it, LOW times as large so that
it stays among the normal numbers. The sum of both products is within ERROR of the cosine.

What could be among the best by that is computed again in float64 and rounded to float32 (`cosines_of`). Rows with equal
vectors have equal cosines then, and ties are ordered by row: one query has one answer, on every machine.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import os
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

LOG = logging.getLogger(__name__)

Half = npt.NDArray[np.float16]
Floats = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]

CHUNK = 64 << 20
"""Bytes of float16 that are multiplied at once; NumPy's conversion needs twice as much on top."""

LOW = 2_048
"""Factor of the second half of a query: float16 has 11 bits, so what it misses is below 1/2,048 of a number."""

ERROR = 4e-6
"""How far a product of two unit vectors may be from their cosine: ten times what is seen."""

BLOCK = 4_096
"""Rows whose cosines are computed in float64 at once."""

SPARSE = 0.5
"""Share of a chunk's rows that are allowed below which they are copied together first."""

Products = Callable[[Half, Floats], Floats]
"""[n, D] rows, [D] query -> [n] products."""


class Stack:
    """Vectors [N, D] of one modality: those of all parts, one behind another."""

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

    def products(self, query_D: Floats, allowed_N: npt.NDArray[np.bool_]) -> Floats:
        """[N] products of the query with each allowed row, within ERROR of the cosine; -inf for the others."""
        products, multiply = np.full(len(self), -np.inf, np.float32), kernel()
        step = max(1, CHUNK // (2 * self.width))
        for part, start in zip(self.parts, self.starts.tolist(), strict=False):
            for low in range(0, len(part), step):
                rows = part[low : low + step]
                here = slice(start + low, start + low + len(rows))
                allowed = allowed_N[here]
                count = int(np.count_nonzero(allowed))
                if count > SPARSE * len(rows):
                    products[here] = np.where(allowed, multiply(rows, query_D), -np.inf)
                elif count:
                    products[here][allowed] = multiply(rows[allowed], query_D)
        return products


def cosines_of(vectors_nD: Half, query_D: Floats) -> Floats:
    """[n] cosines: the product in float64, rounded to float32."""
    found: Floats = (vectors_nD.astype(np.float64) @ query_D.astype(np.float64)).astype(np.float32)
    return found


def ordered(rows: Rows, cosines: Floats) -> tuple[Rows, Floats]:
    """Best first, ties by row."""
    order = np.lexsort((rows, -cosines))
    return rows[order], cosines[order]


def best(stack: Stack, query_D: Floats, products: Floats, count: int, rows: Rows | None = None) -> tuple[Rows, Floats]:
    """The `count` best rows and their cosines, best first, ties by row; fewer where fewer are allowed.

    products: of all rows of the stack, or of those given by `rows`; -inf for what is not allowed.
    """
    count = min(count, int(np.count_nonzero(products > -np.inf)))
    if not count:
        return np.empty(0, np.int64), np.empty(0, np.float32)
    last = len(products) - count
    least = float(np.partition(products, last)[last])
    near: Rows = np.flatnonzero(products >= least - 2 * ERROR).astype(np.int64)
    found, cosines = ordered(*_exactly(stack, query_D, near if rows is None else rows[near]))
    return found[:count], cosines[:count]


def _exactly(stack: Stack, query_D: Floats, rows: Rows) -> tuple[Rows, Floats]:
    """Rows and their cosines, BLOCK rows at a time: in float64 a deep page would not fit into memory."""
    blocks = [cosines_of(stack.take(rows[low : low + BLOCK]), query_D) for low in range(0, len(rows), BLOCK)]
    return rows, np.concatenate(blocks)


@functools.cache
def kernel() -> Products:
    """numkong's product where it is installed and as exact on this machine as it must be, else NumPy's."""
    if importlib.util.find_spec("numkong") is None:
        LOG.info("exact search is slow without numkong: pip install 'wenlan[search]'")
        return _numpy
    rng = np.random.default_rng(0)
    rows, query = (rng.standard_normal(shape).astype(np.float32) for shape in ((64, 2_048), (2_048,)))
    unit = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)
    query /= np.linalg.norm(query)
    unit[0] = query  # long sums of one sign lose most
    error = np.abs(_numkong(unit, query) - cosines_of(unit, query)).max()
    if error <= ERROR / 2:
        return _numkong
    LOG.warning("numkong's products are off by %.1g on this machine: exact search is slow", error)
    return _numpy


def _numpy(rows_nD: Half, query_D: Floats) -> Floats:
    found: Floats = rows_nD.astype(np.float32) @ query_D
    return found


def _numkong(rows_nD: Half, query_D: Floats) -> Floats:
    import numkong

    high = query_D.astype(np.float16)
    low = ((query_D - high.astype(np.float32)) * LOW).astype(np.float16)
    both = np.asarray(numkong.cdist(np.stack([high, low]), rows_nD, "dot", threads=_threads()))
    found: Floats = (both[0] + both[1] / LOW).astype(np.float32)
    return found


@functools.cache
def _threads() -> int:
    return min(8, len(os.sched_getaffinity(0)))
