"""Pairs of texts that are the same, found by sorted band keys in tasks that know nothing of each other.

Two texts are the same only if they share a band key (`sketches`), so entries are hash-partitioned by band key, and what
shares one is compared. Texts that are equal to the letter are one text here.

Captions from one template share a key by the ten thousand without being the same, and variants of one caption do so as
the same. A key of more than LONG texts is a crowd (`crowds`): its texts are compared with a few of them, and what is
left with what shares one of its rarest shingles. Texts of similarity t share at least one of those, if enough are
looked at (prefix filtering, Chaudhuri, Ganti and Kaushik, "A Primitive Operator for Similarity Joins in Data
Cleaning", ICDE 2006), and the shingles of a template are not rare.

Limits: a task holds about 40 bytes for each entry of its part of the keys, and the sketches of one crowd. In a crowd of
texts over a handful of characters no shingle is rare: each is compared with all.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.files.digests import Digests
from pipeline.matching.crowds import FEW, Crowds, represent
from pipeline.matching.image_edges import is_among, ranged_pairs, unpacked
from pipeline.matching.sketches import (
    Hashes,
    Ints,
    Sketches,
    Words,
    are_same,
    distinct,
    group_starts,
    mixed,
    positions_in_group,
    spread,
)

LONG = 64
"""Texts of a key of which every two are compared."""

VERIFIED = 1 << 15
"""Pairs verified at once: their sketches take some MB."""

BUCKET_BITS = 10
BUCKETS = 1 << BUCKET_BITS
_SHIFT = 32 - BUCKET_BITS

_LOW = np.uint64(0xFFFFFFFF)

Flags = npt.NDArray[np.bool_]
Owners = npt.NDArray[np.uint32]


@dataclass(frozen=True)
class TextEntries:
    """Entries of some texts by ascending band key: a key and the row of its text, [N] each."""

    keys: Hashes
    owner: Owners

    @staticmethod
    def of(keys: Hashes) -> TextEntries:
        """The entries of texts with keys [N, bands], in rows from 0."""
        owner = np.repeat(np.arange(len(keys), dtype=np.uint32), keys.shape[1])
        order = np.argsort(keys.ravel(), kind="stable")
        return TextEntries(keys.ravel()[order], owner[order])

    def in_buckets(self, first: int, last: int) -> TextEntries:
        """Returns the entries of buckets first to last - 1 of BUCKETS."""
        low, high = (
            len(self.keys) if bucket == BUCKETS else int(np.searchsorted(self.keys, np.uint32(bucket << _SHIFT)))
            for bucket in (first, last)
        )
        return TextEntries(self.keys[low:high], self.owner[low:high])


class _Pairs:
    """Verified pairs of texts: one << 32 | other."""

    def __init__(self, threshold: float, read: Callable[[Ints], Sketches], kept: Callable[[Ints], Sketches]) -> None:
        """read, kept: sketches of texts [N], whose numbers ascend, of the first and of the second of pairs."""
        self._threshold, self._read, self._kept = threshold, read, kept
        self.same: Words = np.zeros(0, np.uint64)
        self.compared = 0

    def verify(self, one: Ints, other: Ints) -> None:
        """Compare texts one[i] with other[i]."""
        packed = distinct(one.astype(np.uint64) << np.uint64(32) | other.astype(np.uint64))
        packed = packed[~is_among(packed, self.same)]
        matched = [self.same]
        for start in range(0, len(packed), VERIFIED):
            some = packed[start : start + VERIFIED]
            (ones, at), (others, theirs) = (
                np.unique(of.astype(np.int64), return_inverse=True) for of in (some >> np.uint64(32), some & _LOW)
            )
            match = are_same(self._read(ones), at, self._kept(others), theirs, self._threshold)
            self.compared += len(some)
            matched.append(some[match])
        self.same = distinct(np.concatenate(matched))

    def has(self, one: Ints, other: Ints) -> Flags:
        """[N] which texts of one side are known to be the same."""
        return is_among(_packed(one, other), self.same)

    def add(self, one: Ints, other: Ints) -> None:
        """Texts of one side that are known to be the same."""
        self.same = distinct(np.concatenate([self.same, _packed(one, other)]))


def _packed(one: Ints, other: Ints) -> Words:
    low, high = np.minimum(one, other).astype(np.uint64), np.maximum(one, other).astype(np.uint64)
    packed: Words = low << np.uint64(32) | high
    return packed


class TextJoin:
    """Finds pairs of texts of the build that are the same; texts have numbers over all files of the build."""

    def __init__(self, threshold: float, read: Callable[[Ints], Sketches], order: Owners) -> None:
        """read: sketches of texts [N], whose numbers ascend. order: by text; in about this one crowds are compared."""
        self._threshold, self._read, self._order = threshold, read, order
        self._pairs = _Pairs(threshold, read, read)
        self._crowds: list[tuple[Ints, Flags]] = []

    @property
    def compared(self) -> int:
        """Pairs of which sketches were compared."""
        return self._pairs.compared

    def edges(self) -> tuple[Ints, Crowds]:
        """Pairs [K, 2] that are the same, the smaller number first, and what was not compared."""
        return unpacked(self._pairs.same), Crowds.of(self._crowds)

    def join(self, keys: Hashes, text: Ints) -> None:
        """Compare texts [N] with those that share their band keys [N]."""
        packed = keys.astype(np.uint64) << np.uint64(32) | np.arange(len(keys), dtype=np.uint64)
        packed.sort()  # many times faster than argsort
        begin = group_starts(packed >> np.uint64(32))
        shared = ~(begin & np.append(begin[1:], True)[: len(begin)])  # most keys are of one text
        begin, text = begin[shared], text[(packed[shared] & _LOW).astype(np.int64)]
        borders = np.append(np.flatnonzero(begin), len(begin))
        low, high = borders[:-1], borders[1:]
        short = high - low <= LONG
        self._compare_all(text, low[short], high[short])
        for first, last in zip(low[~short].tolist(), high[~short].tolist(), strict=True):
            self._compare_crowd(distinct(text[first:last]))

    def _compare_all(self, text: Ints, low: Ints, high: Ints) -> None:
        """Compare every two of the texts in each range."""
        entry, end = spread(low, high), np.repeat(high, high - low)
        for rows, at in ranged_pairs(entry, entry + 1, end):
            one, other = np.minimum(text[rows], text[at]), np.maximum(text[rows], text[at])
            self._pairs.verify(one[one != other], other[one != other])

    def _compare_crowd(self, text: Ints, least: float = FEW) -> None:
        """Compare texts, each once, that are too many for every two of them."""
        if len(text) < 2:
            return
        text = text[np.lexsort((text, self._order[text]))]

        names = np.sort(text)
        own, row = self._read(names), np.searchsorted(names, text)

        def alike(ones: Ints, others: Ints) -> tuple[Ints, Ints]:
            found, step = [np.zeros((2, 0), np.int64)], max(1, VERIFIED // max(1, len(others)))
            for at in range(0, len(ones), step):
                one, other = np.repeat(ones[at : at + step], len(others)), np.tile(others, len(ones[at : at + step]))
                if ones is others:
                    one, other = one[one < other], other[one < other]
                match = self._pairs.has(text[one], text[other])
                new = np.flatnonzero(~match)
                match[new] = are_same(own, row[one[new]], own, row[other[new]], self._threshold)
                found.append(np.stack([one[match], other[match]]))
                self._pairs.compared += len(new)
            one, other = np.concatenate(found, axis=1)
            self._pairs.add(text[one], text[other])
            return one, other

        compared, follows, rest = represent(np.zeros(len(text), np.bool_), alike, least)
        if follows.any():
            self._crowds.append((text[compared], follows))
        if len(rest):
            self._compare_rarest(np.sort(text[rest]))

    def _compare_rarest(self, text: Ints) -> None:
        """Compare texts, ascending, with those that share one of their rarest shingles."""
        rows, rare = rarest(self._read(text), self._threshold)
        order = np.argsort(rare, kind="stable")
        text = text[rows[order]]
        borders = np.append(np.flatnonzero(group_starts(rare[order])), len(order))
        low, high = borders[:-1], borders[1:]
        short = high - low <= LONG
        self._compare_all(text, low[short], high[short])
        for first, last in zip(low[~short].tolist(), high[~short].tolist(), strict=True):
            self._compare_crowd(text[first:last], 0.0)


@dataclass(frozen=True)
class KeptTexts:
    """Texts that lead [T]: entries by ascending band key, and sketches."""

    entries: TextEntries
    sketches: Sketches


class KeptTextJoin:
    """Finds for texts of the build those of a piece of earlier builds that are the same."""

    def __init__(self, threshold: float, read: Callable[[Ints], Sketches], kept: KeptTexts) -> None:
        self._threshold, self._read, self._kept = threshold, read, kept
        self._pairs = _Pairs(threshold, read, kept.sketches.take)

    def look(self, keys: Hashes, text: Ints) -> None:
        """Compare texts [N] with kept ones that share their band keys [N]."""
        order = np.argsort(keys)  # so that the searches below go through memory once
        keys, text, entries = keys[order], text[order], self._kept.entries
        low, high = np.searchsorted(entries.keys, keys, "left"), np.searchsorted(entries.keys, keys, "right")
        filled = np.flatnonzero(high > low)
        borders = np.append(np.flatnonzero(group_starts(keys[filled])), len(filled))
        sizes = np.diff(borders) * (high - low)[filled[borders[:-1]]]
        long = np.repeat(sizes > LONG * LONG, np.diff(borders))
        for rows, at in ranged_pairs(filled[~long], low[filled[~long]], high[filled[~long]]):
            self._pairs.verify(text[rows], entries.owner[at].astype(np.int64))
        for first, last in itertools.pairwise(borders.tolist()):
            if first < last and long[first]:
                at = filled[first]
                kept = distinct(entries.owner[low[at] : high[at]].astype(np.int64))
                self._compare_rarest(distinct(text[filled[first:last]]), kept)

    def _compare_rarest(self, text: Ints, kept: Ints) -> None:
        both = Sketches.concat(self._read(text), self._kept.sketches.take(kept))
        rows, rare = rarest(both, self._threshold)
        order = np.argsort(rare, kind="stable")
        rows, rare = rows[order], rare[order]
        own = rows < len(text)
        low, high = (np.searchsorted(rare[~own], rare[own], side) for side in ("left", "right"))
        for some, at in ranged_pairs(rows[own], low, high):
            self._pairs.verify(text[some], kept[rows[~own][at] - len(text)])

    def matches(self) -> tuple[Ints, Ints]:
        """(text [K], the first kept one that it is the same as [K])."""
        packed = self._pairs.same
        texts, first = np.unique(packed >> np.uint64(32), return_index=True)
        return texts.astype(np.int64), (packed[first] & _LOW).astype(np.int64)


def rarest(texts: Sketches, threshold: float) -> tuple[Ints, Hashes]:
    """(rows, keys) of the rarest shingles of each of some texts: two of them that are the same share one.

    Texts of n shingles that are the same share at least ceil(t n), so of any n - ceil(t n) + 1 at least one is shared;
    taken in one order for all texts, here by rarity, the first of them that is shared is in both prefixes.
    """
    sizes = texts.sizes
    rows = np.repeat(np.arange(len(texts)), sizes)
    _, shingle, counts = np.unique(texts.shingles, return_inverse=True, return_counts=True)
    order = np.lexsort((texts.shingles, counts[shingle], rows))
    rows = rows[order]
    needed = sizes - np.ceil(threshold * sizes - 1e-9).astype(np.int64) + 1
    kept = positions_in_group(group_starts(rows)) < needed[rows]
    rows, shingles = rows[kept], texts.shingles[order][kept].astype(np.uint64)
    return rows, (mixed(shingles ^ texts.numerals[rows]) >> np.uint64(32)).astype(np.uint32)


def words_of(ids: Digests) -> Words:
    """[N] the first 64 bits of each id."""
    words: Words = np.ascontiguousarray(ids[:, :8]).view(np.uint64).ravel()
    return words
