"""Which images may look like another one: found by sorting, in tasks that know nothing of each other.

Most images look like no other. `Finder` says of a part of all keys which images do, so that the pass that must go in
order (`pipeline.matching.leader_pass`) looks only those up. What it returns may hold an image too many, never one too
few: it decides nothing, and the result of the pass does not depend on it.

Words, here and in the stages `deal` and `meet`: a key is one way to cut hashes, an entry one hash of one image under a
key, with its tones. Entries are dealt into buckets by key, and a part is some buckets of all runs, which one task
compares. An image is found if it may look like another one of the build, met if it was kept by an earlier build and one
of this build may look like it, and alone if no key found it. Hashes of every picture are coarse, those of details fine.

A hash is cut into pieces, `spare` more than the radius. Two hashes within the radius agree in at least `spare` pieces,
so they share one of the keys that are made of `spare` pieces each: exact keys, which can be sorted and dealt out, with
no neighbours to be asked. More pieces make longer keys, and more of them: `plan` takes as few as keep a key's images
few, whatever the size. A key goes on with the tones of the grid (`signatures.tones`), which must agree to TONE in every
block, of a half in every block of its own: blocks in cells of 32 levels, of which an image asks one or two, and one
block as it is, of which it asks a range. What shares a key is compared by hash, by all those tones and by signature, as
in `pipeline.matching.near_images`.

Many pictures look less like each other than their hashes and first tones do, drawings on white above all. So where
more than DENSE entries answer an image, those are parted by the next block of the tones, and so on through all blocks
that must agree: keys are as long as a place needs, whatever the size of the build. Where all tones agree each image is
compared with a few of its range first. In a cluster of copies that finds most of them, and costs a step for each of its
images: whoever has many of these for candidates is taken with them (MANY). Elsewhere what is left unfound is compared,
and only if that is more than LONG, taken as a whole.

Limits: a task holds about 60 bytes for each entry of its part of the keys, and a byte for each image of the build.
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

DENSE = 256
"""Entries of a range that are compared at once; of a longer one those that agree in the next block of tones."""

LOOKS = 16
"""Entries of a dense range that an image is compared with first, to see whether all of it is one cluster."""

MANY, CROWD = 128, 8
"""Of a dense range more than MANY entries whose hash and tones agree with an image's are not compared with it if one in
CROWD of them is found: most are copies of one picture, of which not every two look alike. All are taken."""

LONG = 1 << 14
"""Entries of a range that are compared in the end; a longer one is taken as a whole."""

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

_WORD = (1 << 32) - 1
"""Bits of the pieces by which entries are grouped: at a small radius pieces have 64, and tones need some as well."""


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


@dataclass(frozen=True)
class _Entries:
    """Entries of one key: [N] each; numbers of images are those over all of a build."""

    codes: Codes
    tones: Codes
    image: Ints
    place: npt.NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.codes)

    def take(self, which: Ints) -> _Entries:
        return _Entries(self.codes[which], self.tones[which], self.image[which], self.place[which])

    def block(self, block: int) -> npt.NDArray[np.uint8]:
        """[N] a block of the tones."""
        return self.tones.view(np.uint8).reshape(-1, 8)[:, block]


class Finder:
    """Finds images that may look like others, by one key. Images have numbers over all of a build, from 0."""

    def __init__(self, key: Key, threshold: float, images: int, signed: Signed) -> None:
        self._key, self._threshold, self._signed = key, threshold, signed
        self.found: Flags = np.zeros(images, np.bool_)
        self.scanned = 0
        """Entries gone through: pairs of which hashes were compared."""
        self.near = 0
        """Those of them that are of two images whose hashes are near."""
        self.compared = 0
        """Pairs of near hashes and tones, of which signatures were compared."""
        self.apart = 0
        """Those of them that do not look alike."""
        self.taken = 0
        """Images found because what shares their range was too much to be compared."""

    def look(self, tables: Sequence[tuple[int, Table]]) -> None:
        """Look at the same buckets of all runs: (number of the run's first image, its entries)."""
        size = sum(len(table) for _, table in tables)
        if size < 2:
            return
        codes = np.concatenate([table.codes for _, table in tables])
        tones = np.concatenate([table.tones for _, table in tables])
        image = np.concatenate([(table.owner >> np.uint32(PARTS_BITS)).astype(np.int64) + at for at, table in tables])
        place = np.concatenate([table.owner & np.uint32((1 << PARTS_BITS) - 1) for _, table in tables]).astype(np.uint8)
        entries = _Entries(codes, tones, image, place)
        asking = entries.take(np.flatnonzero(place == self._key.family.parts.index(self._key.family.asks)))
        self._join(entries, asking)

    def _join(self, entries: _Entries, asking: _Entries) -> None:
        """Compare each of `asking` with the entries that share its pieces, and its tones block after block.

        `groups` numbers entries by what they share so far; each of `rows` of `asking` asks for the group in `asked`.
        Where the range of its tones in that group is dense, what lies in it goes on to the next block.
        """
        blocks = self._key.family.blocks
        groups, asked = (self._key.values(of.codes) & np.uint64(_WORD) for of in (entries, asking))
        asked, rows = _sorted(asked)  # so that what follows goes through memory once
        asking, rows = asking.take(rows), np.arange(len(asking))
        for number, block in enumerate(blocks):
            tones, tone = entries.block(block), asking.block(block)[rows]
            if number >= self._key.cells:
                _, by_tone = _sorted(asked << np.uint64(8) | tone.astype(np.uint64))
                rows, asked, tone = rows[by_tone], asked[by_tone], tone[by_tone]
                order, low, high = _ranges(groups, tones, asked, tone)
                entries, groups = entries.take(order), groups[order]
                dense = high - low > DENSE
                self._compare(asking, entries, rows[~dense], low[~dense], high[~dense])
                if not dense.any():
                    return
                rows, low, high, asked = rows[dense], low[dense], high[dense], asked[dense]
                if number == len(blocks) - 1:
                    self._compare_dense(asking, entries, rows, low, high)
                    return
                inside = _inside(low, high, len(entries))
                entries, groups = entries.take(inside), groups[inside]
                new = begins(groups)
                asked = np.searchsorted(groups[new], asked).astype(np.uint64)
                groups = (np.cumsum(new) - 1).astype(np.uint64)
                tones, tone = entries.block(block), tone[dense]
            groups = groups << np.uint64(CELL_BITS) | (tones >> (8 - CELL_BITS)).astype(np.uint64)
            first, last = (of >> (8 - CELL_BITS) for of in _least_and_most(tone))
            both = np.flatnonzero(last > first)  # TONE is less than half a cell: a range touches two at most
            asked = asked << np.uint64(CELL_BITS)
            asked = np.concatenate([asked | first.astype(np.uint64), asked[both] | last[both].astype(np.uint64)])
            rows = np.concatenate([rows, rows[both]])

    def _compare(self, asking: _Entries, entries: _Entries, rows: Ints, low: Ints, high: Ints, many: int = 0) -> None:
        """Compare each of `rows` of `asking` with the entries of its range; many: as for `_compare_pairs`."""
        filled = high > low
        for pairs in ranged_pairs(rows[filled], low[filled], high[filled]):
            self._compare_pairs(asking, entries, *pairs, many)

    def _compare_dense(self, asking: _Entries, entries: _Entries, rows: Ints, low: Ints, high: Ints) -> None:
        """The same for ranges in which tones tell nothing more: a cluster, or many that only share hashes and tones.

        Each image is compared with a few of its range first, by which most of a cluster is found: two that are found
        need not be compared.
        """
        for look in range(LOOKS):
            left = np.flatnonzero(~self.found[asking.image[rows]])
            at = _anywhere(low[left], high[left], rows[left] + (look << 40))
            self._compare_pairs(asking, entries, rows[left], at)
        found = self.found[asking.image[rows]]
        rest = np.flatnonzero(~self.found[entries.image])
        of_rest = entries.take(rest)
        for some, own, first, last in (
            (~found, entries, low, high),
            (found, of_rest, np.searchsorted(rest, low), np.searchsorted(rest, high)),
        ):
            long = some & (last - first > LONG)
            short = some & ~long
            self._compare(asking, own, rows[short], first[short], last[short], MANY)
            self._take(
                np.concatenate([asking.image[rows[long]], own.image[_inside(first[long], last[long], len(own))]])
            )

    def _take(self, images: Ints) -> None:
        """Images are found unseen."""
        self.taken += int(np.count_nonzero(~self.found[np.unique(images)]))
        self.found[images] = True

    def _compare_pairs(self, asking: _Entries, entries: _Entries, rows: Ints, at: Ints, many: int = 0) -> None:
        """Compare rows[i] of `asking` with entry at[i]: by hash, tones and signature.

        many: where a row has more candidates than this, and they are a crowd, it and they are taken; 0: never.
        """
        self.scanned += len(at)
        apart = asking.codes[rows] ^ entries.codes[at]
        near = np.flatnonzero(np.bitwise_count(apart) <= self._key.family.radius)
        for mask in self._key.before:  # that key finds what agrees in all of its bits
            near = near[apart[near] & np.uint64(mask) != 0]
        rows, at = rows[near], at[near]
        one, other = asking.image[rows], entries.image[at]
        others = one != other
        self.near += int(np.count_nonzero(others))
        new = np.flatnonzero(others & ~(self.found[one] & self.found[other]))
        new = new[of_one_tone(asking.tones[rows[new]], entries.tones[at[new]], self._key.family.blocks)]
        one, other, place = one[new], other[new], entries.place[at[new]]
        if many:
            _, which, counts = np.unique(rows[new], return_inverse=True, return_counts=True)
            crowd = np.bincount(which, self.found[other], minlength=len(counts)) * CROWD >= counts
            unseen = ((counts > many) & crowd)[which]
            self._take(np.concatenate([one[unseen], other[unseen]]))
            one, other, place = one[~unseen], other[~unseen], place[~unseen]
        # one comparison of each image first: in a cluster that is all it needs, however large the cluster is
        firsts = np.unique(np.concatenate([_firsts(one), _firsts(other)]))
        for some in (firsts, np.setdiff1d(np.arange(len(one)), firsts, assume_unique=True)):
            self._verify(one[some], other[some], place[some])

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


def _least_and_most(tone: npt.NDArray[np.uint8]) -> tuple[Ints, Ints]:
    """[N] the least and the most that agrees with each tone of a block."""
    return np.maximum(tone.astype(np.int64) - TONE, 0), np.minimum(tone.astype(np.int64) + TONE, 255)


def _ranges(
    groups: Codes, tones: npt.NDArray[np.uint8], asked: Codes, tone: npt.NDArray[np.uint8]
) -> tuple[Ints, Ints, Ints]:
    """(order of entries by group and tone, starts and ends of the ranges in it of those that ask).

    Entries have groups and tones [N]; each of `asked` asks for a group's entries with tones near its own.
    """
    keys, order = _sorted(groups << np.uint64(8) | tones.astype(np.uint64))
    asked = asked << np.uint64(8)
    least, most = (asked | of.astype(np.uint64) for of in _least_and_most(tone))
    return order, np.searchsorted(keys, least, "left"), np.searchsorted(keys, most, "right")


def _sorted(keys: Codes) -> tuple[Codes, Ints]:
    """(keys ascending, their order)."""
    bits = len(keys).bit_length()
    if int(keys.max(initial=0)).bit_length() + bits <= 64:  # a sort of numbers is many times faster than argsort
        packed = keys << np.uint64(bits) | np.arange(len(keys), dtype=np.uint64)
        packed.sort()
        return packed >> np.uint64(bits), (packed & np.uint64((1 << bits) - 1)).astype(np.int64)
    order = np.argsort(keys)
    return keys[order], order


def _anywhere(low: Ints, high: Ints, seed: Ints) -> Ints:
    """A number of each range low[i] to high[i] - 1, by its seed as if by chance."""
    mixed = seed.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)  # Fibonacci hashing: the high bits are mixed well
    found: Ints = low + ((mixed >> np.uint64(32)) * (high - low).astype(np.uint64) >> np.uint64(32)).astype(np.int64)
    return found


def _inside(low: Ints, high: Ints, size: int) -> Ints:
    """The numbers below `size` that lie in any of the ranges low[i] to high[i]."""
    depth = np.zeros(size + 1, np.int64)  # how many ranges begin less end at each
    np.add.at(depth, low, 1)
    np.add.at(depth, high, -1)
    return np.flatnonzero(np.cumsum(depth)[:-1] > 0)
