"""Near texts: which leader is the first that a text is the same as?

What does not count in a text is in `pipeline.texts.folding`, when two are the same in `pipeline.matching.sketches`;
here is the index.

Each leader stands under its band keys, in arrays only. A band's bucket takes `BUCKET` leaders: captions made from a
template share buckets by the ten thousand without being the same, and going through all of them would be quadratic.
Who finds a bucket full is entered in the crowd instead, an index without misses: texts of similarity t share at least
one of their rarest shingles, if enough of those are looked at (prefix filtering, Chaudhuri, Ganti and Kaushik, "A
Primitive Operator for Similarity Joins in Data Cleaning", ICDE 2006), and what a template is made of is not rare.
Who asks at a full bucket asks the crowd too. So nothing is missed but what the bands miss; and that is always missed,
since what the crowd gives must share a band too: the answer depends on the two texts, not on which buckets are full.

An index may hold a shard of the leaders: the smallest answer of all shards is the answer.

Limits: about 500 bytes a leader of 20 characters. A crowd of texts over a handful of characters has no rare shingles:
it costs a comparison of two words with each of its leaders.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.matching.sketches import Flags, Hashes, Ints, Sketches, begins, mixed, places, possible, same, spread

BUCKET = 64
QUERIES = 1_024
"""Texts looked up at once; of a crowd a sixteenth of that."""

NONE = np.iinfo(np.int64).max


class TextIndex:
    """Leaders under their numbers, which are unique; look-ups and additions are of many at once."""

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold
        self._held = _Held()
        self._numbers = _Column(np.int64)
        self._buckets = _Postings()
        self._crowd = _Crowd(threshold)

    def __len__(self) -> int:
        return len(self._numbers.view)

    def add(self, texts: Sketches, numbers: Ints) -> None:
        """Add leaders with their numbers."""
        at = np.arange(len(texts)) + len(self)
        self._held.extend(texts)
        self._numbers.extend(numbers)
        count = texts.keys.shape[1]
        for start in range(0, len(texts), QUERIES):
            keys, ids = texts.keys[start : start + QUERIES].ravel(), np.repeat(at[start : start + QUERIES], count)
            order = np.argsort(keys, kind="stable")
            keys, ids = keys[order], ids[order]
            fits = self._buckets.count(keys) + places(begins(keys)) < BUCKET
            self._buckets.add(keys[fits], ids[fits])
            entered = np.unique(ids[~fits])
            self._crowd.add(entered, self._held.view, texts.keys[entered - at[0]])

    def first(self, texts: Sketches) -> Ints:
        """For each text the smallest number of a leader that it is the same as, -1 if there is none."""
        found = np.full(len(texts), NONE)
        for start in range(0, len(texts), QUERIES):
            some = np.arange(start, min(len(texts), start + QUERIES))
            rows, at = self._buckets.near(texts.keys[some].ravel())
            full = np.flatnonzero(np.bincount(rows, minlength=texts.keys[some].size) >= BUCKET)
            self._settle(texts, start + rows // texts.keys.shape[1], at, found)
            crowded = start + np.unique(full // texts.keys.shape[1])
            for part in range(0, len(crowded), QUERIES // 16):
                asked = crowded[part : part + QUERIES // 16]
                rows, at = self._crowd.near(texts.take(asked), self._held.view)
                self._settle(texts, asked[rows], at, found)
        return np.where(found == NONE, -1, found)

    def _settle(self, texts: Sketches, rows: Ints, at: Ints, found: Ints) -> None:
        """Verify candidate pairs, given in any order and more than once; note the smallest numbers in `found`."""
        pairs = rows << 32 | at
        pairs.sort()
        pairs = pairs[begins(pairs)]
        rows, at = pairs >> 32, pairs & 0xFFFFFFFF
        match = same(texts, rows, self._held.view, at, self._threshold)
        np.minimum.at(found, rows[match], self._numbers.view[at[match]])


class _Crowd:
    """Leaders that found a bucket full, under their rarest shingles.

    Rare is what is rare in the crowd, as counted when it was last sorted: whenever it has doubled. An old count makes
    a look-up slower, never wrong, since both sides go by the same.
    """

    FIRST = 256

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold
        self._members = _Column(np.int64)  # their positions
        self._keys = _Column(np.uint32)  # their band keys, one after the other
        self._postings = _Postings()
        self._counted, self._counts = np.empty(0, np.uint32), np.empty(0, np.int64)
        self._sorted = 0

    def add(self, at: Ints, held: Sketches, keys: Hashes) -> None:
        """Add leaders by their positions in `held`, with their band keys [N, bands]."""
        if not len(at):
            return
        self._members.extend(at)
        self._keys.extend(keys.ravel())
        members = self._members.view
        if len(members) >= 2 * max(self._sorted, self.FIRST):
            low, high = held.starts[members], held.starts[members + 1]
            self._counted, self._counts = np.unique(held.shingles[spread(low, high)], return_counts=True)
            self._sorted, self._postings, at = len(members), _Postings(), members
        for start in range(len(members) - len(at), len(members), QUERIES):
            some = np.arange(start, min(len(members), start + QUERIES))
            rows, rare = self._rarest(held.take(members[some]))
            self._postings.add(rare, some[rows])

    def near(self, texts: Sketches, held: Sketches) -> tuple[Ints, Ints]:
        """Candidates, as (rows of the texts, positions in `held`): all that share a band and may be the same."""
        rows, rare = self._rarest(texts)
        asked, member = self._postings.near(rare)
        rows, at = rows[asked], self._members.view[member]
        likely = possible(texts, rows, held, at, self._threshold)
        rows, at, member = rows[likely], at[likely], member[likely]
        keys = self._keys.view.reshape(-1, texts.keys.shape[1])
        shared = (keys[member] == texts.keys[rows]).any(axis=1)
        return rows[shared], at[shared]

    def _rarest(self, texts: Sketches) -> tuple[Ints, Hashes]:
        """(rows, keys) of the shingles of which two texts that are the same share one."""
        sizes = texts.sizes
        rows = np.repeat(np.arange(len(texts)), sizes)
        known = np.minimum(np.searchsorted(self._counted, texts.shingles), max(0, len(self._counted) - 1))
        counts = np.zeros(len(rows), np.int64)
        if len(self._counted):
            counts = np.where(self._counted[known] == texts.shingles, self._counts[known], 0)
        order = rows << 48 | np.minimum(counts, 0xFFFF) << 32 | texts.shingles
        order.sort()
        needed = sizes - np.ceil(self._threshold * sizes - 1e-9).astype(np.int64) + 1
        kept = places(begins(order >> 32 >> 16)) < needed[rows]
        rows, shingles = rows[kept], (order[kept] & 0xFFFFFFFF).astype(np.uint64)
        return rows, (mixed(shingles ^ texts.numerals[rows]) >> np.uint64(32)).astype(np.uint32)


class _Postings:
    """32-bit keys with ids below 2^32, any number to a key. What is added is merged into ever larger levels."""

    def __init__(self) -> None:
        self._levels: list[_Level] = []

    def add(self, keys: Hashes, ids: Ints) -> None:
        if not len(keys):
            return
        packed = keys.astype(np.uint64) << np.uint64(32) | ids.astype(np.uint64)
        while self._levels and len(self._levels[-1].packed) < 4 * len(packed):
            packed = np.concatenate([self._levels.pop().packed, packed])
        packed.sort()
        self._levels.append(_Level(packed))

    def near(self, keys: Hashes) -> tuple[Ints, Ints]:
        """(positions in keys, ids) of all that stand under the keys."""
        found = [level.near(keys) for level in self._levels]
        empty = np.empty(0, np.int64)
        return np.concatenate([empty, *(p for p, _ in found)]), np.concatenate([empty, *(i for _, i in found)])

    def count(self, keys: Hashes) -> Ints:
        """How many stand under each key."""
        return np.bincount(self.near(keys)[0], minlength=len(keys))


class _Level:
    """Sorted, with a table from a key's first bits to where they start: one or two postings to an entry."""

    def __init__(self, packed: npt.NDArray[np.uint64]) -> None:
        self.packed = packed
        bits = max(1, len(packed).bit_length() - 1)
        self._shift = np.uint32(32 - bits)
        borders = np.arange(1 << bits, dtype=np.uint64) << np.uint64(64 - bits)
        self._starts = np.append(np.searchsorted(packed, borders).astype(np.uint32), np.uint32(len(packed)))

    def near(self, keys: Hashes) -> tuple[Ints, Ints]:
        slots = (keys >> self._shift).astype(np.int64)
        low, high = self._starts[slots].astype(np.int64), self._starts[slots + 1].astype(np.int64)
        at = spread(low, high)
        asked = np.repeat(np.arange(len(keys)), high - low)
        postings = self.packed[at]
        hit: Flags = (postings >> np.uint64(32)).astype(np.uint32) == keys[asked]
        return asked[hit], (postings[hit] & np.uint64(0xFFFFFFFF)).astype(np.int64)


class _Held:
    """Sketches that grow, without their band keys."""

    def __init__(self) -> None:
        self._shingles, self._numerals = _Column(np.uint32), _Column(np.uint64)
        self._parity, self._starts = _Column(np.uint64), _Column(np.int64)
        self._starts.extend(np.zeros(1, np.int64))

    def extend(self, texts: Sketches) -> None:
        self._starts.extend(texts.starts[1:] + self._starts.view[-1])
        self._shingles.extend(texts.shingles)
        self._numerals.extend(texts.numerals)
        self._parity.extend(texts.parity)

    @property
    def view(self) -> Sketches:
        keys = np.empty((len(self._numerals.view), 0), np.uint32)
        return Sketches(self._shingles.view, self._starts.view, self._numerals.view, self._parity.view, keys)


class _Column:
    """An array that grows at its end, by half of itself when it must."""

    def __init__(self, dtype: type[np.generic]) -> None:
        self._values: npt.NDArray[Any] = np.empty(1_024, dtype)
        self._size = 0

    def extend(self, values: npt.NDArray[Any]) -> None:
        size = self._size + len(values)
        if size > len(self._values):
            grown = np.empty(size + size // 2, self._values.dtype)
            grown[: self._size] = self.view
            self._values = grown
        self._values[self._size : size] = values
        self._size = size

    @property
    def view(self) -> npt.NDArray[Any]:
        return self._values[: self._size]
