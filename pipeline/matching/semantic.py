"""Matches images with the same content: features of an image tower within a cosine distance, decided in integers.

An image is a duplicate if and only if its features lie within the distance of those of an image that was kept before
it; of several the nearest is its leader, of equally near ones the one that was kept first. Chains do not occur.

A sum of floats depends on the order of its terms, so on the number of threads, on the shape of a batch and on the
processor. Unit rows are therefore rounded to whole multiples of 1 / UNIT. A product of two such rows is a sum of
integers, of which no partial sum reaches 2^24 (Cauchy-Schwarz): float32 holds each of them exactly, and the fastest
matrix product there is computes integers, in whatever order it adds. From there on the distance is one square root and
one division in float64, which IEEE 754 rounds in one way. So one worker or a hundred, blocks of one row or of thousands
give the same answer, to the last bit.

Exact, by comparing with all leaders. Most comparisons cost M + 1 = 65 multiplications instead of D: rows are turned
(any orthonormal basis leaves their products as they are) so that their first M numbers hold most of their length, and
x.y <= x_M.y_M + |rest of x| |rest of y| rules a pair out. The basis is that of the first leaders' principal components;
the answer does not depend on it.

Limits: grows with images times leaders. Per leader 2 D bytes and 300 more are in memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

UNIT = 4_000
"""Integer of a feature of 1. (UNIT + sqrt(D) / 2)^2 < 2^24 for every D up to WIDEST."""

WIDEST = 16_384

MILLION = 1_000_000
"""Distances are whole millionths."""

FAR = 4 * MILLION
"""Further than any two rows are from each other: there is none."""

SEALED = 4_096
"""Leaders that are compared at once. A group of so many is turned, so that most comparisons with it are short."""

SHORT = 64
"""M: numbers of a turned row that are compared before the others."""

SLACK = 2e-3
"""Most by which rounding may make the cosine of a short comparison too small."""

DENSE = 0.02
"""Share of a short comparison's pairs from which on the long one is made for all."""

Codes = npt.NDArray[np.int16]
"""[N, D] in units of 1 / UNIT."""

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]


def codes_of(features: npt.NDArray[np.float16] | Floats) -> Codes:
    """[N, D] unit rows in whole units. Raises ValueError for rows that are wider than WIDEST."""
    if features.shape[1] > WIDEST:
        raise ValueError(f"{features.shape[1]} features of an image are more than the {WIDEST:,} that can be compared")
    codes: Codes = np.rint(features.astype(np.float64) * UNIT).astype(np.int16)
    return codes


def millionths(cosine: float) -> int:
    """A cosine distance as `Nearest` has it."""
    return round(cosine * MILLION)


@dataclass(frozen=True, slots=True)
class Nearest:
    """For each of N images the nearest leader, if one is within reach. All of shape [N].

    millionths: its cosine distance; FAR if there is none. number: the leader's, -1 for none.
    """

    millionths: Ints
    number: Ints

    @staticmethod
    def none(count: int) -> Nearest:
        return Nearest(np.full(count, FAR, np.int64), np.full(count, -1, np.int64))

    def or_nearer(self, other: Nearest) -> Nearest:
        """Returns the nearer of both; of equally near leaders the one with the smaller number."""
        nearer = (other.millionths < self.millionths) | (
            (other.millionths == self.millionths) & (other.millionths < FAR) & (other.number < self.number)
        )
        return Nearest(np.where(nearer, other.millionths, self.millionths), np.where(nearer, other.number, self.number))


class SemanticLeaders:
    """Features of the images kept so far, or of a share of them. reach: millionths up to which a leader is looked for.

    Numbers are the caller's, each once, ascending.
    """

    def __init__(self, reach: int) -> None:
        self._reach = reach
        self._sealed: list[_Group] = []
        self._open = _Group(reach)
        self._basis: npt.NDArray[np.float64] | None = None

    def add(self, codes: Codes, numbers: Ints) -> None:
        while len(codes):
            room = SEALED - len(self._open)
            self._open.add(codes[:room], numbers[:room])
            codes, numbers = codes[room:], numbers[room:]
            if len(self._open) == SEALED:
                if self._basis is None:
                    self._basis = _basis(self._open.codes)
                if self._basis is not None:
                    self._open.turn(self._basis)
                self._sealed.append(self._open)
                self._open = _Group(self._reach)

    def nearest(self, codes: Codes) -> Nearest:
        asked = _Rows.of(codes, self._basis)
        nearest = Nearest.none(len(codes))
        for group in (*self._sealed, self._open):
            nearest = nearest.or_nearer(group.nearest(asked))
        return nearest


def resolved(codes: Codes, earlier: Nearest, within: int, reach: int, first: int) -> tuple[list[int], Nearest]:
    """(rows that are kept, the nearest leader of every row) of a block of images by rank.

    earlier: their nearest leaders of before. within: millionths at which an image is a duplicate; reach: those up to
    which a leader is of interest. Kept rows become leaders first, first + 1 ... in their order.
    """
    rows = _Rows.of(codes, None)
    later, before, apart = _near_pairs(rows, reach)
    starts = np.searchsorted(later, np.arange(len(codes) + 1))
    distance, number = earlier.millionths.copy(), earlier.number.copy()
    kept, number_of = list[int](), np.full(len(codes), -1, np.int64)  # -1: no leader
    for row in range(len(codes)):
        own = slice(starts[row], starts[row + 1])
        if starts[row] < starts[row + 1]:
            leads = number_of[before[own]] >= 0
            near, leaders = apart[own][leads], number_of[before[own]][leads]
            if len(near) and near.min() < distance[row]:  # leaders of before have smaller numbers, and win if equal
                distance[row], number[row] = near.min(), leaders[near == near.min()].min()
        if distance[row] > within:
            number_of[row] = first + len(kept)
            kept.append(row)
    return kept, Nearest(distance, number)


@dataclass(frozen=True, slots=True)
class _Rows:
    """Codes [N, D] as they are asked with: in float32, their lengths, and turned [N, M + 1], if there is a basis."""

    codes: Floats
    length: npt.NDArray[np.float64]
    short: Floats | None

    @staticmethod
    def of(codes: Codes, basis: npt.NDArray[np.float64] | None) -> _Rows:
        return _Rows(codes.astype(np.float32), _lengths(codes), None if basis is None else _project(codes, basis))


class _Group:
    """Up to SEALED leaders."""

    def __init__(self, reach: int) -> None:
        self._reach, self._least = reach, 1 - reach / MILLION
        self._codes: Codes = np.zeros((0, 0), np.int16)
        self._count = 0
        self._numbers: Ints = np.zeros(SEALED, np.int64)
        self._lengths = np.zeros(SEALED, np.float64)
        self._short: Floats | None = None

    def __len__(self) -> int:
        return self._count

    @property
    def codes(self) -> Codes:
        return self._codes[: self._count]

    def add(self, codes: Codes, numbers: Ints) -> None:
        end = self._count + len(codes)
        if end > len(self._codes):
            larger = np.zeros((min(SEALED, max(1024, 2 * end)), codes.shape[1]), np.int16)
            larger[: self._count] = self.codes.reshape(self._count, -1) if self._count else 0
            self._codes = larger
        new = slice(self._count, end)
        self._codes[new], self._numbers[new], self._lengths[new] = codes, numbers, _lengths(codes)
        self._count = end

    def turn(self, basis: npt.NDArray[np.float64]) -> None:
        self._short = _project(self.codes, basis)

    def nearest(self, asked: _Rows) -> Nearest:
        nearest = Nearest.none(len(asked.codes))
        if not self._count:
            return nearest
        pairs = None if self._short is None or asked.short is None else self._short_pairs(asked.short)
        rows, at, products = self._products(asked, pairs)
        apart = _cosine_distances(products, asked.length[rows], self._lengths[at])
        near = apart <= self._reach
        rows, at, apart = rows[near], at[near], apart[near]
        order = np.lexsort((at, apart, rows))  # numbers ascend with places
        rows, at, apart = rows[order], at[order], apart[order]
        first = np.flatnonzero(np.append(True, rows[1:] != rows[:-1])) if len(rows) else np.zeros(0, np.int64)
        nearest.millionths[rows[first]], nearest.number[rows[first]] = apart[first], self._numbers[at[first]]
        return nearest

    def _short_pairs(self, short: Floats) -> tuple[Ints, Ints] | None:
        """(rows, places) of pairs that may be within reach; None if they are too many to be looked at one by one."""
        assert self._short is not None
        may = short @ self._short.T >= np.float32(self._least - SLACK)
        if np.count_nonzero(may) > DENSE * may.size:
            return None
        rows, at = np.nonzero(may)
        return rows, at

    def _products(self, asked: _Rows, pairs: tuple[Ints, Ints] | None) -> tuple[Ints, Ints, Floats]:
        """(rows, places, products) of the given pairs, or of all that are about within reach."""
        codes = self.codes
        if pairs is not None:
            rows, at = pairs
            products = np.empty(len(rows), np.float32)
            for low in range(0, len(rows), SEALED):
                some = slice(low, low + SEALED)
                np.einsum("nd,nd->n", asked.codes[rows[some]], codes[at[some]].astype(np.float32), out=products[some])
            return rows, at, products
        every = asked.codes @ codes.astype(np.float32).T
        return _about_within(every, asked.length, self._lengths[: self._count], self._least)


def _about_within(
    products: Floats, left: npt.NDArray[np.float64], right: npt.NDArray[np.float64], least: float
) -> tuple[Ints, Ints, Floats]:
    """(rows, columns, products) of the pairs whose cosine is at least `least`, and of some that are just below."""
    scaled = products * (1 / np.maximum(left, 1)).astype(np.float32)[:, None]
    scaled *= (1 / np.maximum(right, 1)).astype(np.float32)
    rows, at = np.nonzero(scaled >= np.float32(least - 1e-4))
    return rows, at, products[rows, at]


def _near_pairs(rows: _Rows, reach: int) -> tuple[Ints, Ints, Ints]:
    """(later, before, millionths) of all pairs among the rows that are within reach, by the later one."""
    products = rows.codes @ rows.codes.T
    later, before, near = _about_within(products, rows.length, rows.length, 1 - reach / MILLION)
    one_way = before < later
    later, before, near = later[one_way], before[one_way], near[one_way]
    apart = _cosine_distances(near, rows.length[later], rows.length[before])
    close = apart <= reach
    return later[close], before[close], apart[close]


def _cosine_distances(products: Floats, left: npt.NDArray[np.float64], right: npt.NDArray[np.float64]) -> Ints:
    """Cosine distances in millionths. A row without length is far from everything."""
    lengths = left * right
    cosine = products.astype(np.float64) / np.where(lengths > 0, lengths, 1)
    apart: Ints = np.where(lengths > 0, np.rint((1 - cosine) * MILLION), FAR).astype(np.int64)
    return np.maximum(apart, 0)


def _lengths(codes: Codes) -> npt.NDArray[np.float64]:
    """[N] float64: the root of a sum of integers, exact up to its one rounding."""
    wide = codes.astype(np.int32)
    lengths: npt.NDArray[np.float64] = np.sqrt(np.einsum("nd,nd->n", wide, wide, dtype=np.int64).astype(np.float64))
    return lengths


def _basis(codes: Codes) -> npt.NDArray[np.float64] | None:
    """[D, M] principal directions of rows, orthonormal; None for rows that are hardly longer than M."""
    if codes.shape[1] < 2 * SHORT:
        return None
    some = codes[:: max(1, len(codes) // 4096)].astype(np.float64)
    _, directions = np.linalg.eigh(some.T @ some)
    basis: npt.NDArray[np.float64] = directions[:, -SHORT:]
    return basis


def _project(codes: Codes, basis: npt.NDArray[np.float64]) -> Floats:
    """[N, M + 1]: rows of length one in the directions of the basis, and the length of what is left of them."""
    lengths = _lengths(codes)
    unit = codes / np.where(lengths > 0, lengths, 1)[:, None]
    inside = unit @ basis
    rest = np.sqrt(np.maximum(0, 1 - np.einsum("nm,nm->n", inside, inside)))
    return np.concatenate([inside, rest[:, None]], axis=1).astype(np.float32)


def merge_nearest(shares: Sequence[Nearest]) -> Nearest:
    """The nearest leader of each image, over all shares of the leaders."""
    nearest = shares[0]
    for share in shares[1:]:
        nearest = nearest.or_nearer(share)
    return nearest
