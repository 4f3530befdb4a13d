"""Which texts may be the same as another one of the build: found by sorting, in tasks that know nothing of each other.

As `pipeline.matching.meetings` does it for images: what is returned may hold a text too many, never one too few, and
decides nothing. Two texts are the same only if they share a band key (`pipeline.matching.sketches`), so entries are
dealt out by band key, and what shares one is compared. Texts that are equal to the letter are one text within a run.

A key of more than LONG texts, as captions from one template have it, is not compared: all its texts may be the same as
another one. So a hot key of any size costs a step for each of its texts.

Limits: a task holds about 40 bytes for each entry of its part of the keys, and a batch of sketches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.files.digests import Digests
from pipeline.matching.meetings import BUCKETS, ranged_pairs
from pipeline.matching.sketches import Hashes, Ints, Sketches, Words, begins, same, spread

LONG = 64
"""Texts of a key that are compared; those of a longer one are all found."""

VERIFIED = 1 << 15
"""Pairs verified at once: their sketches take some MB."""

_BUCKET_SHIFT = np.uint32(32 - (BUCKETS.bit_length() - 1))


@dataclass(frozen=True)
class TextTable:
    """Entries of some texts, by bucket: a band key and the number of its text, [N] each."""

    keys: Hashes
    owner: npt.NDArray[np.uint32]

    def __len__(self) -> int:
        return len(self.keys)

    @staticmethod
    def of(keys: Hashes) -> tuple[TextTable, Ints]:
        """The entries of texts with keys [N, bands], numbered from 0, and where each bucket begins, and the end."""
        owner = np.repeat(np.arange(len(keys), dtype=np.uint32), keys.shape[1])
        flat = keys.ravel()
        buckets = (flat >> _BUCKET_SHIFT).astype(np.uint16)
        order = np.argsort(buckets, kind="stable")  # a radix sort
        starts = np.concatenate([[0], np.cumsum(np.bincount(buckets, minlength=BUCKETS))])
        return TextTable(flat[order], owner[order]), starts


@dataclass(frozen=True)
class Compared:
    """What texts [N] are compared by: the first 64 bits of the id, and the sketch, without band keys."""

    words: Words
    sketches: Sketches


def distinct(ids: Digests) -> tuple[Ints, Ints]:
    """Of texts with ids [N, 32]: (where each one is for the first time, ascending; all that occur more than once)."""
    order = np.argsort(words_of(ids), kind="stable")
    rows = ids[order]
    new = np.concatenate([np.ones(min(1, len(ids)), np.bool_), (rows[1:] != rows[:-1]).any(axis=1)])
    single = new & np.append(new[1:], True)[: len(new)]
    return np.sort(order[new]), np.sort(order[~single])


def words_of(ids: Digests) -> Words:
    """[N] the first 64 bits of each id."""
    words: Words = np.ascontiguousarray(ids[:, :8]).view(np.uint64).ravel()
    return words


class TextFinder:
    """Finds texts that may be the same as others, by a part of the band keys.

    read: what texts [N], by their numbers over all of a build, ascending, are compared by.
    """

    def __init__(self, threshold: float, read: Callable[[Ints], Compared]) -> None:
        self._threshold, self._read = threshold, read
        self.compared = 0
        """Pairs of texts that share a key, of which sketches were compared."""
        self.apart = 0
        """Those of them that are not the same."""

    def look(self, tables: Sequence[tuple[int, TextTable]]) -> Ints:
        """Numbers of the texts found in the same buckets of all runs: (number of the run's first text, its entries)."""
        keys = np.concatenate([np.zeros(0, np.uint32), *(table.keys for _, table in tables)])
        owner = np.concatenate([np.zeros(0, np.int64), *(table.owner.astype(np.int64) + at for at, table in tables)])
        packed = keys.astype(np.uint64) << np.uint64(32) | np.arange(len(keys), dtype=np.uint64)
        packed.sort()  # many times faster than argsort
        begin = begins(packed >> np.uint64(32))
        shared = ~(begin & np.append(begin[1:], True)[: len(begin)])  # most keys are of one text
        begin, owner = begin[shared], owner[(packed[shared] & np.uint64(0xFFFFFFFF)).astype(np.int64)]
        numbers, text = np.unique(owner, return_inverse=True)  # from here on texts go by their place in `numbers`
        found = np.zeros(len(numbers), np.bool_)
        borders = np.append(np.flatnonzero(begin), len(begin))
        sizes = np.diff(borders)
        long = np.flatnonzero(sizes > LONG)
        found[text[spread(borders[long], borders[long + 1])]] = True
        entry, group = np.arange(len(text)), np.repeat(np.arange(len(sizes)), sizes)
        # each with its neighbour first: in a cluster that is nearly all it needs
        after = np.flatnonzero(~begin & (sizes[group] <= LONG))
        self._compare(numbers, text[after], text[after - 1], found)
        open_ = entry[~found[text] & (sizes[group] > 2)]
        for rows, at in ranged_pairs(open_, borders[group[open_]], borders[group[open_] + 1]):
            self._compare(numbers, text[rows], text[at], found)
        return numbers[found]

    def _compare(self, numbers: Ints, one: Ints, other: Ints, found: npt.NDArray[np.bool_]) -> None:
        for start in range(0, len(one), VERIFIED):
            a, b = one[start : start + VERIFIED], other[start : start + VERIFIED]
            pairs = np.unique((np.minimum(a, b) << 32 | np.maximum(a, b))[(a != b) & ~(found[a] & found[b])])
            a, b = pairs >> 32, pairs & 0xFFFFFFFF
            asked, at = np.unique(np.concatenate([a, b]), return_inverse=True)
            own, (at_a, at_b) = self._read(numbers[asked]), np.split(at, 2)
            equal = self._are_same(own, at_a, own, at_b)
            found[a[equal]] = True
            found[b[equal]] = True

    def _are_same(self, own: Compared, ones: Ints, theirs: Compared, others: Ints) -> npt.NDArray[np.bool_]:
        """[N] whether texts `ones` of `own` are the same as `others` of `theirs`; counts them."""
        # to the letter: texts without shingles are near nothing
        equal: npt.NDArray[np.bool_] = own.words[ones] == theirs.words[others]
        equal |= same(own.sketches, ones, theirs.sketches, others, self._threshold)
        self.compared += len(ones)
        self.apart += int(len(ones) - equal.sum())
        return equal
