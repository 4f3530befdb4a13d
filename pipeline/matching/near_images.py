"""Index of image leaders: the first leader that an image looks like.

Two images look alike if and only if, for one of `COMBINATIONS` of their parts, the hashes of both parts are at most
`radius` bits apart and the grids of their signatures at most `threshold`. A part of one image is compared with the
whole of the other (crops, borders); what lies between the margins of an image is such a part, and is compared with the
same of the other as well. A half is compared with the same half, which a text stamped elsewhere leaves as it was, so
that half the radius is enough; halves are verified by the grids of the whole, and by the tones of their own blocks.
Images without texture are compared by their details, too (`pipeline.matching.looks`). What frames an image is no part
of it (`pipeline.pictures.frames`).

Candidates come from an index of hashes that misses nothing within the radius (`pipeline.matching.hash_index`). It holds
leaders only: a thousand copies of one image cost a thousand look-ups of one entry.

Limits: in memory, about 2 KB per leader, 3 KB more of one with details; a leader that matches by several of its hashes
is compared as often. A part without structure (hash 0) is never near another.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.matching.hash_index import HashIndex, distinct, near_among
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
from pipeline.pictures.signatures import GRIDS, of_one_tone, tones

Codes = npt.NDArray[np.uint64]
Ints = npt.NDArray[np.int64]
Signatures = npt.NDArray[np.uint8]

COMBINATIONS = tuple(
    pair
    for family in families(0)
    if not family.fine
    for part in family.parts
    for pair in dict.fromkeys(((family.asks, part), (part, family.asks)))
)
"""(number of a hash of one image, number of a hash of the other): the pairs that are compared of any two images."""

VERIFIED = 1 << 12
"""Candidates compared at once: what they need fits into a processor's cache."""


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

    Hashes are [N, HASHES]; signatures may have any shape of GRIDS * SIZE bytes per image.
    """

    def __init__(self, radius: int, threshold: float) -> None:
        self._threshold, self._families = threshold, [_FamilyIndex(family) for family in families(radius)]
        self._signatures = LeaderSignatures()
        self._tones = np.zeros((1024, GRIDS), np.uint64)  # rows beyond `count` are unused
        self._toned = np.zeros(1024, np.bool_)  # of which leaders they are known
        # of each entry with details its leader and its tones, likewise
        self._fine, self._fine_tones = np.zeros(1024, np.int64), np.zeros((1024, len(PARTS)), np.uint64)
        self._fine_count = self.count = 0

    def add(self, phash: Codes, *signature: Signatures, details: Sequence[Details] = ()) -> None:
        """Add leaders. Signatures may come in several pieces, each with its details; memory maps stay on disk, and
        are read where they are compared."""
        first, mapped = self.count, all(isinstance(piece, np.memmap) for piece in signature)
        coarse = coarse_of(phash) if mapped else coarse_of(phash, *signature)
        self.count += len(phash)
        self._tones, self._toned = (_grown(of, self.count) for of in (self._tones, self._toned))
        self._tones[first : self.count], self._toned[first : self.count] = coarse.tones, not mapped
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
                theirs = (self._fine_tones if family.fine else self._tones_of(entries))[
                    entries, family.toned(their_parts)
                ]
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

    def _tones_of(self, leaders: Ints) -> Codes:
        """Tones [count, GRIDS] of leaders, of these ones at least: signatures on disk are read when first asked for."""
        unknown = np.unique(leaders[~self._toned[leaders]])
        for start in range(0, len(unknown), TONES_AT_ONCE):
            some = unknown[start : start + TONES_AT_ONCE]
            grids = self._signatures.grids(np.repeat(some, GRIDS), np.tile(np.arange(GRIDS), len(some)))
            self._tones[some] = tones(grids).reshape(-1, GRIDS)
        self._toned[unknown] = True
        return self._tones

    def candidates(self, phash: Codes) -> int:
        """How many pairs of one of these images and a leader have near hashes, so that signatures must be compared."""
        codes = coarse_of(phash).codes
        near = [one for index in self._families if not index.family.fine for one in index.near(codes)]
        rows, leaders = (np.concatenate([one[at] for one in near]) for at in (0, 2))
        return len(distinct(rows, leaders)[0])

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
            asked, at = near_among(asking.codes[:, family.asks], asking.codes[:, family.numbers], family.radius)
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
