"""Index of image leaders: the first leader that an image looks like.

Two images look alike if and only if, for one of `COMBINATIONS` of their parts, the hashes of both parts are at most
`radius` bits apart and the grids of their signatures at most `threshold`. A part of one image is compared with the
whole of the other (crops, borders); what lies between the margins of an image is such a part, and is compared with the
same of the other as well. A half is compared with the same half, which a text stamped elsewhere leaves as it was, so
that half the radius is enough; halves are verified by the grids of the whole, and by the tones of their own blocks.
Images without texture are compared by their details, too (`pipeline.matching.looks`). What frames an image is no part
of it (`pipeline.pictures.frames`).

Candidates come from multi-index hashing (Norouzi, Punjani and Fleet, "Fast Search in Hamming Space with Multi-Index
Hashing", CVPR 2012): a hash is cut into bands, and by the pigeonhole principle two hashes within the radius agree in
some band up to its share of the radius, so nothing within the radius is ever missed. The index holds leaders only: a
thousand copies of one image cost a thousand look-ups of one entry.

Limits: in memory, about 2 KB per leader, 3 KB more of one with details; a leader that matches by several of its hashes
is compared as often. A part without structure (hash 0) is never near another.
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

from pipeline.matching.leader_signatures import LeaderSignatures
from pipeline.matching.looks import (
    NO_DETAILS,
    TONES_AT_ONCE,
    Details,
    Family,
    OfArrays,
    alike,
    coarse_of,
    families,
    fine_of,
)
from pipeline.pictures.details import PARTS
from pipeline.pictures.signatures import GRIDS, of_one_tone

Codes = npt.NDArray[np.uint64]
Ints = npt.NDArray[np.int64]
Signatures = npt.NDArray[np.uint8]
Pairs = tuple[Ints, Ints]
Ids = npt.NDArray[np.uint32]

COMBINATIONS = tuple(
    pair
    for family in families(0)
    if not family.fine
    for part in family.parts
    for pair in dict.fromkeys(((family.asks, part), (part, family.asks)))
)
"""(number of a hash of one image, number of a hash of the other): the pairs that are compared of any two images."""

BLOCK = 1 << 21
"""Elements of a temporary array: bounds memory at some tens of MB."""

SCANNED = 1 << 16
"""Codes compared in one go: what they need stays in a processor's cache."""

MOST_BITS = 24
"""Bits of a band's table at most: it then takes 64 MB."""

VERIFIED = 1 << 12
"""Candidates compared at once: what they need fits into a processor's cache."""


class HashIndex:
    """64-bit codes with ids below 2^32; finds all within a Hamming radius.

    As in a log-structured merge tree, codes are added to a short tail, which is compared one by one, and then go into
    levels: immutable indexes, merged whenever a new one would not be GROWTH times smaller than the one before it.
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
        return cast("np.uint64", np.uint64(((1 << self.width) - 1) << (self.low + self.bits - self.width)))

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
        # [2^width + 1]: codes of place p are self.codes[starts[p] : starts[p + 1]]
        self._starts = np.zeros((1 << of.width) + 1, np.uint32)
        np.cumsum(np.bincount(of.places(self.codes), minlength=1 << of.width), out=self._starts[1:])

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


class _FamilyIndex:
    """All hashes of a family of entries 0, 1, 2 ..., each an image."""

    def __init__(self, family: Family) -> None:
        self.family = family
        self._parts = HashIndex(family.radius)
        self._asks = HashIndex(family.radius) if len(family.parts) > 1 else None

    def add(self, codes: Codes, new: Ints) -> None:
        """Add entries `new` [N] with codes [N, parts of all families]."""
        count = len(self.family.parts)
        self._parts.add(codes[:, self.family.numbers].ravel(), (new[:, None] * count + np.arange(count)).ravel())
        if self._asks is not None:
            self._asks.add(codes[:, self.family.asks], new)

    def near(self, codes: Codes) -> Iterator[tuple[Ints, Ints, Ints, Ints]]:
        """(rows of codes [N, parts of all families], their parts, entries, parts of these) of near hashes.

        The part that asks with all parts of the entries, then the other parts with the one that asks.
        """
        numbers, asks = self.family.numbers, self.family.asks
        rows, ids = self._parts.near(codes[:, asks])
        entries, places = np.divmod(ids, len(numbers))
        yield rows, np.full_like(rows, asks), entries, numbers[places]
        if self._asks is not None:
            asked, entries = self._asks.near(codes[:, numbers[1:]].ravel())
            rows, places = np.divmod(asked, len(numbers) - 1)
            yield rows, numbers[1:][places], entries, np.full_like(rows, asks)


class ImageLeaders:
    """The images kept so far, numbered 0, 1, 2 ... in the order of their ranks.

    Hashes are [N, HASHES]; signatures may have any shape of GRIDS * SIZE bytes per image. Those of an older wenlan
    (`features.EARLIER_IDS`) have fewer of both, and are found by what they have; so are images without details.
    """

    def __init__(self, radius: int, threshold: float) -> None:
        self._threshold, self._families = threshold, [_FamilyIndex(family) for family in families(radius)]
        self._signatures = LeaderSignatures()
        self._tones = np.zeros((1024, GRIDS), np.uint64)  # rows beyond `count` are unused
        # of each entry with details its leader and its tones, likewise
        self._fine, self._fine_tones = np.zeros(1024, np.int64), np.zeros((1024, len(PARTS)), np.uint64)
        self._fine_count = self.count = 0

    def add(self, phash: Codes, *signature: Signatures, details: Sequence[Details] = ()) -> None:
        """Add leaders. Signatures may come in several pieces, each with its details; memory maps stay on disk."""
        coarse, first = coarse_of(phash, *signature), self.count
        self.count += len(phash)
        self._tones = _grown(self._tones, self.count)
        self._tones[first : self.count] = coarse.tones
        new, start = coarse.images + first, first
        for piece, own in zip(signature, details or [NO_DETAILS] * len(signature), strict=True):
            self._signatures.add(piece, own)
            self._add_fine(own, start)
            start += len(piece)
        for index in self._families:
            if not index.family.fine:
                index.add(coarse.codes, new)

    def _add_fine(self, own: Details, start: int) -> None:
        """Add details of leaders, of which the first has the number `start`."""
        for at in range(0, len(own), TONES_AT_ONCE):
            some = slice(at, at + TONES_AT_ONCE)
            fine = fine_of(Details(own.of[some], own.stored[some]))
            new = np.arange(self._fine_count, self._fine_count + len(fine.images))
            self._fine_count += len(new)
            self._fine, self._fine_tones = (_grown(of, self._fine_count) for of in (self._fine, self._fine_tones))
            self._fine[new], self._fine_tones[new] = fine.images + start, fine.tones
            for index in self._families:
                if index.family.fine:
                    index.add(fine.codes, new)

    def first(self, phash: Codes, signature: Signatures, details: Details = NO_DETAILS) -> Ints:
        """[N] number of the first leader that each image looks like, -1 if there is none."""
        coarse, fine, own = coarse_of(phash, signature), fine_of(details), OfArrays(signature, details)
        first: Ints = np.full(len(phash), self.count, np.int64)
        for index in self._families:
            family, asking = index.family, fine if index.family.fine else coarse
            for rows, parts, entries, their_parts in index.near(asking.codes) if len(asking.images) else ():
                theirs = (self._fine_tones if family.fine else self._tones)[entries, family.toned(their_parts)]
                near = np.flatnonzero(of_one_tone(asking.tones[rows, family.toned(parts)], theirs, family.blocks))
                leaders = self._fine[entries] if family.fine else entries
                candidates = [of[near] for of in (asking.images[rows], parts, leaders, their_parts)]
                for some in _once_first(candidates[0], candidates[2]):
                    rows, parts, leaders, their_parts = (of[some] for of in candidates)
                    new = leaders < first[rows]  # a copy is near its leader by most of its parts: once is enough
                    rows, parts, leaders, their_parts = rows[new], parts[new], leaders[new], their_parts[new]
                    same = alike(own, rows, parts, self._signatures, leaders, their_parts, (family, self._threshold))
                    np.minimum.at(first, rows[same], leaders[same])
        first[first == self.count] = -1
        return first

    def candidates(self, phash: Codes) -> int:
        """How many pairs of one of these images and a leader have near hashes, so that signatures must be compared."""
        codes = coarse_of(phash).codes
        near = [one for index in self._families if not index.family.fine for one in index.near(codes)]
        pairs = [_distinct(rows, leaders) for rows, _, leaders, _ in near]
        return len(_distinct(*_joined(pairs))[0])

    def among(self, phash: Codes, signature: Signatures, details: Details = NO_DETAILS) -> list[list[int]]:
        """For each image the ones before it in the same list that it looks like, in order."""
        coarse, fine, own = coarse_of(phash, signature), fine_of(details), OfArrays(signature, details)
        size = len(phash)
        alike_NN = np.zeros((size, size), np.bool_)
        for index in self._families:
            family, asking = index.family, fine if index.family.fine else coarse
            if not len(asking.images):
                continue
            # both orders: each image asks all others
            asked, at = _near_among(asking.codes[:, family.asks], asking.codes[:, family.numbers], family.radius)
            entries, places = np.divmod(at, len(family.parts))
            parts, asks = family.numbers[places], np.full_like(asked, family.asks)
            mine, theirs = asking.tones[asked, family.toned(asks)], asking.tones[entries, family.toned(parts)]
            near = np.flatnonzero(of_one_tone(mine, theirs, family.blocks))
            candidates = [of[near] for of in (asking.images[asked], asks, asking.images[entries], parts)]
            for some in _once_first(*(pick(candidates[0], candidates[2]) for pick in (np.minimum, np.maximum))):
                rows, asks, others, parts = (of[some] for of in candidates)
                new = (rows != others) & ~alike_NN[rows, others]
                rows, asks, others, parts = rows[new], asks[new], others[new], parts[new]
                same = alike(own, rows, asks, own, others, parts, (family, self._threshold))
                alike_NN[rows[same], others[same]] = alike_NN[others[same], rows[same]] = True
        before = [list[int]() for _ in range(size)]
        for row, other in zip(*(of.tolist() for of in np.divmod(np.flatnonzero(alike_NN), max(1, size))), strict=True):
            if other < row:
                before[row].append(other)
        return before


def _near_among(queries: Codes, codes: Codes, radius: int) -> Pairs:
    """(position in queries [Q], position in codes [Q, n] laid flat) of every pair within the radius, once each."""
    codes = codes.ravel()
    asked, filled = np.flatnonzero(queries), np.flatnonzero(codes)  # code 0 is near nothing
    level = _Level(codes[filled], filled.astype(np.uint32), radius)
    rows, at = level.near(queries[asked])
    return _distinct(asked[rows], at)


def _once_first(rows: Ints, ids: Ints) -> Iterator[Ints]:
    """Places of candidates (row, id), VERIFIED at most: one of each pair, then the others, as one is mostly enough."""
    once = np.zeros(len(rows), np.bool_)
    once[np.unique(rows << 32 | ids, return_index=True)[1]] = True
    for places in (np.flatnonzero(once), np.flatnonzero(~once)):
        for start in range(0, len(places), VERIFIED):
            yield places[start : start + VERIFIED]


def _grown(rows: Any, count: int) -> Any:
    """The same rows, with room for `count` of them."""
    while len(rows) < count:
        rows = np.concatenate([rows, np.zeros_like(rows)])
    return rows


def _distinct(rows: Ints, ids: Ints) -> Pairs:
    """Each pair (row, id) once, ascending."""
    keys = np.unique(rows.astype(np.uint64) << np.uint64(32) | ids.astype(np.uint64))
    return (keys >> np.uint64(32)).astype(np.int64), (keys & np.uint64(0xFFFFFFFF)).astype(np.int64)
