"""Which images and texts of a build may match one that earlier builds kept: found in sorted entries, not by loading.

What was kept stands in entries by key, sorted once: images by the keys of `pipeline.matching.meetings`, texts by their
band keys. Each entry of the build looks for its range of them, so that what is read grows with the build and hardly
with what was kept. Nothing of what was kept is compared with anything else of it: kept images look like no other one.

As in `meetings`, what is found may be too much, never too little, and decides nothing. A match must be found on both
sides, also where an image has several: the pass takes the first. So a range is compared whole, however long it is.

Limits: of texts, a band key that more than LONG kept ones share is not compared: all of them are found.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.files.digests import Digests
from pipeline.matching.looks import Bytes, Details, Hashed, Signed
from pipeline.matching.meetings import CELL_BITS, PARTS_BITS, Codes, Finder, Ints, Key, Owners, Table, ranged_pairs
from pipeline.matching.sketches import Hashes, begins, spread
from pipeline.matching.text_meetings import Compared, TextFinder, TextTable, words_of
from pipeline.pictures.signatures import TONE, of_one_tone

LONG = 1_024
"""Kept texts of a band key that are compared; those of a longer one are all found."""

WHOLE, PARTS = "whole", "parts"
"""Entries of the hashes that ask, and of all others of a family."""

NAMES = ("keys", "owner")


@dataclass(frozen=True)
class SortedEntries:
    """Entries of one key by ascending key: [N] each. `owner` is row << PARTS_BITS | place in parts."""

    keys: Codes
    owner: Owners

    @staticmethod
    def of(key: Key, images: Hashed) -> dict[str, SortedEntries]:
        """WHOLE and PARTS of images, coarse or fine as the key asks, by their rows."""
        asks, found = key.family.parts.index(key.family.asks), {}
        table = Table.of(key, Hashed(np.arange(len(images.images)), images.codes, images.tones))[0]
        asking = (table.owner & np.uint32((1 << PARTS_BITS) - 1)) == asks
        for name, rows in ((WHOLE, np.flatnonzero(asking)), (PARTS, np.flatnonzero(~asking))):
            keys = _keyed(key, table.codes[rows], table.tones[rows])
            order = np.argsort(keys)
            found[name] = SortedEntries(keys[order], table.owner[rows[order]])
        return found


@dataclass(frozen=True)
class KeptImages:
    """Images that were kept [N]: their entries of a key, and what candidates are verified by.

    Entries have rows of `hashed`; what it calls images, and `signed` knows, are numbers from 0 to N - 1.
    """

    size: int
    entries: Mapping[str, SortedEntries]
    hashed: Hashed
    signed: Signed

    def __len__(self) -> int:
        return self.size


class EarlierFinder(Finder):
    """Finds images of a build that may look like kept ones, or each other, by one key.

    `ask` says which entries of the build ask, `meet` whom, as often as there are kept images.
    """

    def __init__(self, key: Key, threshold: float, images: int, signed: Signed) -> None:
        super().__init__(key, threshold, images, signed)
        self._own = signed

    def ask(self, tables: Sequence[tuple[int, Table]]) -> None:
        """Entries of the build that ask, as in `look`."""
        empty = np.zeros(0, np.uint64)
        self._codes = np.concatenate([empty, *(table.codes for _, table in tables)])
        self._tones = np.concatenate([empty, *(table.tones for _, table in tables)])
        owner = np.concatenate([np.zeros(0, np.uint32), *(table.owner for _, table in tables)])
        first = np.concatenate([np.zeros(0, np.int64), *(np.full(len(table), at) for at, table in tables)])
        self._image = first + (owner >> np.uint32(PARTS_BITS))
        self._place = (owner & np.uint32((1 << PARTS_BITS) - 1)).astype(np.uint8)
        rows, least, most = _asked(self._key, self._codes, self._tones)
        asks = self._place[rows] == self._key.family.parts.index(self._key.family.asks)
        # kept images that ask may look like any part of the build's, and all kept parts like those of it that ask
        self._asked = {WHOLE: (rows, least, most), PARTS: (rows[asks], least[asks], most[asks])}

    def meet(self, kept: KeptImages) -> Ints:
        """Numbers of the kept images that may match one of the build; those of the build are added to `found`."""
        images = len(self.found)
        # kept images get the numbers after those of the build while they are compared
        self.found = np.concatenate([self.found, np.zeros(len(kept), np.bool_)])
        self._signed = _Both(self._own, kept.signed, images)
        for name, (rows, least, most) in self._asked.items():
            entries = kept.entries[name]
            low, high = np.searchsorted(entries.keys, least, "left"), np.searchsorted(entries.keys, most, "right")
            filled = np.flatnonzero(high > low)
            for asking, at in ranged_pairs(rows[filled], low[filled], high[filled]):
                self._compare_kept(kept, name, asking, entries.owner[at], images)
        found: Ints = np.flatnonzero(self.found[images:])
        self.found, self._signed = self.found[:images], self._own
        return found

    def _compare_kept(self, kept: KeptImages, name: str, rows: Ints, owner: Owners, images: int) -> None:
        """Compare entries of the build with those of kept images: by hash, tones and signature."""
        family, hashed = self._key.family, kept.hashed
        at = (owner >> np.uint32(PARTS_BITS)).astype(np.int64)
        place = (owner & np.uint32((1 << PARTS_BITS) - 1)).astype(np.uint8)
        apart = self._codes[rows] ^ hashed.codes[at, family.numbers[place]]
        near = np.flatnonzero(np.bitwise_count(apart) <= family.radius)
        for mask in self._key.before:  # that key finds what agrees in all of its bits
            near = near[apart[near] & np.uint64(mask) != 0]
        rows, at, place = rows[near], at[near], place[near]
        new = ~(self.found[self._image[rows]] & self.found[images + hashed.images[at]])
        rows, at, place = rows[new], at[new], place[new]
        theirs = hashed.tones[at, family.toned(family.numbers[place])]
        tone = of_one_tone(self._tones[rows], theirs, family.blocks)
        rows, other, place = rows[tone], images + hashed.images[at[tone]], place[tone]
        if name == PARTS:
            self._verify(self._image[rows], other, place)
        else:  # a kept image asks, and that of the build may be a part
            self._verify(other, self._image[rows], self._place[rows])


class _Both:
    """Images of the build, by numbers below `images`, and kept ones by the numbers after these.

    Asked about either at a time: each comparison has those of the build on one side and kept ones on the other.
    """

    def __init__(self, own: Signed, kept: Signed, images: int) -> None:
        self._own, self._kept, self._images = own, kept, images

    def grids(self, images: Ints, grids: Ints) -> Bytes:
        """As of `looks.Signed`."""
        if self._are_own(images):
            return self._own.grids(images, grids)
        return self._kept.grids(images - self._images, grids)

    def details(self, images: Ints) -> Details:
        """As of `looks.Signed`."""
        return self._own.details(images) if self._are_own(images) else self._kept.details(images - self._images)

    def _are_own(self, images: Ints) -> bool:
        own = images < self._images
        assert own.all() or not own.any()
        return bool(own.all())


def _keyed(key: Key, codes: Codes, tones: Codes) -> Codes:
    """[N] the pieces of each hash, then the blocks of its tones: some in cells, and one as it is."""
    blocks, keys = _blocks(tones), key.values(codes)
    for block in key.family.blocks[: key.cells]:
        keys = keys << np.uint64(CELL_BITS) | (blocks[:, block] >> (8 - CELL_BITS)).astype(np.uint64)
    keyed: Codes = keys << np.uint64(8) | blocks[:, key.family.blocks[key.cells]].astype(np.uint64)
    return keyed


def _asked(key: Key, codes: Codes, tones: Codes) -> tuple[Ints, Codes, Codes]:
    """(rows, least and largest key) of what entries with these hashes and tones ask for, by ascending key."""
    blocks = _blocks(tones).astype(np.int64)
    least, most = np.maximum(blocks - TONE, 0), np.minimum(blocks + TONE, 255)
    rows, values = np.arange(len(codes)), key.values(codes)
    for block in key.family.blocks[: key.cells]:
        first, last = (of[rows, block] >> (8 - CELL_BITS) for of in (least, most))
        both = np.flatnonzero(last > first)  # TONE is less than half a cell: a range touches two at most
        moved = values << np.uint64(CELL_BITS)
        values = np.concatenate([moved | first.astype(np.uint64), moved[both] | last[both].astype(np.uint64)])
        rows = np.concatenate([rows, rows[both]])
    order = np.argsort(values)  # so that searches go through memory once
    rows, values, last_block = rows[order], values[order] << np.uint64(8), key.family.blocks[key.cells]
    return rows, values | least[rows, last_block].astype(np.uint64), values | most[rows, last_block].astype(np.uint64)


def _blocks(tones: Codes) -> npt.NDArray[np.uint8]:
    """[N, 8] the blocks of tones [N]."""
    return np.ascontiguousarray(tones).view(np.uint8).reshape(-1, 8)


def sorted_words(digests: Digests) -> tuple[Codes, Owners]:
    """(first 64 bits of digests [N, 32], ascending, the number of each one's digest)."""
    words = words_of(digests)
    order = np.argsort(words)
    return words[order], order.astype(np.uint32)


def equal_words(words: Codes, kept: Codes) -> tuple[Ints, Ints]:
    """(which of words [N] are among `kept`, ascending [K], and places in `kept` of those that are among words)."""
    low, high = np.searchsorted(kept, words, "left"), np.searchsorted(kept, words, "right")
    return np.flatnonzero(high > low), np.unique(spread(low, high))


@dataclass(frozen=True)
class KeptTexts:
    """Texts that lead [T]: entries by ascending band key, and what candidates are verified by."""

    keys: Hashes
    owner: Owners
    compared: Compared

    def __len__(self) -> int:
        return len(self.compared.words)


class EarlierTextFinder(TextFinder):
    """Finds texts of a build that may be the same as kept ones, or each other, by a part of the band keys."""

    def meet(self, tables: Sequence[tuple[int, TextTable]], kept: KeptTexts, found: npt.NDArray[np.bool_]) -> Ints:
        """Numbers of the kept texts that may match one of the build; `found` gets those of the build, a flag each.

        tables: as in `look`.
        """
        keys = np.concatenate([np.zeros(0, np.uint32), *(table.keys for _, table in tables)])
        owner = np.concatenate([np.zeros(0, np.int64), *(table.owner.astype(np.int64) + at for at, table in tables)])
        order = np.argsort(keys)  # so that the searches below go through memory once
        keys, owner = keys[order], owner[order]
        low, high = np.searchsorted(kept.keys, keys, "left"), np.searchsorted(kept.keys, keys, "right")
        theirs = np.zeros(len(kept), np.bool_)
        long = np.flatnonzero(high - low > LONG)
        found[owner[long]] = True
        distinct = long[begins(keys[long])]
        for first, last in zip(low[distinct].tolist(), high[distinct].tolist(), strict=True):
            theirs[kept.owner[first:last]] = True
        short = np.flatnonzero((high > low) & (high - low <= LONG))
        for rows, at in ranged_pairs(short, low[short], high[short]):
            # unsigned: a build of 650 million pairs has more than 2^31 texts
            packed = np.unique(owner[rows].astype(np.uint64) << np.uint64(32) | kept.owner[at].astype(np.uint64))
            one, other = (packed >> np.uint64(32)).astype(np.int64), (packed & np.uint64(0xFFFFFFFF)).astype(np.int64)
            new = ~(found[one] & theirs[other])
            one, other = one[new], other[new]
            if not len(one):
                continue
            asked, own_at = np.unique(one, return_inverse=True)
            equal = self._are_same(self._read(asked), own_at, kept.compared, other)
            found[one[equal]] = True
            theirs[other[equal]] = True
        return np.flatnonzero(theirs)


def looked_up(digests: Digests, words: Codes, kept: Digests, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """[N] values of digests [N, 32], 0 for none; `words`, the first 64 bits of `kept` [K, 32], ascend."""
    own = words_of(digests)
    low, high = np.searchsorted(words, own, "left"), np.searchsorted(words, own, "right")
    rows, at = np.repeat(np.arange(len(own)), high - low), spread(low, high)
    equal = (digests[rows] == kept[at]).all(axis=1)
    found = np.zeros(len(own), values.dtype)
    found[rows[equal]] = values[at[equal]]
    return found
