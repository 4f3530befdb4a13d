"""Near images: which of the images kept so far does this one look like?

Two images look alike if and only if some view of one and the whole of the other (`features.CROPS`) have hashes at most
`radius` bits apart and signatures at most `threshold` apart. Candidates come from multi-index hashing (Norouzi, Punjani
and Fleet, "Fast Search in Hamming Space with Multi-Index Hashing", CVPR 2012): a hash is cut into bands, and by the
pigeonhole principle two hashes within the radius agree in some band up to its share of the radius, so nothing within
the radius is ever missed. The index holds leaders only: a thousand copies of one image cost a thousand look-ups of one.

Limits: in memory, about 700 bytes a leader; look-ups grow with the number of leaders, slower than linearly up to a
million and about linearly beyond. A picture without structure (hash 0) is never near another.
"""

from __future__ import annotations

import itertools
import math
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.features import CROPS
from pipeline.features.signature import SIZE, distance

Codes = npt.NDArray[np.uint64]
Ints = npt.NDArray[np.int64]
Pairs = tuple[Ints, Ints]

COMBINATIONS = tuple([(0, view) for view in range(len(CROPS))] + [(view, 0) for view in range(1, len(CROPS))])
"""(view of one image, view of the other) that are compared: one of them is always the whole picture."""

BLOCK = 1 << 21
"""Elements of a temporary array: bounds memory at some tens of MB."""


class HashIndex:
    """64-bit codes with ids; finds all within a Hamming radius. Added codes are merged into ever larger levels."""

    TAIL = 2_048
    GROWTH = 8

    def __init__(self, radius: int) -> None:
        self.radius = radius
        self._tail: list[tuple[Codes, Ints]] = []
        self._levels: list[_Level] = []

    def add(self, codes: Codes, ids: Ints) -> None:
        """Add codes [N] with ids [N]. Code 0, a picture without structure, is left out."""
        keep = codes != 0
        self._tail.append((codes[keep], ids[keep]))
        if sum(len(c) for c, _ in self._tail) < self.TAIL:
            return
        merged = self._tail
        size = sum(len(c) for c, _ in merged)
        while self._levels and len(self._levels[-1].codes) < self.GROWTH * size:
            last = self._levels.pop()
            merged = [(last.codes, last.ids), *merged]
            size += len(last.codes)
        codes, ids = _joined(merged)
        self._levels.append(_Level(codes, ids, self.radius))
        self._tail = []

    def near(self, queries: Codes) -> Pairs:
        """(positions in queries, ids) of every pair within the radius; a pair may come twice. Code 0 finds nothing."""
        asked = np.flatnonzero(queries)
        found = [level.near(queries[asked]) for level in self._levels]
        if self._tail:
            codes, ids = _joined(self._tail)
            rows, at = _brute(queries[asked], codes, self.radius)
            found.append((rows, ids[at]))
        rows, ids = _joined(found)
        return asked[rows], ids


class _Level:
    """An immutable multi-index over codes."""

    def __init__(self, codes: Codes, ids: Ints, radius: int) -> None:
        self.codes, self.ids, self._radius = codes, ids, radius
        self._bands = [_Band(codes, *plan) for plan in _plan(len(codes), radius)]

    def near(self, queries: Codes) -> Pairs:
        if not self._bands:
            rows, at = _brute(queries, self.codes, self._radius)
            return rows, self.ids[at]
        found = []
        for band in self._bands:
            step = max(1, BLOCK // len(band.masks))
            for start in range(0, len(queries), step):
                rows, at = self._look_up(band, queries[start : start + step])
                found.append((rows + start, at))
        rows, at = _joined(found)
        return rows, self.ids[at]

    def _look_up(self, band: _Band, queries: Codes) -> Pairs:
        low, high = band.ranges(queries)
        counts = (high - low).sum(axis=1)
        if counts.sum() > 8 * BLOCK and len(queries) > 1:  # hot buckets: fewer queries at once
            half = len(queries) // 2
            a, b = self._look_up(band, queries[:half]), self._look_up(band, queries[half:])
            return np.concatenate([a[0], b[0] + half]), np.concatenate([a[1], b[1]])
        at = band.order[_spread(low.ravel(), high.ravel())]
        rows = np.repeat(np.arange(len(queries)), counts)
        near = np.bitwise_count(queries[rows] ^ self.codes[at]) <= self._radius
        return rows[near], at[near]


class _Band:
    """The bits [shift, shift + width) of all codes, as a table from their value to positions."""

    def __init__(self, codes: Codes, shift: int, width: int, radius: int) -> None:
        self._shift, self._mask = np.uint64(shift), np.uint64((1 << width) - 1)
        self.masks = _masks(width, radius)
        values = self._values(codes)
        self.order: Ints = np.argsort(values, kind="stable")
        self._starts: Ints = np.concatenate([[0], np.cumsum(np.bincount(values, minlength=1 << width))])

    def _values(self, codes: Codes) -> Ints:
        values: Ints = ((codes >> self._shift) & self._mask).astype(np.int64)
        return values

    def ranges(self, queries: Codes) -> tuple[Ints, Ints]:
        """Half-open ranges [Q, masks] in `order` of the codes that agree with each query up to each mask."""
        probes: Ints = self._values(queries)[:, None] ^ self.masks[None, :]
        low: Ints = self._starts[probes]
        high: Ints = self._starts[probes + 1]
        return low, high


def _plan(size: int, radius: int) -> list[tuple[int, int, int]]:
    """(shift, width, radius) of each band, at the least expected cost; empty if comparing with all is cheaper.

    The radii of the bands plus one each add up to radius + 1: the pigeonhole principle in its tight form.
    """
    best: tuple[float, list[tuple[int, int, int]]] = (size * 1.0, [])
    for bands in range(3, 9):
        plan, shift, cost = list[tuple[int, int, int]](), 0, 0.0
        for k in range(bands):
            width = 64 // bands + (k < 64 % bands)
            share = (radius + 1) // bands + (k < (radius + 1) % bands) - 1
            if share >= 0:  # a band with no share of the radius is not needed
                probes = sum(math.comb(width, i) for i in range(share + 1))
                cost += probes * (8 + 3 * size / (1 << width))
                plan.append((shift, width, share))
            shift += width
        best = min(best, (cost, plan))
    return best[1]


@lru_cache(maxsize=64)
def _masks(width: int, radius: int) -> Ints:
    """All numbers of `width` bits of which at most `radius` are set."""
    found = [
        sum(1 << bit for bit in bits) for n in range(radius + 1) for bits in itertools.combinations(range(width), n)
    ]
    return np.array(found, dtype=np.int64)


def _brute(queries: Codes, codes: Codes, radius: int) -> Pairs:
    step = max(1, BLOCK // max(1, len(codes)))
    found = []
    for start in range(0, len(queries), step):
        near = np.bitwise_count(queries[start : start + step, None] ^ codes[None, :]) <= radius
        rows, at = np.nonzero(near)
        found.append((rows + start, at))
    joined: Pairs = _joined(found)
    return joined


def _spread(low: Ints, high: Ints) -> Ints:
    """The numbers of all half-open ranges, one range after the other."""
    counts = high - low
    filled = counts > 0
    low, counts = low[filled], counts[filled]
    if not len(low):
        return np.zeros(0, np.int64)
    steps = np.ones(counts.sum(), np.int64)
    ends = np.cumsum(counts)
    steps[0] = low[0]
    steps[ends[:-1]] = low[1:] - (low[:-1] + counts[:-1]) + 1
    found: Ints = np.cumsum(steps)
    return found


def _joined(parts: list[Any]) -> Any:
    """Concatenation of pairs of arrays."""
    if not parts:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    return np.concatenate([a for a, _ in parts]), np.concatenate([b for _, b in parts])


class ImageLeaders:
    """The images kept so far, in the order of their ranks; numbers them 0, 1, 2 ..."""

    def __init__(self, radius: int, threshold: float) -> None:
        self._radius, self._threshold = radius, threshold
        self._any, self._whole = HashIndex(radius), HashIndex(radius)
        self._signatures = np.zeros((1024, len(CROPS), SIZE), np.uint8)
        self.count = 0

    def add(self, phash: Codes, signature: npt.NDArray[np.uint8]) -> None:
        """Add leaders: phash [N, views], signature [N, views, 192]."""
        new = np.arange(self.count, self.count + len(phash))
        self.count += len(new)
        while len(self._signatures) < self.count:
            self._signatures = np.concatenate([self._signatures, np.zeros_like(self._signatures)])
        self._signatures[new] = signature
        self._whole.add(phash[:, 0], new)
        views = phash.shape[1]
        self._any.add(phash.ravel(), np.repeat(new * views, views) + np.tile(np.arange(views), len(new)))

    def first(self, phash: Codes, signature: npt.NDArray[np.uint8]) -> Ints:
        """[N] number of the first leader that each image looks like, -1 if there is none."""
        views = phash.shape[1]
        found: Ints = np.full(len(phash), self.count, np.int64)
        rows, ids = self._any.near(phash[:, 0])
        self._verify(found, rows, signature[:, 0], ids // views, ids % views)
        for view in range(1, views):
            rows, ids = self._whole.near(phash[:, view])
            self._verify(found, rows, signature[:, view], ids, np.zeros_like(ids))
        found[found == self.count] = -1
        return found

    def _verify(self, found: Ints, rows: Ints, own: npt.NDArray[np.uint8], leaders: Ints, views: Ints) -> None:
        for start in range(0, len(rows), 1 << 16):
            part = slice(start, start + (1 << 16))
            apart = distance(own[rows[part]], self._signatures[leaders[part], views[part]])
            alike = apart <= self._threshold
            np.minimum.at(found, rows[part][alike], leaders[part][alike])

    def among(self, phash: Codes, signature: npt.NDArray[np.uint8]) -> list[list[int]]:
        """For each image those before it in the same list that it looks like, in order.

        Compares all with all: for lists of some hundreds, which cost the same however many copies they hold.
        """
        alike: set[tuple[int, int]] = set()
        for a, b in COMBINATIONS:
            near = np.bitwise_count(phash[:, None, a] ^ phash[None, :, b]) <= self._radius
            near &= (phash[:, None, a] != 0) & (phash[None, :, b] != 0)
            rows, columns = np.nonzero(np.tril(near, -1))
            for start in range(0, len(rows), 1 << 16):
                i, j = rows[start : start + (1 << 16)], columns[start : start + (1 << 16)]
                same = distance(signature[i, a], signature[j, b]) <= self._threshold
                alike.update(zip(i[same].tolist(), j[same].tolist(), strict=True))
        before: list[list[int]] = [[] for _ in range(len(phash))]
        for row, earlier in sorted(alike):
            before[row].append(earlier)
        return before
