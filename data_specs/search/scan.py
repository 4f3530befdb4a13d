"""Exact search: the cosines of a query with every row, read from memory-mapped float16 vectors in chunks.

A chunk is CHUNK bytes of rows, converted to float32 and multiplied with the query by BLAS: memory stays bounded however
large the index. That product may differ from the true cosine by about 1e-6, and BLAS may round two equal rows
differently; so what could be among the best is computed again in float64 (`cosines_of`). Rows with equal vectors have
equal cosines then, and ties are ordered by row: the same query has the same answer on every machine.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Half = npt.NDArray[np.float16]
Floats = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]

CHUNK = 16 << 20
"""Bytes of a chunk, as float16."""

ERROR = 4e-6
"""How far a float32 product of two unit vectors of up to 16,384 numbers may be from the cosine, with room."""


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
        """[N] float32 products of the query with each allowed row; -inf for the others."""
        products = np.full(len(self), -np.inf, np.float32)
        step = max(1, CHUNK // (2 * self.width))
        for part, start in zip(self.parts, self.starts.tolist(), strict=False):
            for low in range(0, len(part), step):
                allowed = allowed_N[start + low : start + min(low + step, len(part))]
                count = int(np.count_nonzero(allowed))
                if not count:
                    continue
                rows = part[low : low + step] if 2 * count > len(allowed) else part[low : low + step][allowed]
                found = rows.astype(np.float32) @ query_D
                at = products[start + low : start + low + len(allowed)]
                at[allowed] = found[allowed] if len(found) == len(allowed) else found
        return products


def cosines_of(vectors_nD: Half, query_D: Floats) -> Floats:
    """[n] cosines: the product in float64, rounded to float32."""
    found: Floats = (vectors_nD.astype(np.float64) @ query_D.astype(np.float64)).astype(np.float32)
    return found


def ordered(rows: Rows, cosines: Floats) -> tuple[Rows, Floats]:
    """Best first, ties by row."""
    order = np.lexsort((rows, -cosines))
    return rows[order], cosines[order]


def best(stack: Stack, query_D: Floats, products: Floats, count: int) -> tuple[Rows, Floats]:
    """The `count` best rows and their cosines, best first, ties by row; fewer where fewer are allowed."""
    allowed = int(np.count_nonzero(products > -np.inf))
    count = min(count, allowed)
    if not count:
        return np.empty(0, np.int64), np.empty(0, np.float32)
    least = np.partition(products, len(products) - count)[len(products) - count] if count < len(products) else -2.0
    rows = np.flatnonzero(products >= max(least - 2 * ERROR, -2.0)).astype(np.int64)
    found, cosines = ordered(rows, cosines_of(stack.take(rows), query_D))
    return found[:count], cosines[:count]
