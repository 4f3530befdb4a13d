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
from pipeline.matching.meetings import PARTS_BITS, Codes, Finder, Grids, Ints, Key, Owners, Signatures, Table
from pipeline.matching.meetings import ranged_pairs as ranged
from pipeline.matching.near_images import grid_of
from pipeline.matching.sketches import Hashes, Sketches, begins, same, spread
from pipeline.matching.text_meetings import TextFinder, TextTable, words_of
from pipeline.pictures.signatures import of_one_tone

LONG = 1_024
"""Kept texts of a band key that are compared; those of a longer one are all found."""

WHOLE, PARTS = "whole", "parts"
"""Entries of the hashes that ask, and of all others of a family."""

NAMES = ("keys", "owner")


@dataclass(frozen=True)
class SortedEntries:
    """Entries of one key by ascending key: [N] each. `owner` is as in `meetings.Table`."""

    keys: Codes
    owner: Owners

    @staticmethod
    def of(key: Key, phash: Codes, tones: Codes) -> dict[str, SortedEntries]:
        """WHOLE and PARTS of images with phash [N, hashes] and tones [N, GRIDS]."""
        finder = _EarlierKeys(key)
        asks, found = key.family.parts.index(key.family.asks), {}
        table = Table.of(key, phash, tones)[0]
        asking = (table.owner & np.uint32((1 << PARTS_BITS) - 1)) == asks
        for name, rows in ((WHOLE, np.flatnonzero(asking)), (PARTS, np.flatnonzero(~asking))):
            keys, order = finder.sorted(table.codes[rows], table.tones[rows])
            found[name] = SortedEntries(keys, table.owner[rows[order]])
        return found


@dataclass(frozen=True)
class KeptImages:
    """Images that were kept [N]: their entries of a key, and what candidates are verified by."""

    entries: Mapping[str, SortedEntries]
    phash: Codes
    tones: Codes
    grids: Grids
    """By numbers from 0 to N - 1."""

    def __len__(self) -> int:
        return len(self.phash)


class EarlierFinder(Finder):
    """Finds images of a build that may look like kept ones, or each other, by one key."""

    def __init__(self, key: Key, threshold: float, images: int, grids: Grids) -> None:
        super().__init__(key, threshold, images, grids)
        self._own = grids

    def meet(self, tables: Sequence[tuple[int, Table]], kept: KeptImages) -> Ints:
        """Numbers of the kept images that may match one of the build; those of the build are added to `found`.

        tables: as in `look`.
        """
        family, images = self._key.family, len(self.found)
        codes = np.concatenate([np.zeros(0, np.uint64), *(table.codes for _, table in tables)])
        tones = np.concatenate([np.zeros(0, np.uint64), *(table.tones for _, table in tables)])
        owner = np.concatenate([np.zeros(0, np.uint32), *(table.owner for _, table in tables)])
        starts = [np.full(len(table), at, np.int64) for at, table in tables]
        image = np.concatenate([np.zeros(0, np.int64), *starts]) + (owner >> np.uint32(PARTS_BITS))
        place = (owner & np.uint32((1 << PARTS_BITS) - 1)).astype(np.uint8)
        asking = np.flatnonzero(place == family.parts.index(family.asks))
        hash_of, grid_of_place = np.array(family.parts), np.array([grid_of(part) for part in family.parts])
        # kept images get the numbers after those of the build while they are compared
        self.found = np.concatenate([self.found, np.zeros(len(kept), np.bool_)])
        self._grids = self._of_both(kept, images)
        for name, rows in ((WHOLE, np.arange(len(codes))), (PARTS, asking)):
            entries = kept.entries[name]
            asked, low, high = self._ranges(entries.keys, codes[rows], tones[rows])
            asked = rows[asked]
            filled = np.flatnonzero(high > low)
            for rows_here, at in ranged(asked[filled], low[filled], high[filled]):
                theirs = entries.owner[at]
                other = (theirs >> np.uint32(PARTS_BITS)).astype(np.int64)
                their_place = (theirs & np.uint32((1 << PARTS_BITS) - 1)).astype(np.uint8)
                apart = codes[rows_here] ^ kept.phash[other, hash_of[their_place]]
                near = np.flatnonzero(np.bitwise_count(apart) <= family.radius)
                for mask in self._key.before:  # that key finds what agrees in all of its bits
                    near = near[apart[near] & np.uint64(mask) != 0]
                rows_here, other, their_place = rows_here[near], other[near], their_place[near]
                new = ~(self.found[image[rows_here]] & self.found[images + other])
                rows_here, other, their_place = rows_here[new], other[new], their_place[new]
                theirs = kept.tones[other, grid_of_place[their_place]]
                tone = of_one_tone(tones[rows_here], theirs, family.blocks)
                rows_here, other, their_place = rows_here[tone], other[tone], their_place[tone]
                if name == PARTS:
                    self._verify(image[rows_here], images + other, their_place)
                else:  # a kept image asks; that of the build may be a part
                    self._verify(images + other, image[rows_here], place[rows_here])
        found: Ints = np.flatnonzero(self.found[images:])
        self.found, self._grids = self.found[:images], self._own
        return found

    def _of_both(self, kept: KeptImages, images: int) -> Grids:
        def grids(image: Ints, grid: Ints) -> Signatures:
            own, theirs = np.flatnonzero(image < images), np.flatnonzero(image >= images)
            if not len(theirs):
                return self._own(image, grid)
            if not len(own):
                return kept.grids(image - images, grid)
            first, second = self._own(image[own], grid[own]), kept.grids(image[theirs] - images, grid[theirs])
            wanted = np.empty((len(image), first.shape[1]), np.uint8)
            wanted[own], wanted[theirs] = first, second
            return wanted

        return grids


class _EarlierKeys(Finder):
    """The keys of entries, as Finder sorts them."""

    def __init__(self, key: Key) -> None:
        super().__init__(key, 0.0, 0, lambda image, grid: np.zeros((len(image), 0), np.uint8))

    def sorted(self, codes: Codes, tones: Codes) -> tuple[Codes, Ints]:
        return self._sorted(codes, tones)


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
    words: Codes
    sketches: Sketches

    def __len__(self) -> int:
        return len(self.words)


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
        for rows, at in ranged(short, low[short], high[short]):
            pairs = np.unique(owner[rows] << 32 | kept.owner[at].astype(np.int64))
            one, other = pairs >> 32, pairs & 0xFFFFFFFF
            new = ~(found[one] & theirs[other])
            one, other = one[new], other[new]
            if not len(one):
                continue
            asked, own_at = np.unique(one, return_inverse=True)
            own = self._read(asked)
            equal = own.words[own_at] == kept.words[other]  # to the letter: texts without shingles are near nothing
            equal |= same(own.sketches, own_at, kept.sketches, other, self._threshold)
            self.compared += len(one)
            self.apart += int(len(one) - equal.sum())
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
