"""Pairs of images that look alike, found by sorted keys (`image_keys`) in tasks that know nothing of each other.

What shares a key is compared by hash, by tones and by looks (`image_comparison.alike`). Whether two images are
alike depends on those two alone, and not on the keys or the task by which they meet.

Many pictures look less like each other than their hashes and first tones do, drawings on white above all. So where more
than DENSE images answer one, those are parted by the next block of the tones, and so on through all blocks that must
agree. Where all tones agree and there are still so many, they may be a crowd (`crowds`), of copies of a few pictures,
which are compared with a few of them. Dialogs of one program are not: what follows nothing is compared as elsewhere.

Images of earlier builds (`KeptImages`) are looked up in their own sorted entries and never compared with each other, so
that what is read grows with the build and hardly with what was kept. All that share a key are compared.

Limits: a task holds about 60 bytes for each entry of its part of the keys. Numbers of images are below 2^32.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.matching.crowds import FEW, Crowds, represent
from pipeline.matching.image_comparison import (
    VERIFIED,
    CachedSignatures,
    Details,
    Family,
    Hashed,
    Rule,
    SignatureArrays,
    SignatureReader,
    Signed,
    alike,
    coarse_of,
    fine_of,
    pairs_alike,
)
from pipeline.matching.image_keys import (
    CELL_BITS,
    PARTS_BITS,
    Asked,
    Codes,
    Entries,
    Ints,
    Key,
    blocks_of,
    entries_of,
    least_and_most,
    plan,
)
from pipeline.matching.sketches import ascending, distinct, group_starts, spread
from pipeline.pictures.signatures import of_one_tone

Flags = npt.NDArray[np.bool_]
Bytes = npt.NDArray[np.uint8]

DENSE = 256
"""Entries of any one part in a range, that is, images, which are compared at once; of more of them those that agree in
the next block of tones."""

SCANNED = 1 << 18
"""Entries compared in one go: bounds memory at some tens of MB."""

HELD = 1 << 16
"""Images of a crowd whose signatures are held in memory, some 100 MB; those of a larger one are read one by one."""

APART = 1 << 22
"""Pairs of crowds that do not look alike and are remembered, since they meet under several keys."""

WAITING = 1 << 18
"""Candidates that wait to be verified, so that each pair of them is once."""

_NOT_LED = np.iinfo(np.int64).max

_LOW = np.uint64(0xFFFFFFFF)
"""Mask of the second number of a pair, packed in one word; and the bits of the pieces by which entries are grouped."""


@dataclass(frozen=True)
class Loaded:
    """Entries of one key in memory: [N] each."""

    codes: Codes
    tones: Codes
    image: Ints
    place: npt.NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.codes)

    def take(self, which: Ints) -> Loaded:
        return Loaded(self.codes[which], self.tones[which], self.image[which], self.place[which])

    def block(self, block: int) -> npt.NDArray[np.uint8]:
        """[N] a block of the tones."""
        return blocks_of(self.tones)[:, block]

    @staticmethod
    def of(key: Key, entries: Entries, hashed: Hashed, first: int = 0) -> Loaded:
        """Entries with the hashes that they are of; first: the number of the first of the images."""
        row, place = (entries.owner >> np.uint32(PARTS_BITS)).astype(np.int64), _part_of(entries)
        parts = key.family.numbers[place]
        tones = hashed.tones[row, key.family.toned(parts)]
        return Loaded(hashed.codes[row, parts], tones, hashed.images[row] + first, place)

    @staticmethod
    def concat(parts: list[Loaded]) -> Loaded:
        """Concatenates entries."""
        kinds = {"codes": np.uint64, "tones": np.uint64, "image": np.int64, "place": np.uint8}
        columns = (
            np.concatenate([np.zeros(0, kind), *(getattr(part, name) for part in parts)])
            for name, kind in kinds.items()
        )
        return Loaded(*columns)


def _part_of(entries: Entries) -> npt.NDArray[np.uint8]:
    place: npt.NDArray[np.uint8] = (entries.owner & np.uint32((1 << PARTS_BITS) - 1)).astype(np.uint8)
    return place


@dataclass(frozen=True)
class KeptImages:
    """Images that were kept: entries of a key that ask, all others, and what they are compared by."""

    asking: Entries
    others: Entries
    hashed: Hashed
    signed: Signed


@dataclass(frozen=True)
class Asking:
    """Entries of the build under a key, and what they ask for: those of all parts, those of the part that asks."""

    own: Loaded
    all_parts: Asked
    asks: Asked

    @staticmethod
    def of(key: Key, own: Loaded) -> Asking:
        """Computed once for all pieces of earlier builds."""
        rows, least, most = key.query_ranges(own.codes, own.tones)
        asks = own.place[rows] == key.family.parts.index(key.family.asks)
        return Asking(own, (rows, least, most), (rows[asks], least[asks], most[asks]))


Two = Callable[[Ints, Ints], Flags]
"""[N] whether images are known to be two pictures, so that it does not matter whether they look alike."""

Candidates = tuple[Ints, Ints, Ints, Ints]
"""[N] each: one image, its part, another one, its part, whose hashes are near."""


class _PairSet:
    """Pairs of numbers, packed in one word. They lie in sorted arrays, of which each is at least twice the next."""

    def __init__(self) -> None:
        self._parts: list[Codes] = []

    def __len__(self) -> int:
        return sum(map(len, self._parts))

    def has(self, packed: Codes) -> Flags:
        """[N] which pairs are in the set."""
        found = np.zeros(len(packed), np.bool_)
        for part in self._parts:
            found |= is_among(packed, part)
        return found

    def add(self, packed: Codes) -> None:
        """Add pairs, ascending, that are not in the set."""
        while self._parts and len(self._parts[-1]) < 2 * len(packed):
            packed = np.sort(np.concatenate([self._parts.pop(), packed]))
        if len(packed):
            self._parts.append(packed)

    def all(self) -> Codes:
        """All pairs, ascending."""
        return np.sort(np.concatenate([np.zeros(0, np.uint64), *self._parts]))


class _Pairs:
    """Verified pairs of images of `own` and `theirs`, each found once, by whichever of its parts."""

    def __init__(self, threshold: float, own: Signed, theirs: Signed) -> None:
        self._threshold, self._own, self._theirs = threshold, own, theirs
        self.alike = _PairSet()
        """The pairs that look alike: one << 32 | other."""
        self._apart = _PairSet()  # those that were compared by all parts, and do not
        self.compared = 0
        self._waiting: list[tuple[Family, Ints, Ints, Ints, Ints]] = []

    def add(self, family: Family, one: Ints, one_part: Ints, other: Ints, other_part: Ints) -> None:
        """Candidates, to be verified in time: parts of images whose hashes are near."""
        self._waiting.append((family, one, one_part, other, other_part))
        if sum(len(of[1]) for of in self._waiting) >= WAITING:
            self.flush()

    def flush(self) -> None:
        """Verify what waits."""
        waiting, self._waiting = self._waiting, []
        for family, of_family in itertools.groupby(waiting, lambda of: of[0]):
            parts = list(of_family)
            candidates = [np.concatenate(of) for of in zip(*(of[1:] for of in parts), strict=True)]
            self.verify(family, (candidates[0], candidates[1], candidates[2], candidates[3]))

    def judge_pairs(self, one: Ints, other: Ints, judge: Callable[[Ints, Ints], Flags]) -> tuple[Ints, Ints]:
        """(one, other) of those pairs of images that look alike, each once. judge: of pairs, by all of their parts."""
        packed = distinct(one.astype(np.uint64) << np.uint64(32) | other.astype(np.uint64))
        found = self.alike.has(packed)
        new = np.flatnonzero(~found & ~self._apart.has(packed))
        if len(new):
            found[new] = judge((packed[new] >> np.uint64(32)).astype(np.int64), (packed[new] & _LOW).astype(np.int64))
            self.compared += len(new)
            self.alike.add(packed[new[found[new]]])
            if len(self._apart) >= APART:
                self._apart = _PairSet()
            self._apart.add(packed[new[~found[new]]])
        return (packed[found] >> np.uint64(32)).astype(np.int64), (packed[found] & _LOW).astype(np.int64)

    def verify(self, family: Family, candidates: Candidates) -> None:
        """Compare by these parts; one candidate of each pair is tried first, as one is mostly enough."""
        one, one_part, other, other_part = candidates
        packed = one.astype(np.uint64) << np.uint64(32) | other.astype(np.uint64)
        pairs, first, pair = np.unique(packed, return_index=True, return_inverse=True)
        found = self.alike.has(pairs)
        before, apart = found.copy(), self._apart.has(pairs)
        rest = np.ones(len(packed), np.bool_)
        rest[first] = False
        for some in (first, np.flatnonzero(rest)):
            for at in range(0, len(some), VERIFIED):
                here = some[at : at + VERIFIED]
                here = here[~found[pair[here]] & ~apart[pair[here]]]
                if not len(here):
                    continue
                self.compared += len(here)
                some_of = one[here], one_part[here], self._theirs, other[here], other_part[here]
                same = alike(self._own, *some_of, (family, self._threshold))
                found[pair[here[same]]] = True
        self.alike.add(pairs[found & ~before])


def unpacked(packed: Codes) -> Ints:
    """[K, 2] pairs of numbers."""
    return np.stack([(packed >> np.uint64(32)).astype(np.int64), (packed & _LOW).astype(np.int64)], axis=1)


def is_among(values: Codes, kept: Codes) -> Flags:
    """[N] whether each value is among `kept`, ascending."""
    if not len(kept):
        return np.zeros(len(values), np.bool_)
    found: Flags = kept[np.minimum(np.searchsorted(kept, values), len(kept) - 1)] == values
    return found


class ImageJoin:
    """Finds pairs of images that look alike, key by key; images of the build have numbers over all of its files."""

    def __init__(
        self,
        rule: Rule,
        signed: SignatureReader,
        hashed: Callable[[Ints], tuple[Hashed, Hashed]],
        order: npt.NDArray[np.uint32],
        two: Two | None = None,
    ) -> None:
        """hashed: coarse hashes of images, ascending, and fine ones of those with details. order: by image; a crowd is
        compared in about this order, which should be that of ranks. two: those that it holds for are not compared,
        unless they are in a crowd."""
        self._rule, self._signed, self._hashed, self._order = rule, signed, hashed, order
        self._pairs, self._two = _Pairs(rule.threshold, signed, signed), two
        self._crowds: list[tuple[Ints, Flags]] = []
        self._led = np.full(len(order), _NOT_LED)  # by image the first place at which a crowd is led by one like it
        self._open = _PairSet()
        self.scanned = 0
        """Entries gone through: pairs of which hashes were compared."""

    @property
    def compared(self) -> int:
        """Pairs of which signatures were compared."""
        return self._pairs.compared

    def edges(self) -> tuple[Ints, Crowds]:
        """Pairs [K, 2] that look alike, the smaller number first, and what was not compared."""
        self._pairs.flush()
        return unpacked(self._pairs.alike.all()), Crowds.of(self._crowds, unpacked(self._open.all()))

    def join(self, key: Key, entries: Loaded) -> None:
        """Compare entries of the build with each other.

        Each entry of the part that asks is compared with those that share its pieces, and its tones block after block.
        `groups` numbers entries by what they share so far; each of `rows` asks for the group in `asked`. Where the
        range of its tones in that group is dense, what lies in it goes on to the next block. Other ranges are compared
        last, when it is known who follows whom.
        """
        blocks, family, sparse = key.family.blocks, key.family, list[tuple[Loaded, Ints, Ints, Ints]]()
        asking = entries.take(np.flatnonzero(entries.place == family.parts.index(family.asks)))
        groups, asked = (key.values(of.codes) & _LOW for of in (entries, asking))
        asked, rows = ascending(asked)  # so that what follows goes through memory once
        asking, rows = asking.take(rows), np.arange(len(asking))
        for number, block in enumerate(blocks):
            tones, tone = entries.block(block), asking.block(block)[rows]
            if number >= key.cells:
                _, by_tone = ascending(asked << np.uint64(8) | tone.astype(np.uint64))
                rows, asked, tone = rows[by_tone], asked[by_tone], tone[by_tone]
                order, low, high = _ranges(groups, tones, asked, tone)
                entries, groups = entries.take(order), groups[order]
                dense = _dense(entries.place, low, high)
                sparse.append((entries, rows[~dense], low[~dense], high[~dense]))
                if not dense.any():
                    break
                rows, low, high, asked = rows[dense], low[dense], high[dense], asked[dense]
                if number == len(blocks) - 1:
                    sparse += self._compare_crowds(asking, rows, entries, asked, low, high)
                    break
                inside = _inside(low, high, len(entries))
                entries, groups = entries.take(inside), groups[inside]
                new = group_starts(groups)
                asked = np.searchsorted(groups[new], asked).astype(np.uint64)
                groups = (np.cumsum(new) - 1).astype(np.uint64)
                tones, tone = entries.block(block), tone[dense]
            groups = groups << np.uint64(CELL_BITS) | (tones >> (8 - CELL_BITS)).astype(np.uint64)
            first, last = (of >> (8 - CELL_BITS) for of in least_and_most(tone))
            both = np.flatnonzero(last > first)  # TONE is less than half a cell: a range touches two at most
            asked = asked << np.uint64(CELL_BITS)
            asked = np.concatenate([asked | first.astype(np.uint64), asked[both] | last[both].astype(np.uint64)])
            rows = np.concatenate([rows, rows[both]])
        for of in sparse:
            self._compare(key, asking, *of)
        self._pairs.flush()

    def _compare(self, key: Key, asking: Loaded, entries: Loaded, rows: Ints, low: Ints, high: Ints) -> None:
        """Compare each of `rows` of `asking` with the entries of its range."""
        filled = high > low
        for some, at in ranged_pairs(rows[filled], low[filled], high[filled]):
            self.scanned += len(some)
            one, one_part, other, other_part = _candidates(key, asking, some, entries, at)
            if self._two is not None and len(one):
                rest = np.flatnonzero(~self._two(one, other))
                one, one_part, other, other_part = (of[rest] for of in (one, one_part, other, other_part))
            open_ = (self._led[one] < self._rank_in_crowds(other)) | (self._led[other] < self._rank_in_crowds(one))
            packed = distinct(one[open_].astype(np.uint64) << np.uint64(32) | other[open_].astype(np.uint64))
            self._open.add(packed[~self._open.has(packed)])
            self._pairs.add(key.family, one[~open_], one_part[~open_], other[~open_], other_part[~open_])

    def _rank_in_crowds(self, images: Ints) -> Ints:
        """Positions of images in the order in which crowds are compared."""
        return self._order[images].astype(np.int64) << 32 | images

    def _compare_crowds(
        self, asking: Loaded, rows: Ints, entries: Loaded, asked: Codes, low: Ints, high: Ints
    ) -> list[tuple[Loaded, Ints, Ints, Ints]]:
        """The same for ranges in which tones tell nothing more; entries with equal `asked` have their range in one.

        Returns what turns out to be no crowd: entries, and rows with their ranges in them.
        """
        order, left = np.argsort(asked, kind="stable"), list[tuple[Loaded, Ints, Ints, Ints]]()
        borders = np.append(np.flatnonzero(group_starts(asked[order])), len(order))
        for first, last in itertools.pairwise(borders.tolist()):
            some = order[first:last]
            start, images = int(low[some].min()), asking.image[rows[some]]
            inside = entries.image[start : int(high[some].max())]
            rest = self._compare_crowd(distinct(np.concatenate([images, inside])))
            apart, some = np.isin(inside, rest), some[np.isin(images, rest)]
            before = np.concatenate([[0], np.cumsum(apart)])
            own = before[low[some] - start], before[high[some] - start]
            left.append((entries.take(start + np.flatnonzero(apart)), rows[some], *own))
        return left

    def _compare_crowd(self, members: Ints) -> Ints:
        """Compare images, ascending, that may be too many for every two of them, by all of their parts.

        Returns those outside crowds, which were not compared with each other.

        One that follows another image since an earlier crowd, be it of another key, stands behind the place of that
        one, so that it is compared with what comes before it alone.
        """
        place = self._rank_in_crowds(members)
        led = self._led[members]
        known = led < _NOT_LED
        order = np.lexsort((known, np.where(known, led, place)))
        members, place, known, images = members[order], place[order], known[order], members
        item, judge, matched = np.argsort(order), self._judge(members), list[tuple[Ints, Ints]]()

        def alike_pairs(ones: Ints, others: Ints) -> tuple[Ints, Ints]:
            found, step = [np.zeros((2, 0), np.int64)], max(1, SCANNED // max(1, len(others)))
            for at in range(0, len(ones), step):
                one, other = np.repeat(ones[at : at + step], len(others)), np.tile(others, len(ones[at : at + step]))
                if ones is others:
                    one, other = one[one < other], other[one < other]
                self.scanned += len(one)
                two = members[one], members[other]
                pairs = self._pairs.judge_pairs(np.minimum(*two), np.maximum(*two), judge)
                found.append(np.stack([item[np.searchsorted(images, of)] for of in pairs]))
            one, other = np.concatenate(found, axis=1)
            matched.append((np.minimum(one, other), np.maximum(one, other)))
            turned = ~np.isin(one, ones)
            return np.where(turned, other, one), np.where(turned, one, other)

        compared, follows, rest = represent(known, alike_pairs, FEW)
        if follows.any():
            self._crowds.append((members[compared], follows))
        follower = np.zeros(len(members), np.bool_)
        follower[compared] = follows
        for one, other in matched:
            leads = ~follower[one] & follower[other]
            np.minimum.at(self._led, members[other[leads]], place[one[leads]])
        return np.sort(members[rest])

    def _judge(self, images: Ints) -> Callable[[Ints, Ints], Flags]:
        """Returns a judge of pairs of images, by all of their parts, which reads signatures when it needs them."""
        every = list[Callable[[Ints, Ints], Flags]]()

        def judge(ones: Ints, others: Ints) -> Flags:
            if every:
                return every[0](ones, others)
            some = distinct(np.concatenate([ones, others]))
            if 2 * len(some) < len(images):
                return self._judge_of(some)(ones, others)
            every.append(self._judge_of(np.sort(images)))
            return every[0](ones, others)

        return judge

    def _judge_of(self, images: Ints) -> Callable[[Ints, Ints], Flags]:
        """The same of images, ascending, that are all read at once."""
        coarse, fine = self._hashed(images)
        held = CachedSignatures(self._signed, images) if len(images) <= HELD else self._signed

        def judge(ones: Ints, others: Ints) -> Flags:
            rows = np.searchsorted(images, ones), np.searchsorted(images, others)
            return pairs_alike(self._rule, held, coarse, fine, *rows)

        return judge


class KeptJoin:
    """Finds for images of the build those of a piece of earlier builds that they look like."""

    def __init__(self, threshold: float, own: Signed, kept: Signed, two: Two | None = None) -> None:
        """two: images of the build and kept ones that it holds for are not compared."""
        self._pairs, self._two = _Pairs(threshold, own, kept), two

    def look(self, key: Key, asking: Asking, kept: KeptImages) -> None:
        """Compare entries of the build with those of kept images, by one key."""
        family, own = key.family, asking.own
        # kept images that ask may look like any part of the build's, and all kept parts like those of it that ask
        for entries, (rows, least, most) in ((kept.asking, asking.all_parts), (kept.others, asking.asks)):
            filled, low, high = _filled(entries.keys, least, most)
            for some, at in ranged_pairs(rows[filled], low, high):
                found = Loaded.of(key, Entries(entries.keys[at], entries.owner[at]), kept.hashed)
                near = np.flatnonzero(_is_near(key, own.codes[some], found.codes))
                some, found = some[near], found.take(near)
                near = np.flatnonzero(of_one_tone(own.tones[some], found.tones, family.blocks))
                some, found = some[near], found.take(near)
                if self._two is not None and len(some):
                    rest = np.flatnonzero(~self._two(own.image[some], found.image))
                    some, found = some[rest], found.take(rest)
                parts = family.numbers[own.place[some]], family.numbers[found.place]
                self._pairs.add(family, own.image[some], parts[0], found.image, parts[1])

    def matches(self) -> tuple[Ints, Ints]:
        """(image [K], ascending; a kept one that it looks like [K], ascending for each image)."""
        self._pairs.flush()
        one, other = unpacked(self._pairs.alike.all()).T
        return one, other


def first_alike(rule: Rule, asking: tuple[Codes, Bytes, Details], kept: tuple[Codes, Bytes, Details]) -> Ints:
    """[N] the first of some images that each image looks like, -1 for none; all in memory.

    Images are hashes [N, HASHES], signatures [N, ...] and details.
    """
    found = np.full(len(asking[0]), -1, np.int64)
    if not len(found) or not len(kept[0]):
        return found
    join = KeptJoin(rule.threshold, SignatureArrays(*asking[1:]), signed := SignatureArrays(*kept[1:]))
    own, theirs = ({True: fine_of(of[2], rule.turned), False: coarse_of(*of[:2], rule.turned)} for of in (asking, kept))
    for key in plan(len(asking[0]) + len(kept[0]), rule.radius, rule.turned):
        of_own, of_theirs = own[key.family.fine], theirs[key.family.fine]
        loaded = Loaded.concat([Loaded.of(key, entries, of_own) for entries in entries_of(key, of_own)])
        join.look(key, Asking.of(key, loaded), KeptImages(*entries_of(key, of_theirs), of_theirs, signed))
    images, kept_ones = join.matches()
    found[images[::-1]] = kept_ones[::-1]  # the last assignment stays: the first match
    return found


def _filled(keys: Codes, least: Codes, most: Codes) -> tuple[Ints, Ints, Ints]:
    """(numbers [K] of the ranges least[i] to most[i] that hold some of the ascending keys; where these begin and end).

    Searched from the shorter side. Both ends of a range are alike but for their lowest 8 bits (`Key.query_ranges`).
    """
    some = np.arange(len(least))
    if len(keys) < len(least):
        values, asked = keys >> np.uint64(8), least >> np.uint64(8)
        values = values[group_starts(values)]
        some = spread(np.searchsorted(asked, values, "left"), np.searchsorted(asked, values, "right"))
    low = np.searchsorted(keys, least[some], "left")
    filled = np.flatnonzero(keys[np.minimum(low, len(keys) - 1)] <= most[some]) if len(keys) else low[:0]
    filled = filled[low[filled] < len(keys)]
    return some[filled], low[filled], np.searchsorted(keys, most[some[filled]], "right")


def _is_near(key: Key, codes: Codes, others: Codes) -> Flags:
    """Returns whether hashes are near, and no key before this one finds them: that is one whose bits all agree."""
    apart = codes ^ others
    near: Flags = np.bitwise_count(apart) <= key.family.radius
    for mask in key.before:
        near &= apart & np.uint64(mask) != 0
    return near


def _candidates(key: Key, asking: Loaded, rows: Ints, entries: Loaded, at: Ints) -> Candidates:
    """(one, its part, other, its part) of entries rows[i] and at[i] whose hashes and tones are near; one < other."""
    family = key.family
    near = np.flatnonzero(_is_near(key, asking.codes[rows], entries.codes[at]))
    rows, at = rows[near], at[near]
    one, other, place = asking.image[rows], entries.image[at], entries.place[at]
    # two hashes that both ask find each other twice
    new = np.flatnonzero((one != other) & ((one < other) | (place != family.parts.index(family.asks))))
    new = new[of_one_tone(asking.tones[rows[new]], entries.tones[at[new]], family.blocks)]
    one, other, part = one[new], other[new], family.numbers[place[new]]
    own = np.full_like(one, family.asks)
    turned = one > other
    return (
        np.where(turned, other, one),
        np.where(turned, part, own),
        np.where(turned, one, other),
        np.where(turned, own, part),
    )


def ranged_pairs(rows: Ints, low: Ints, high: Ints) -> Iterator[tuple[Ints, Ints]]:
    """Every row with each entry of its range, about SCANNED pairs at a time."""
    ends = np.cumsum(high - low)
    borders = distinct(np.searchsorted(ends, np.arange(SCANNED, ends[-1], SCANNED))) if len(ends) else ends
    for first, last in itertools.pairwise([0, *borders.tolist(), len(ends)]):
        if first < last:
            here = slice(first, last)
            yield np.repeat(rows[here], high[here] - low[here]), spread(low[here], high[here])


def _ranges(
    groups: Codes, tones: npt.NDArray[np.uint8], asked: Codes, tone: npt.NDArray[np.uint8]
) -> tuple[Ints, Ints, Ints]:
    """(order of entries by group and tone, starts and ends of the ranges in it of those that ask).

    Entries have groups and tones [N]; each of `asked` asks for a group's entries with tones near its own.
    """
    keys, order = ascending(groups << np.uint64(8) | tones.astype(np.uint64))
    asked = asked << np.uint64(8)
    least, most = (asked | of.astype(np.uint64) for of in least_and_most(tone))
    return order, np.searchsorted(keys, least, "left"), np.searchsorted(keys, most, "right")


def _dense(place: npt.NDArray[np.uint8], low: Ints, high: Ints) -> Flags:
    """[N] which ranges low[i] to high[i] have more than DENSE entries of one part; place: the parts of all entries."""
    dense = np.zeros(len(low), np.bool_)
    long = np.flatnonzero(high - low > DENSE)
    for part in np.unique(place).tolist() if len(long) else ():
        before = np.concatenate([[0], np.cumsum(place == part)])
        dense[long] |= before[high[long]] - before[low[long]] > DENSE
    return dense


def _inside(low: Ints, high: Ints, size: int) -> Ints:
    """The numbers below `size` that lie in any of the ranges low[i] to high[i]."""
    depth = np.zeros(size + 1, np.int64)  # how many ranges begin less end at each
    np.add.at(depth, low, 1)
    np.add.at(depth, high, -1)
    return np.flatnonzero(np.cumsum(depth)[:-1] > 0)
