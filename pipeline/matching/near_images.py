"""Near images: which of the images kept so far does this one look like?

Two images look alike if and only if, for one of `COMBINATIONS` of their parts, the hashes of both parts are at most
`radius` bits apart and the grids of their signatures at most `threshold`. Parts are compared one with the whole of the
other (crops, borders); halves with the same half, which a text stamped elsewhere leaves as it was, so that half the
radius is enough. Halves are verified by the grids of the whole.

Candidates come from multi-index hashing (Norouzi, Punjani and Fleet, "Fast Search in Hamming Space with Multi-Index
Hashing", CVPR 2012): a hash is cut into bands, and by the pigeonhole principle two hashes within the radius agree in
some band up to its share of the radius, so nothing within the radius is ever missed. The index holds leaders only: a
thousand copies of one image cost a thousand look-ups of one.

Limits: in memory, about 2 KB a leader; a leader of which several hashes are found is compared as often. A part without
structure (hash 0) is never near another.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from pipeline.matching.signatures import Grids
from pipeline.pictures.parts import BOXES, HALVES
from pipeline.pictures.signatures import GRIDS, SIZE, of_one_tone, tones, within

Codes = npt.NDArray[np.uint64]
Ints = npt.NDArray[np.int64]
Signatures = npt.NDArray[np.uint8]
Pairs = tuple[Ints, Ints]
Ids = npt.NDArray[np.uint32]

_PARTS = range(1, len(BOXES))
_HALVES = range(len(BOXES), len(BOXES + HALVES))

COMBINATIONS = (
    (0, 0),
    *((0, part) for part in _PARTS),
    *((part, 0) for part in _PARTS),
    *((half, half) for half in _HALVES),
)
"""(hash of one image, hash of the other) that are compared."""

BLOCK = 1 << 21
"""Elements of a temporary array: bounds memory at some tens of MB."""

SCANNED = 1 << 16
"""Codes looked at in one go: what they need stays in a processor's cache."""

MOST_BITS = 24
"""Of a band: its table then takes 64 MB."""

VERIFIED = 1 << 12
"""Candidates compared at once: what they need fits into a processor's cache."""


def grid_of(part: int) -> int:
    """The grid of a signature by which a match of hash number `part` is verified."""
    return part if part < GRIDS else 0


def radius_of(part: int, radius: int) -> int:
    """Bits that two hashes number `part` may be apart."""
    return radius // 2 if part in _HALVES else radius


class HashIndex:
    """64-bit codes with ids below 2^32; finds all within a Hamming radius. Codes are merged into ever larger levels."""

    TAIL = 128
    GROWTH = 3

    def __init__(self, radius: int) -> None:
        self.radius = radius
        self._tail: list[tuple[Codes, Ids]] = []
        self._levels: list[_Level] = []

    def add(self, codes: Codes, ids: Ints) -> None:
        """Add codes [N] with ids [N]. Code 0, a picture without structure, is left out."""
        keep = codes != 0
        self._tail.append((codes[keep], ids[keep].astype(np.uint32)))
        size = sum(len(c) for c, _ in self._tail)
        if size < self.TAIL:
            return
        older: list[_Level] = []
        while self._levels and len(self._levels[-1].codes) < self.GROWTH * size:
            older.append(self._levels.pop())
            size += len(older[-1].codes)
        new, numbers = _joined(self._tail)
        self._levels.append(_Level(new, numbers, self.radius, older[::-1]))
        self._tail = []

    def near(self, queries: Codes) -> Pairs:
        """(positions in queries, ids) of every pair within the radius, once each. Code 0 finds nothing."""
        asked = np.flatnonzero(queries)
        found = [level.near(queries[asked]) for level in self._levels]
        if self._tail:
            codes, ids = _joined(self._tail)
            rows, at = _brute(queries[asked], codes, self.radius)
            found.append((rows, ids[at].astype(np.int64)))
        rows, ids = _joined(found)
        return asked[rows], ids


@dataclass(frozen=True, slots=True)
class _Cut:
    """A band: the bits [low, low + bits) of a code, the first `width` of which are its place in a table."""

    low: int
    bits: int
    width: int
    radius: int

    @property
    def mask(self) -> np.uint64:
        """The bits of a code that make its place."""
        return cast("np.uint64", np.uint64(((1 << self.width) - 1) << (self.low + self.bits - self.width)))

    def values(self, codes: Codes) -> Codes:
        found: Codes = (codes >> np.uint64(self.low)) & np.uint64((1 << self.bits) - 1)
        return found

    def places(self, codes: Codes) -> Ints:
        shift = self.low + self.bits - self.width
        found: Ints = ((codes >> np.uint64(shift)) & np.uint64((1 << self.width) - 1)).astype(np.int64)
        return found


class _Level:
    """An immutable multi-index over codes: those of older levels, which are given up for it, then new ones.

    A band's keys are sorted by more bits than its table needs, so that the bands of a larger level are merged from
    those of smaller ones, a tenth of the time that sorting takes.
    """

    def __init__(self, codes: Codes, ids: Ids, radius: int, older: Sequence[_Level] = ()) -> None:
        self.codes: Codes = np.concatenate([*(level.codes for level in older), codes])
        self.ids: Ids = np.concatenate([*(level.ids for level in older), ids])
        self._radius = radius
        self._bands = list[_Band]()
        for cut in _plan(1 << len(self.codes).bit_length(), radius):
            keys, start = list[Codes](), 0
            for run in (*(level.keys(cut) for level in older), _sorted_keys(cut, codes)):
                keys.append(run + np.uint64(start))
                start += len(run)
            merged = np.concatenate(keys)
            if older:
                merged.sort(kind="stable")  # finds what is in order already
            self._bands.append(_Band(self.codes, cut, merged))

    def keys(self, cut: _Cut) -> Codes:
        """Values of a band and, in the lower half, positions of the codes that have them; ascending."""
        for band in self._bands:
            if (band.cut.low, band.cut.bits) == (cut.low, cut.bits):
                return band.keys
        return _sorted_keys(cut, self.codes)

    def near(self, queries: Codes) -> Pairs:
        if not self._bands:
            rows, at = _brute(queries, self.codes, self._radius)
        else:
            rows, at = _joined([self._look_up(number, queries) for number in range(len(self._bands))])
        return rows, self.ids[at].astype(np.int64)

    def _look_up(self, number: int, queries: Codes) -> Pairs:
        """Pairs that this band finds and none before it does."""
        band, before = self._bands[number], [band.cut for band in self._bands[:number]]
        step = max(1, BLOCK // len(band.masks))
        found = []
        for first in range(0, len(queries), step):
            asked = queries[first : first + step]
            for rows, start, counts in _cut(*band.ranges(asked)):
                ends = np.cumsum(counts)
                slots = np.repeat(start - (ends - counts), counts)
                slots += np.arange(len(slots))
                apart = band.codes[slots]
                apart ^= np.repeat(asked[rows], counts)
                near = np.flatnonzero(np.bitwise_count(apart) <= self._radius)
                for cut in before:
                    near = near[np.bitwise_count(apart[near] & cut.mask) > cut.radius]
                found.append((rows[np.searchsorted(ends, near, "right")] + first, band.order[slots[near]]))
        rows, at = _joined(found)
        return rows, at.astype(np.int64)


def _sorted_keys(cut: _Cut, codes: Codes) -> Codes:
    values = cut.values(codes)
    keys: Codes
    if cut.bits <= 16:
        order = np.argsort(values.astype(np.uint16), kind="stable")  # a radix sort
        keys = (values[order] << np.uint64(32)) | order.astype(np.uint64)
        return keys
    keys = (values << np.uint64(32)) | np.arange(len(codes), dtype=np.uint64)
    keys.sort()
    return keys


class _Band:
    """A band of all codes, as a table from their places to positions."""

    def __init__(self, codes: Codes, cut: _Cut, keys: Codes) -> None:
        self.cut = cut
        self.masks = _masks(cut.width, cut.radius)
        self.order = keys.astype(np.uint32)  # the lower half
        self.codes = codes[self.order]  # beside each other what a look-up reads
        self._starts = np.zeros((1 << cut.width) + 1, np.uint32)
        np.cumsum(np.bincount(cut.places(self.codes), minlength=1 << cut.width), out=self._starts[1:])

    @property
    def keys(self) -> Codes:
        """Of all codes, ascending: value of the band << 32 | position."""
        keys: Codes = (self.cut.values(self.codes) << np.uint64(32)) | self.order
        return keys

    def ranges(self, queries: Codes) -> tuple[Ints, Ints, Ints]:
        """(rows, starts, counts): where in `order` the codes are that agree with a query up to a mask, if any are."""
        probes = (self.cut.places(queries)[:, None] ^ self.masks).ravel()
        low, high = self._starts[probes], self._starts[1:][probes]
        filled = np.flatnonzero(low != high)
        low, high = low[filled].astype(np.int64), high[filled].astype(np.int64)
        return filled // len(self.masks), low, high - low


@lru_cache(maxsize=256)
def _plan(size: int, radius: int) -> list[_Cut]:
    """The bands, at the least expected cost; empty if comparing with all is cheaper.

    The radii of the bands plus one each add up to radius + 1: the pigeonhole principle in its tight form.
    """
    best: tuple[float, list[_Cut]] = (size * 1.0, [])
    for bands, most in itertools.product(range(1, min(16, radius + 1) + 1), range(6, MOST_BITS + 1)):
        plan, shift, cost = list[_Cut](), 0, 0.0
        for k in range(bands):
            bits = 64 // bands + (k < 64 % bands)
            width = min(bits, most)
            share = (radius + 1) // bands + (k < (radius + 1) % bands) - 1
            probes = sum(math.comb(width, i) for i in range(share + 1))
            cost += probes * (6 + 4 * size / (1 << width)) + 20 * (1 << width) / max(1, size)
            kept = min(bits, 32)
            plan.append(_Cut(shift + bits - kept, kept, width, share))
            shift += bits
        best = min(best, (cost, plan), key=lambda of: of[0])
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


def _cut(rows: Ints, starts: Ints, counts: Ints) -> Iterator[tuple[Ints, Ints, Ints]]:
    """Ranges, about SCANNED numbers at a time."""
    ends = np.cumsum(counts)
    cuts = np.unique(np.searchsorted(ends, np.arange(SCANNED, ends[-1], SCANNED))) if len(ends) else ends
    for cut in zip(np.append(0, cuts), np.append(cuts, len(ends)), strict=True):
        if cut[0] < cut[1]:
            here = slice(*cut)
            yield rows[here], starts[here], counts[here]


def _joined(parts: list[Any]) -> Any:
    """Concatenation of pairs of arrays."""
    if not parts:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    return np.concatenate([a for a, _ in parts]), np.concatenate([b for _, b in parts])


class ImageLeaders:
    """The images kept so far, in the order of their ranks; numbers them 0, 1, 2 ...

    Hashes are [N, len(BOXES + HALVES)]; signatures may have any shape that holds GRIDS * SIZE bytes for each image.
    """

    def __init__(self, radius: int, threshold: float) -> None:
        self._radius, self._threshold = radius, threshold
        self._parts, self._whole = HashIndex(radius), HashIndex(radius)
        self._halves = {half: HashIndex(radius_of(half, radius)) for half in _HALVES}
        self._grids = Grids(GRIDS, SIZE)
        self._tones = np.zeros((1024, GRIDS), np.uint64)
        self.count = 0

    def add(self, phash: Codes, *signature: Signatures) -> None:
        """Add leaders. Signatures may come in pieces; those that are a memory map stay on disk."""
        first, new = self.count, np.arange(self.count, self.count + len(phash))
        self.count += len(new)
        while len(self._tones) < self.count:
            self._tones = np.concatenate([self._tones, np.zeros_like(self._tones)])
        for piece in signature:
            self._grids.add(piece)
            for start in range(0, len(piece), BLOCK // SIZE):  # of a map, a part at a time
                part = piece[start : start + BLOCK // SIZE]
                self._tones[first : first + len(part)] = tones(_grids(part))
                first += len(part)
        self._whole.add(phash[:, 0], new)
        ids = new[:, None] * len(BOXES) + np.arange(len(BOXES))
        self._parts.add(phash[:, : len(BOXES)].ravel(), ids.ravel())
        for half, index in self._halves.items():
            index.add(phash[:, half], new)

    def first(self, phash: Codes, signature: Signatures) -> Ints:
        """[N] number of the first leader that each image looks like, -1 if there is none."""
        grids = _grids(signature)
        own = tones(grids)
        found: Ints = np.full(len(phash), self.count, np.int64)
        for candidates in self._candidates(phash):
            rows, parts, leaders, their_parts = candidates
            near = np.flatnonzero(of_one_tone(own[rows, parts], self._tones[leaders, their_parts]))
            for start in range(0, len(near), VERIFIED):
                rows, parts, leaders, their_parts = (of[near[start : start + VERIFIED]] for of in candidates)
                new = leaders < found[rows]  # a copy is near its leader by most of its parts: once is enough
                rows, parts, leaders, their_parts = rows[new], parts[new], leaders[new], their_parts[new]
                alike = within(grids[rows, parts], self._grids.of(leaders, their_parts), self._threshold, one_tone=True)
                np.minimum.at(found, rows[alike], leaders[alike])
        found[found == self.count] = -1
        return found

    def candidates(self, phash: Codes) -> int:
        """How many pairs of one of these images and a leader have near hashes, so that signatures must be compared."""
        found = [_distinct(rows, leaders) for rows, _, leaders, _ in self._candidates(phash)]
        return len(_distinct(*_joined(found))[0])

    def _candidates(self, phash: Codes) -> list[tuple[Ints, Ints, Ints, Ints]]:
        """(rows, their grids, leaders, their grids) of all whose hashes are near; one may come twice."""
        rows, ids = self._parts.near(phash[:, 0])
        leaders = ids // len(BOXES)
        found = [(rows, np.zeros_like(rows), leaders, ids - leaders * len(BOXES))]
        asked, leaders = self._whole.near(phash[:, 1 : len(BOXES)].ravel())
        rows, parts = np.divmod(asked, len(_PARTS))
        found.append((rows, parts + 1, leaders, np.zeros_like(rows)))
        for half, index in self._halves.items():
            rows, leaders = index.near(phash[:, half])
            found.append((rows, np.zeros_like(rows), leaders, np.zeros_like(rows)))
        return found

    def among(self, phash: Codes, signature: Signatures) -> list[list[int]]:
        """For each image those before it in the same list that it looks like, in order."""
        size, grids = len(phash), _grids(signature)
        known = np.zeros((size, size), np.bool_)
        rows, ids = _near_among(phash[:, 0], phash[:, : len(BOXES)], self._radius)
        near = [(rows, ids // len(BOXES), ids % len(BOXES))]  # parts of one with the whole of the other, from one side
        for half in _HALVES:
            rows, ids = _near_among(phash[:, half], phash[:, half : half + 1], radius_of(half, self._radius))
            near.append((rows, ids, np.zeros_like(ids)))
        for candidates in near:
            for start in range(0, len(candidates[0]), VERIFIED):
                rows, others, parts = (of[start : start + VERIFIED] for of in candidates)
                new = (rows != others) & ~known[rows, others]
                rows, others, parts = rows[new], others[new], parts[new]
                alike = within(grids[rows, 0], grids[others, parts], self._threshold)
                known[rows[alike], others[alike]] = known[others[alike], rows[alike]] = True
        found = [list[int]() for _ in range(size)]
        for row, other in zip(*(of.tolist() for of in np.divmod(np.flatnonzero(known), max(1, size))), strict=True):
            if other < row:
                found[row].append(other)
        return found


def _near_among(queries: Codes, codes: Codes, radius: int) -> Pairs:
    """(position in queries [Q], position in codes [Q, n] as it lies in memory) of all within the radius, once each."""
    codes = codes.ravel()
    asked, there = np.flatnonzero(queries), np.flatnonzero(codes)
    level = _Level(codes[there], there.astype(np.uint32), radius)
    rows, found = level.near(queries[asked])
    return _distinct(asked[rows], found)


def _grids(signature: Signatures) -> Signatures:
    return signature.reshape(len(signature), GRIDS, SIZE)


def _distinct(rows: Ints, ids: Ints) -> Pairs:
    """Each pair once, in order."""
    keys = np.unique(rows.astype(np.uint64) << np.uint64(32) | ids.astype(np.uint64))
    return (keys >> np.uint64(32)).astype(np.int64), (keys & np.uint64(0xFFFFFFFF)).astype(np.int64)
