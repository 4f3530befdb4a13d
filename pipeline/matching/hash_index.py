"""Index of 64-bit hashes: all within a Hamming radius of a query are found, however many there are.

Multi-index hashing (Norouzi, Punjani and Fleet, "Fast Search in Hamming Space with Multi-Index Hashing", CVPR 2012): a
hash is cut into bands, and by the pigeonhole principle two hashes within the radius agree in some band up to its share
of the radius. So nothing within the radius is ever missed. It knows hashes and ids, and nothing of images.

Limits: in memory, about 12 bytes for each band of a code; ids are below 2^32, and so many codes at most.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

Codes = npt.NDArray[np.uint64]
Ints = npt.NDArray[np.int64]
Pairs = tuple[Ints, Ints]
Ids = npt.NDArray[np.uint32]

BLOCK = 1 << 21
"""Elements of a temporary array: bounds memory at some tens of MB."""

SCANNED = 1 << 16
"""Codes compared in one go: what they need stays in a processor's cache."""

MOST_BITS = 24
"""Bits of a band's table at most: it then takes 64 MB."""


class HashIndex:
    """64-bit codes with ids below 2^32; finds all within a Hamming radius.

    As in a log-structured merge tree, codes are added to a short tail, which is compared one by one, and then go into
    levels: immutable indexes, merged whenever a new one would not be GROWTH times smaller than the one before it. A
    level is made when it is first asked, so that what is added in several goes before is sorted once.
    """

    TAIL = 128
    """Codes at which the tail becomes a level."""
    GROWTH = 3

    def __init__(self, radius: int) -> None:
        self.radius = radius
        self._tail: list[tuple[Codes, Ids]] = []
        self._levels: list[_Level] = []

    def add(self, codes: Codes, ids: Ints) -> None:
        """Add codes [N] with ids [N]. Code 0, of a picture without structure, is left out."""
        keep = codes != 0
        self._tail.append((codes[keep], ids[keep].astype(np.uint32)))

    def _settle(self) -> None:
        """Make a level of the tail where it is long enough."""
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
        """(positions in queries, ids) of every pair within the radius, once each. Code 0 is near nothing."""
        self._settle()
        asked = np.flatnonzero(queries)
        pairs = [level.near(queries[asked]) for level in self._levels]
        if self._tail:
            codes, ids = _joined(self._tail)
            rows, at = _brute(queries[asked], codes, self.radius)
            pairs.append((rows, ids[at].astype(np.int64)))
        rows, ids = _joined(pairs)
        return asked[rows], ids


@dataclass(frozen=True, slots=True)
class _BandBits:
    """Which bits of a code a band takes: [low, low + bits), of which the highest `width` are its place in a table.

    `radius` is the band's share of the radius: what two places may differ by.
    """

    low: int
    bits: int
    width: int
    radius: int

    @property
    def mask(self) -> np.uint64:
        """The bits of a code that make up its place."""
        mask: np.uint64 = np.uint64(((1 << self.width) - 1) << (self.low + self.bits - self.width))
        return mask

    def values(self, codes: Codes) -> Codes:
        """The band's bits of each code."""
        values: Codes = (codes >> np.uint64(self.low)) & np.uint64((1 << self.bits) - 1)
        return values

    def places(self, codes: Codes) -> Ints:
        """The place of each code in the band's table: the highest `width` of its bits."""
        shift = self.low + self.bits - self.width
        places: Ints = ((codes >> np.uint64(shift)) & np.uint64((1 << self.width) - 1)).astype(np.int64)
        return places


class _Level:
    """An immutable multi-index over codes: those of older levels, which it replaces, then new ones.

    Each band keeps its codes sorted by up to 32 bits, more than its table needs. A larger level has bands with wider
    tables over the same bits, so its sorted keys are merged from those of smaller levels, in a tenth of the time that
    sorting takes.
    """

    def __init__(self, codes: Codes, ids: Ids, radius: int, older: Sequence[_Level] = ()) -> None:
        self.codes: Codes = np.concatenate([*(level.codes for level in older), codes])
        self.ids: Ids = np.concatenate([*(level.ids for level in older), ids])
        self._radius = radius
        self._bands = list[_Band]()
        for of in band_plan(1 << len(self.codes).bit_length(), radius):
            # A run per older level and one of the new codes, each sorted by value << 32 | position. Positions are those
            # in the run's own codes: adding the codes that come before them makes them positions in all codes.
            keys, start = list[Codes](), 0
            for run in (*(level.keys(of) for level in older), _sorted_keys(of, codes)):
                keys.append(run + np.uint64(start))
                start += len(run)
            merged = np.concatenate(keys)
            if older:
                merged.sort(kind="stable")  # timsort: recognises the sorted runs and merges them
            self._bands.append(_Band(self.codes, of, merged))

    def keys(self, of: _BandBits) -> Codes:
        """All codes as the band's value << 32 | position, ascending: kept if this level has that band, else sorted."""
        for band in self._bands:
            if (band.of.low, band.of.bits) == (of.low, of.bits):
                return band.keys
        return _sorted_keys(of, self.codes)

    def near(self, queries: Codes) -> Pairs:
        """(positions in queries, ids) of every pair within the radius, once each."""
        if not self._bands:
            rows, at = _brute(queries, self.codes, self._radius)
        else:
            rows, at = _joined([self._look_up(number, queries) for number in range(len(self._bands))])
        return rows, self.ids[at].astype(np.int64)

    def _look_up(self, number: int, queries: Codes) -> Pairs:
        """Pairs that this band finds and none before it does, so that each pair is found once."""
        band, before = self._bands[number], [band.of for band in self._bands[:number]]
        step = max(1, BLOCK // len(band.masks))
        pairs = []
        for first in range(0, len(queries), step):
            asked = queries[first : first + step]
            for rows, start, counts in _in_parts(*band.ranges(asked)):
                # The slots start[i] ... start[i] + counts[i] - 1 of all ranges, end to end.
                ends = np.cumsum(counts)
                slots = np.repeat(start - (ends - counts), counts)
                slots += np.arange(len(slots))
                apart = band.codes[slots]
                apart ^= np.repeat(asked[rows], counts)
                near = np.flatnonzero(np.bitwise_count(apart) <= self._radius)
                for of in before:  # an earlier band finds the pair if its places differ by no more than its radius
                    near = near[np.bitwise_count(apart[near] & of.mask) > of.radius]
                # ends is ascending, so the range of slot number n is the first that ends after it
                pairs.append((rows[np.searchsorted(ends, near, "right")] + first, band.order[slots[near]]))
        rows, at = _joined(pairs)
        return rows, at.astype(np.int64)


def _sorted_keys(of: _BandBits, codes: Codes) -> Codes:
    """Codes as the band's value << 32 | position, ascending."""
    values = of.values(codes)
    keys: Codes
    if of.bits <= 16:
        order = np.argsort(values.astype(np.uint16), kind="stable")  # a radix sort
        keys = (values[order] << np.uint64(32)) | order.astype(np.uint64)
        return keys
    keys = (values << np.uint64(32)) | np.arange(len(codes), dtype=np.uint64)
    keys.sort()
    return keys


class _Band:
    """One band of a level: all codes in the order of the band's bits, and a table from a place to where they start."""

    def __init__(self, codes: Codes, of: _BandBits, keys: Codes) -> None:
        self.of = of
        self.masks = _masks(of.width, of.radius)
        self.order = keys.astype(np.uint32)  # the lower half of the keys: positions in the level's codes
        self.codes = codes[self.order]  # a copy, so that a look-up reads memory that lies together
        # [2^width + 1]: codes of place p are self.codes[starts[p] : starts[p + 1]]. Code i begins all places after that
        # of code i - 1, up to its own: written so, a table of more places than codes is touched once
        gaps = np.diff(of.places(self.codes), prepend=-1, append=1 << of.width)
        self._starts = np.repeat(np.arange(len(codes) + 1, dtype=np.uint32), gaps)

    @property
    def keys(self) -> Codes:
        """All codes as the band's value << 32 | position, ascending."""
        keys: Codes = (self.of.values(self.codes) << np.uint64(32)) | self.order
        return keys

    def ranges(self, queries: Codes) -> tuple[Ints, Ints, Ints]:
        """(rows, starts, counts) of the ranges of codes whose place is that of a query, up to one of the masks.

        Ranges without a code are left out.
        """
        probes = (self.of.places(queries)[:, None] ^ self.masks).ravel()  # [queries * masks]
        low, high = self._starts[probes], self._starts[1:][probes]
        filled = np.flatnonzero(low != high)
        low, high = low[filled].astype(np.int64), high[filled].astype(np.int64)
        return filled // len(self.masks), low, high - low


@lru_cache(maxsize=256)
def band_plan(size: int, radius: int) -> list[_BandBits]:
    """The bands of a level of `size` codes, at the least expected cost; empty if comparing with all is cheaper.

    The radii of the bands plus one each add up to radius + 1, the pigeonhole principle in its tight form: if every band
    differed by more than its radius, the codes would differ by at least radius + 1 bits. Costs are relative to
    comparing a query with one code: 6 for a probe of a table, 4 for a code that it leads to, 20 for an entry of a
    table, shared by `size` queries.
    """
    best: tuple[float, list[_BandBits]] = (size * 1.0, [])
    for bands, most in itertools.product(range(1, min(16, radius + 1) + 1), range(6, MOST_BITS + 1)):
        plan, shift, cost = list[_BandBits](), 0, 0.0
        for k in range(bands):
            bits = 64 // bands + (k < 64 % bands)  # 64 bits in bands that differ by one bit at most
            width = min(bits, most)
            share = (radius + 1) // bands + (k < (radius + 1) % bands) - 1  # likewise the radius + 1, less one each
            probes = sum(math.comb(width, i) for i in range(share + 1))
            cost += probes * (6 + 4 * size / (1 << width)) + 20 * (1 << width) / max(1, size)
            kept = min(bits, 32)  # the highest bits of the band: a key has 32 for the value
            plan.append(_BandBits(shift + bits - kept, kept, width, share))
            shift += bits
        best = min(best, (cost, plan), key=lambda of: of[0])
    return best[1]


@lru_cache(maxsize=64)
def _masks(width: int, radius: int) -> Ints:
    """All numbers of `width` bits of which at most `radius` are set: xor-ed to a place they make its neighbours."""
    numbers = [
        sum(1 << bit for bit in bits) for n in range(radius + 1) for bits in itertools.combinations(range(width), n)
    ]
    return np.array(numbers, dtype=np.int64)


def _brute(queries: Codes, codes: Codes, radius: int) -> Pairs:
    """(positions in queries, positions in codes) of every pair within the radius, by comparing all with all."""
    step = max(1, BLOCK // max(1, len(codes)))
    pairs = []
    for start in range(0, len(queries), step):
        near = np.bitwise_count(queries[start : start + step, None] ^ codes[None, :]) <= radius
        rows, at = np.nonzero(near)
        pairs.append((rows + start, at))
    joined: Pairs = _joined(pairs)
    return joined


def _in_parts(rows: Ints, starts: Ints, counts: Ints) -> Iterator[tuple[Ints, Ints, Ints]]:
    """The same ranges in parts of about SCANNED codes each; a range is never divided."""
    ends = np.cumsum(counts)
    borders = np.unique(np.searchsorted(ends, np.arange(SCANNED, ends[-1], SCANNED))) if len(ends) else ends
    for first, last in zip(np.append(0, borders), np.append(borders, len(ends)), strict=True):
        if first < last:
            here = slice(first, last)
            yield rows[here], starts[here], counts[here]


def _joined(parts: list[Any]) -> Any:
    """Several pairs of arrays as one pair, each of them concatenated."""
    if not parts:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    return np.concatenate([a for a, _ in parts]), np.concatenate([b for _, b in parts])


def near_among(queries: Codes, codes: Codes, radius: int) -> Pairs:
    """(position in queries [Q], position in codes [Q, n] laid flat) of every pair within the radius, once each."""
    codes = codes.ravel()
    asked, filled = np.flatnonzero(queries), np.flatnonzero(codes)  # code 0 is near nothing
    level = _Level(codes[filled], filled.astype(np.uint32), radius)
    rows, at = level.near(queries[asked])
    return distinct(asked[rows], at)


def distinct(rows: Ints, ids: Ints) -> Pairs:
    """Each pair (row, id) once, ascending."""
    keys = np.unique(rows.astype(np.uint64) << np.uint64(32) | ids.astype(np.uint64))
    return (keys >> np.uint64(32)).astype(np.int64), (keys & np.uint64(0xFFFFFFFF)).astype(np.int64)
