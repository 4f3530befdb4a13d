"""Keys by which images that may look alike are found: exact values, which can be sorted and hash-partitioned.

A hash is cut into pieces, `spare` more than the radius. Two hashes within the radius agree in at least `spare` pieces,
so they share one of the keys that are made of `spare` pieces each, with no neighbours to be asked. More pieces make
longer keys, and more of them: `plan` takes as few as keep a key's images few. A key goes on with the tones of the grid
(`signatures.tones`), which must agree to TONE in every block, of a half in every block of its own: blocks in cells of
32 levels, of which an image asks one or two, and one block as it is, of which it asks a range.

An entry is one hash of one image under a key. Entries are sorted by key; a bucket is a range of them by the highest
bits of the pieces, and a part some buckets of all files, which one task compares. Hashes of every picture are coarse,
those of details (`pictures.details`) fine.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from pipeline.matching.image_comparison import Family, Hashed, families
from pipeline.matching.sketches import ascending
from pipeline.pictures.signatures import TONE

Codes = npt.NDArray[np.uint64]
Ints = npt.NDArray[np.int64]
Owners = npt.NDArray[np.uint32]
Asked = tuple[Ints, Codes, Codes]
"""(rows, least and largest key) of what entries ask for."""

SHARED = 1 << 15
"""Entries that may share the pieces of a key, on average, before there is one piece more."""

EVEN = 0.8
"""Bits that a bit of a hash is worth: those of real pictures are not even."""

MOST_KEYS = 100
"""Keys of one family of hashes at most: at a large radius pieces stay short instead."""

BUCKET_BITS = 10

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
        """Bits of the pieces in an entry's key: what 64 bits have room for beside the tones."""
        return min(sum(bits for _, bits in self.pieces), 64 - CELL_BITS * self.cells - 8)

    @property
    def buckets(self) -> int:
        return 1 << min(BUCKET_BITS, self.bits)

    def values(self, codes: Codes) -> Codes:
        """The lowest `bits` of the pieces of each hash, one after the other."""
        values = np.zeros(len(codes), np.uint64)
        for low, bits in self.pieces:
            values = values << np.uint64(bits % 64) | codes >> np.uint64(low) & np.uint64((1 << bits) - 1)
        lowest: Codes = values & np.uint64((1 << self.bits) - 1)
        return lowest

    def border(self, bucket: int) -> int:
        """The least key of a bucket; that of `buckets` is beyond all."""
        return bucket * (1 << self.bits) // self.buckets << CELL_BITS * self.cells + 8

    def keyed(self, codes: Codes, tones: Codes) -> Codes:
        """[N] keys of entries: the pieces of each hash, then the blocks of its tones."""
        of_blocks, keys = blocks_of(tones), self.values(codes)
        for block in self.family.blocks[: self.cells]:
            keys = keys << np.uint64(CELL_BITS) | (of_blocks[:, block] >> (8 - CELL_BITS)).astype(np.uint64)
        keyed: Codes = keys << np.uint64(8) | of_blocks[:, self.family.blocks[self.cells]].astype(np.uint64)
        return keyed

    def query_ranges(self, codes: Codes, tones: Codes) -> Asked:
        """Keys that entries with these hashes and tones ask for, in ascending order."""
        least, most = least_and_most(blocks_of(tones))
        rows, values = np.arange(len(codes)), self.values(codes)
        for block in self.family.blocks[: self.cells]:
            first, last = (of[rows, block] >> (8 - CELL_BITS) for of in (least, most))
            both = np.flatnonzero(last > first)  # TONE is less than half a cell: a range touches two at most
            moved = values << np.uint64(CELL_BITS)
            values = np.concatenate([moved | first.astype(np.uint64), moved[both] | last[both].astype(np.uint64)])
            rows = np.concatenate([rows, rows[both]])
        values, order = ascending(values)
        rows, values, block = rows[order], values << np.uint64(8), self.family.blocks[self.cells]
        return rows, values | least[rows, block].astype(np.uint64), values | most[rows, block].astype(np.uint64)


@lru_cache(maxsize=64)
def plan(images: int, radius: int, turned: bool = False) -> tuple[Key, ...]:
    """The keys by which so many images are compared, family by family; turned: also as mirrored and turned copies."""
    keys: list[Key] = []
    for family in families(radius, turned):
        entries, spare = max(1, images * len(family.parts)), 1
        while (
            entries > SHARED << int(EVEN * spare * (64 // (family.radius + spare)))
            and spare < 3
            and math.comb(family.radius + spare + 1, spare + 1) <= MOST_KEYS
        ):
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
class Entries:
    """Entries of one key by ascending key: [N] each. `owner` is row << PARTS_BITS | place in parts."""

    keys: Codes
    owner: Owners

    def in_buckets(self, key: Key, first: int, last: int) -> Entries:
        """Returns the entries of buckets first to last - 1."""
        low, high = (
            len(self.keys) if bucket == key.buckets else int(np.searchsorted(self.keys, np.uint64(key.border(bucket))))
            for bucket in (first, last)
        )
        return Entries(self.keys[low:high], self.owner[low:high])


def entries_of(key: Key, images: Hashed) -> tuple[Entries, Entries]:
    """(entries of the hashes that ask, of all others of the family), by rows of `images`.

    Hashes of 0, of parts without structure, are near nothing and left out.
    """
    family, found = key.family, []
    asks = family.parts.index(family.asks)
    for places in (np.array([asks]), np.delete(np.arange(len(family.parts)), asks)):
        parts = family.numbers[places]
        codes, tones = images.codes[:, parts].ravel(), images.tones[:, family.toned(parts)].ravel()
        filled = np.flatnonzero(codes)
        keys = key.keyed(codes[filled], tones[filled])
        keys, order = ascending(keys)
        row, place = np.divmod(filled[order], max(1, len(places)))
        owner = row << PARTS_BITS | (places[place] if len(places) else place)
        found.append(Entries(keys, owner.astype(np.uint32)))
    return found[0], found[1]


def blocks_of(tones: Codes) -> npt.NDArray[np.uint8]:
    """[N, 8] the blocks of tones [N]."""
    return np.ascontiguousarray(tones).view(np.uint8).reshape(-1, 8)


def least_and_most(blocks: npt.NDArray[np.uint8]) -> tuple[Ints, Ints]:
    """The least and the most that agrees with each block of tones."""
    return np.maximum(blocks.astype(np.int64) - TONE, 0), np.minimum(blocks.astype(np.int64) + TONE, 255)
