"""Which images may look like another one: found by sorting, in tasks that know nothing of each other.

Most images look like no other. `Finder` says of a part of all keys which images do, so that the pass that must go in
order (`pipeline.matching.leader_pass`) looks only those up. What it returns may hold an image too many, never one too
few: it decides nothing, and the result of the pass does not depend on it.

A hash is cut into pieces, `spare` more than the radius. Two hashes within the radius agree in at least `spare` pieces,
so they share one of the keys that are made of `spare` pieces each: exact keys, which can be sorted and dealt out, with
no neighbours to be asked. More pieces make longer keys, and more of them: `plan` takes as few as keep a key's images
few, whatever the size. A key goes on with the tones of the grid (`signatures.tones`), which must agree to TONE in every
block, of a half in every block of its own: blocks in cells of 32 levels, of which an image asks one or two, and one
block as it is, of which it asks a range. What shares a key is compared by hash, by all those tones and by signature, as
in `pipeline.matching.near_images`.

A range of more than LONG images is not compared: all that is in it, and who asked, may look alike. So a cluster of any
size costs a step for each of its images.

Limits: a task holds about 60 bytes for each entry of its part of the keys, and a bit for each image of the build.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from pipeline.matching.looks import Family, Hashed, Signed, alike, families
from pipeline.matching.sketches import begins, spread
from pipeline.pictures.signatures import TONE, of_one_tone

Codes = npt.NDArray[np.uint64]
Ints = npt.NDArray[np.int64]
Owners = npt.NDArray[np.uint32]
Flags = npt.NDArray[np.bool_]

LONG = 1_024
"""Entries of a range that are compared; a longer one is taken as a whole."""

WIDEST = 6
"""Largest radius for which keys are made: at a larger one pieces are too short to tell images apart."""

SHARED = 1 << 15
"""Entries that may share the pieces of a key, on average, before there is one piece more."""

EVEN = 0.8
"""Bits that a bit of a hash is worth: those of real pictures are not even."""

BUCKETS = 1 << 10
"""Parts of the keys that a table tells apart, by the highest bits of a key."""

SCANNED = 1 << 18
"""Entries compared in one go: bounds memory at some tens of MB."""

VERIFIED = 1 << 12
"""Pairs verified at once: what they need fits into a processor's cache."""

CELL_BITS = 3

PARTS_BITS = 4
"""Bits of an entry's number that tell the part of the image."""


@dataclass(frozen=True)
class Key:
    """One way to cut a hash of a family: the pieces that it takes, and how many blocks of the tones are in cells."""

    family: Family
    pieces: tuple[tuple[int, int], ...]  # (lowest bit, bits) of each
    cells: int
    before: tuple[int, ...] = ()  # bits of a hash that each key before it takes, of the same family

    @property
    def mask(self) -> int:
        """The bits of a hash that it takes."""
        return sum(((1 << bits) - 1) << low for low, bits in self.pieces)

    @property
    def bits(self) -> int:
        return sum(bits for _, bits in self.pieces)

    def values(self, codes: Codes) -> Codes:
        """The pieces of each hash, one after the other."""
        values = np.zeros(len(codes), np.uint64)
        for low, bits in self.pieces:
            values = values << np.uint64(bits) | codes >> np.uint64(low) & np.uint64((1 << bits) - 1)
        return values

    def buckets(self, codes: Codes) -> npt.NDArray[np.uint16]:
        """The bucket of each hash: the highest bits of its pieces."""
        buckets: npt.NDArray[np.uint16] = (self.values(codes) >> np.uint64(max(0, self.bits - _BUCKET_BITS))).astype(
            np.uint16
        )
        return buckets


_BUCKET_BITS = BUCKETS.bit_length() - 1


@lru_cache(maxsize=64)
def plan(images: int, radius: int, detailed: int = 0) -> tuple[Key, ...]:
    """The keys by which so many images are compared; none for a radius at which that is no use.

    detailed: how many of them have details. Fine keys come last, and only where two images have some.
    """
    if radius > WIDEST:
        return ()
    keys: list[Key] = []
    for family in families(radius):
        if family.fine and detailed < 2:
            continue
        entries = max(1, (detailed if family.fine else images) * len(family.parts))
        spare = 1
        while entries > SHARED << int(EVEN * spare * (64 // (family.radius + spare))) and spare < 3:
            spare += 1
        number = family.radius + spare
        borders = [64 * piece // number for piece in range(number + 1)]
        pieces = [(low, high - low) for low, high in itertools.pairwise(borders)]
        cells = 1 if spare > 2 else 2 if entries < 1 << 20 else 3
        masks: tuple[int, ...] = ()
        for of in itertools.combinations(pieces, spare):
            keys.append(Key(family, of, cells, masks))
            masks += (keys[-1].mask,)
    return tuple(keys)


@dataclass(frozen=True)
class Table:
    """Entries of one key, of some images, by bucket: [N] each. `owner` is image << PARTS_BITS | place in parts."""

    codes: Codes
    tones: Codes
    owner: Owners

    def __len__(self) -> int:
        return len(self.codes)

    @staticmethod
    def of(key: Key, images: Hashed) -> tuple[Table, Ints]:
        """The entries of images, coarse or fine as the key asks, and where each bucket begins, and the end.

        Hashes of 0, of parts without structure, are near nothing and left out.
        """
        family = key.family
        codes = images.codes[:, family.numbers].ravel()
        tones = images.tones[:, family.toned(family.numbers)].ravel()
        filled = np.flatnonzero(codes)
        buckets = key.buckets(codes[filled])
        order = filled[np.argsort(buckets, kind="stable")]  # a radix sort
        image, place = np.divmod(order, len(family.parts))
        starts = np.concatenate([[0], np.cumsum(np.bincount(buckets, minlength=BUCKETS))])
        owner = images.images[image] << PARTS_BITS | place
        return Table(codes[order], tones[order], owner.astype(np.uint32)), starts


class Finder:
    """Finds images that may look like others, by one key. Images have numbers over all of a build, from 0."""

    def __init__(self, key: Key, threshold: float, images: int, signed: Signed) -> None:
        self._key, self._threshold, self._signed = key, threshold, signed
        self.found: Flags = np.zeros(images, np.bool_)
        self.compared = 0
        """Pairs of near hashes and tones, of which signatures were compared."""
        self.apart = 0
        """Those of them that do not look alike."""

    def look(self, tables: Sequence[tuple[int, Table]]) -> None:
        """Look at the same buckets of all runs: (number of the run's first image, its entries)."""
        size = sum(len(table) for _, table in tables)
        if size < 2:
            return
        codes = np.concatenate([table.codes for _, table in tables])
        tones = np.concatenate([table.tones for _, table in tables])
        image = np.concatenate([(table.owner >> np.uint32(PARTS_BITS)).astype(np.int64) + at for at, table in tables])
        place = np.concatenate([table.owner & np.uint32((1 << PARTS_BITS) - 1) for _, table in tables]).astype(np.uint8)
        keys, order = self._sorted(codes, tones)
        codes, tones, image, place = codes[order], tones[order], image[order], place[order]
        asking = np.flatnonzero(place == self._key.family.parts.index(self._key.family.asks))
        rows, low, high = self._ranges(keys, codes[asking], tones[asking])
        rows = asking[rows]
        self._take_long(rows, low, high, image)
        short = np.flatnonzero((high > low) & (high - low <= LONG))
        for pair in ranged_pairs(rows[short], low[short], high[short]):
            rows, at = pair
            apart = codes[rows] ^ codes[at]
            near = np.flatnonzero(np.bitwise_count(apart) <= self._key.family.radius)
            for mask in self._key.before:  # that key finds what agrees in all of its bits
                near = near[apart[near] & np.uint64(mask) != 0]
            rows, at = rows[near], at[near]
            other = image[rows] != image[at]
            rows, at = rows[other], at[other]
            new = ~(self.found[image[rows]] & self.found[image[at]])
            rows, at = rows[new], at[new]
            tone = of_one_tone(tones[rows], tones[at], self._key.family.blocks)
            rows, at = rows[tone], at[tone]
            # one comparison of each image first: in a cluster that is all it needs, however large the cluster is
            firsts = np.unique(np.concatenate([_firsts(image[rows]), _firsts(image[at])]))
            for some in (firsts, np.setdiff1d(np.arange(len(rows)), firsts, assume_unique=True)):
                self._verify(image[rows[some]], image[at[some]], place[at[some]])

    def _sorted(self, codes: Codes, tones: Codes) -> tuple[Codes, Ints]:
        """(keys ascending, the order of the entries by key)."""
        blocks, cells, order_of = _blocks(tones), self._key.cells, self._key.family.blocks
        keys = self._key.values(codes)
        for block in order_of[:cells]:
            keys = keys << np.uint64(CELL_BITS) | (blocks[:, block] >> (8 - CELL_BITS)).astype(np.uint64)
        keys = keys << np.uint64(8) | blocks[:, order_of[cells]].astype(np.uint64)
        bits = len(keys).bit_length()
        if self._key.bits + CELL_BITS * cells + 8 + bits <= 64:  # a sort of numbers is many times faster than argsort
            packed = keys << np.uint64(bits) | np.arange(len(keys), dtype=np.uint64)
            packed.sort()
            return packed >> np.uint64(bits), (packed & np.uint64((1 << bits) - 1)).astype(np.int64)
        order = np.argsort(keys)
        return keys[order], order

    def _ranges(self, keys: Codes, codes: Codes, tones: Codes) -> tuple[Ints, Ints, Ints]:
        """(rows, starts, ends) of the ranges of `keys` that images with these hashes and tones ask for."""
        blocks, cells, order_of = _blocks(tones).astype(np.int64), self._key.cells, self._key.family.blocks
        least, most = np.maximum(blocks - TONE, 0), np.minimum(blocks + TONE, 255)
        rows, values = np.arange(len(codes)), self._key.values(codes)
        for block in order_of[:cells]:
            first, last = (of[rows, block] >> (8 - CELL_BITS) for of in (least, most))
            both = np.flatnonzero(last > first)  # TONE is less than half a cell: a range touches two at most
            moved = values << np.uint64(CELL_BITS)
            values = np.concatenate([moved | first.astype(np.uint64), moved[both] | last[both].astype(np.uint64)])
            rows = np.concatenate([rows, rows[both]])
        values <<= np.uint64(8)
        order = np.argsort(values)  # so that the searches below go through memory once
        rows, values = rows[order], values[order]
        low = np.searchsorted(keys, values | least[rows, order_of[cells]].astype(np.uint64), "left")
        high = np.searchsorted(keys, values | most[rows, order_of[cells]].astype(np.uint64), "right")
        return rows, low, high

    def _take_long(self, rows: Ints, low: Ints, high: Ints, image: Ints) -> None:
        """Find all images of ranges that are too long to be compared."""
        long = np.flatnonzero(high - low > LONG)
        if len(long):
            depth = np.zeros(len(image) + 1, np.int64)  # how many long ranges begin less end at each entry
            np.add.at(depth, low[long], 1)
            np.add.at(depth, high[long], -1)
            self.found[image[np.cumsum(depth)[:-1] > 0]] = True
            self.found[image[rows[long]]] = True

    def _verify(self, one: Ints, other: Ints, place: npt.NDArray[np.uint8]) -> None:
        """Compare images: the part that asks of `one`, with the part that has `place` among the parts of `other`."""
        family, signed = self._key.family, self._signed
        for at in range(0, len(one), VERIFIED):
            a, b, parts = one[at : at + VERIFIED], other[at : at + VERIFIED], place[at : at + VERIFIED]
            new = ~(self.found[a] & self.found[b])
            a, b, asked = a[new], b[new], family.numbers[parts[new]]
            self.compared += len(a)
            same = alike(signed, a, np.full_like(a, family.asks), signed, b, asked, (family, self._threshold))
            self.apart += int(len(same) - same.sum())
            self.found[a[same]] = True
            self.found[b[same]] = True


def by_word(words: Codes) -> tuple[Ints, Ints]:
    """The order of words [N] by bucket, of the words' highest bits, and where each bucket begins, and the end."""
    buckets = (words >> np.uint64(64 - _BUCKET_BITS)).astype(np.uint16)
    starts = np.concatenate([[0], np.cumsum(np.bincount(buckets, minlength=BUCKETS))])
    return np.argsort(buckets, kind="stable"), starts


def equal(words: Codes, image: Ints) -> Ints:
    """The images that share their word with another one, of words [N] of images [N]."""
    order = np.argsort(words)
    new = begins(words[order])
    shared = ~new | ~np.append(new[1:], True)[: len(new)]
    found: Ints = image[order[shared]]
    return found


def ranged_pairs(rows: Ints, low: Ints, high: Ints) -> Iterator[tuple[Ints, Ints]]:
    """Every row with each entry of its range, about SCANNED pairs at a time."""
    ends = np.cumsum(high - low)
    borders = np.unique(np.searchsorted(ends, np.arange(SCANNED, ends[-1], SCANNED))) if len(ends) else ends
    for first, last in itertools.pairwise([0, *borders.tolist(), len(ends)]):
        if first < last:
            here = slice(first, last)
            yield np.repeat(rows[here], high[here] - low[here]), spread(low[here], high[here])


def _firsts(values: Ints) -> Ints:
    """Where each value occurs for the first time."""
    return np.unique(values, return_index=True)[1].astype(np.int64)


def _blocks(tones: Codes) -> npt.NDArray[np.uint8]:
    """[N, 8] the blocks of tones [N]."""
    return np.ascontiguousarray(tones).view(np.uint8).reshape(-1, 8)
