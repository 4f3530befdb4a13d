"""Index of text leaders: the first leader that a text is the same as.

`data_specs.text.folding` says what does not count in a text, `pipeline.matching.sketches` when two texts are the same.

Leaders are entered under their band keys, in arrays only. The bucket of a key takes `BUCKET` leaders: captions made
from a template share buckets by the ten thousand without being the same, and comparing with all of them would be
quadratic. A leader for which a bucket is full goes into the crowd instead, an index without misses: texts of similarity
t share at least one of their rarest shingles, if enough of those are looked at (prefix filtering, Chaudhuri, Ganti and
Kaushik, "A Primitive Operator for Similarity Joins in Data Cleaning", ICDE 2006), and the shingles of a template are
not rare. A query that meets a full bucket goes to the crowd as well.

So the index misses exactly what the bands miss: candidates from the crowd must share a band too, which makes the answer
depend on the two texts alone, and not on which buckets are full.

An index may hold a share of the leaders: the smallest answer over all shares is the answer.

Limits: about 500 bytes per leader of 20 characters. In a crowd of texts over a handful of characters no shingle is
rare: a query then costs a comparison of two words with each leader of the crowd.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.matching.sketches import Flags, Hashes, Ints, Sketches, begins, mixed, places, possible, same, spread

BUCKET = 64
"""Leaders that one band key takes before further ones go into the crowd."""

QUERIES = 1_024
"""Texts looked up at once; in a crowd a sixteenth of that."""

NONE = np.iinfo(np.int64).max


class TextIndex:
    """Text leaders with their numbers, which are unique. Look-ups and additions take many texts at once.

    Inside, a leader is known by its position `at`: the order in which leaders were added, from 0.
    """

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold
        self._sketches = _GrowingSketches()
        self._numbers = _Column(np.int64)
        self._buckets = _Postings()
        self._crowd = _Crowd(threshold)

    def __len__(self) -> int:
        return len(self._numbers.view)

    def add(self, texts: Sketches, numbers: Ints) -> None:
        """Add leaders with their numbers."""
        at = np.arange(len(texts)) + len(self)
        self._sketches.extend(texts)
        self._numbers.extend(numbers)
        count = texts.keys.shape[1]
        for start in range(0, len(texts), QUERIES):
            keys, ids = texts.keys[start : start + QUERIES].ravel(), np.repeat(at[start : start + QUERIES], count)
            order = np.argsort(keys, kind="stable")
            keys, ids = keys[order], ids[order]
            # what a key holds already, and how many of this batch come before under the same key
            fits = self._buckets.count(keys) + places(begins(keys)) < BUCKET
            self._buckets.add(keys[fits], ids[fits])
            crowded = np.unique(ids[~fits])
            self._crowd.add(crowded, self._sketches.view, texts.keys[crowded - at[0]])

    def first(self, texts: Sketches) -> Ints:
        """[N] the smallest number of a leader that each text is the same as, -1 if there is none."""
        numbers = np.full(len(texts), NONE)
        for start in range(0, len(texts), QUERIES):
            some = np.arange(start, min(len(texts), start + QUERIES))
            # keys [texts, bands] in one row: entry i is a key of text i // bands
            rows, at = self._buckets.near(texts.keys[some].ravel())
            full = np.flatnonzero(np.bincount(rows, minlength=texts.keys[some].size) >= BUCKET)
            self._settle(texts, start + rows // texts.keys.shape[1], at, numbers)
            crowded = start + np.unique(full // texts.keys.shape[1])
            for part in range(0, len(crowded), QUERIES // 16):
                asked = crowded[part : part + QUERIES // 16]
                rows, at = self._crowd.near(texts.take(asked), self._sketches.view)
                self._settle(texts, asked[rows], at, numbers)
        return np.where(numbers == NONE, -1, numbers)

    def _settle(self, texts: Sketches, rows: Ints, at: Ints, numbers: Ints) -> None:
        """Verify candidate pairs, in any order and with repetitions; enter the smallest numbers into `numbers`."""
        pairs = rows << 32 | at  # a text and a leader share several bands: each pair is verified once
        pairs.sort()
        pairs = pairs[begins(pairs)]
        rows, at = pairs >> 32, pairs & 0xFFFFFFFF
        match = same(texts, rows, self._sketches.view, at, self._threshold)
        np.minimum.at(numbers, rows[match], self._numbers.view[at[match]])


class _Crowd:
    """Index of the leaders for which a bucket was full, by their rarest shingles.

    Shingles are rare by their counts in the crowd when those were last taken: whenever the crowd has doubled. Old
    counts make a look-up slower, never wrong, since leaders and queries are cut by the same counts.
    """

    FIRST = 256
    """Half of the members at which shingles are counted for the first time."""

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold
        self._members = _Column(np.int64)  # member -> position of the leader
        self._keys = _Column(np.uint32)  # band keys [members, bands], end to end
        self._postings = _Postings()  # hash of a rare shingle and the digits -> members
        self._counted, self._counts = np.empty(0, np.uint32), np.empty(0, np.int64)  # shingles, ascending; their counts
        self._sorted = 0  # members when shingles were last counted

    def add(self, at: Ints, leaders: Sketches, keys: Hashes) -> None:
        """Add leaders by their positions in `leaders`, with their band keys [N, bands]."""
        if not len(at):
            return
        self._members.extend(at)
        self._keys.extend(keys.ravel())
        members = self._members.view
        if len(members) >= 2 * max(self._sorted, self.FIRST):
            low, high = leaders.starts[members], leaders.starts[members + 1]
            self._counted, self._counts = np.unique(leaders.shingles[spread(low, high)], return_counts=True)
            self._sorted, self._postings, at = len(members), _Postings(), members  # all are entered anew
        for start in range(len(members) - len(at), len(members), QUERIES):
            some = np.arange(start, min(len(members), start + QUERIES))
            rows, rare = self._rarest(leaders.take(members[some]))
            self._postings.add(rare, some[rows])

    def near(self, texts: Sketches, leaders: Sketches) -> tuple[Ints, Ints]:
        """Candidates, as (rows of the texts, positions in `leaders`): all that share a band and may be the same."""
        rows, rare = self._rarest(texts)
        asked, member = self._postings.near(rare)
        rows, at = rows[asked], self._members.view[member]
        likely = possible(texts, rows, leaders, at, self._threshold)
        rows, at, member = rows[likely], at[likely], member[likely]
        keys = self._keys.view.reshape(-1, texts.keys.shape[1])
        shared = (keys[member] == texts.keys[rows]).any(axis=1)
        return rows[shared], at[shared]

    def _rarest(self, texts: Sketches) -> tuple[Ints, Hashes]:
        """(rows, keys) of the rarest shingles of each text: two texts that are the same share one of them.

        Texts of n shingles that are the same share at least ceil(t n), so of any n - ceil(t n) + 1 at least one is
        shared; taken in one order for all texts, here by rarity, the first of them that is shared is in both prefixes.
        """
        sizes = texts.sizes
        rows = np.repeat(np.arange(len(texts)), sizes)
        slot = np.minimum(np.searchsorted(self._counted, texts.shingles), max(0, len(self._counted) - 1))
        counts = np.zeros(len(rows), np.int64)
        if len(self._counted):
            counts = np.where(self._counted[slot] == texts.shingles, self._counts[slot], 0)
        # 16 bits of row, 16 of count (capped: the order of equals is by hash), 32 of shingle
        order = rows << 48 | np.minimum(counts, 0xFFFF) << 32 | texts.shingles
        order.sort()
        needed = sizes - np.ceil(self._threshold * sizes - 1e-9).astype(np.int64) + 1
        kept = places(begins(order >> 32 >> 16)) < needed[rows]  # sorting leaves `rows` as it was
        rows, shingles = rows[kept], (order[kept] & 0xFFFFFFFF).astype(np.uint64)
        return rows, (mixed(shingles ^ texts.numerals[rows]) >> np.uint64(32)).astype(np.uint32)


class _Postings:
    """32-bit keys with ids below 2^32, any number of ids per key, as sorted arrays of ever larger size.

    As in a log-structured merge tree: additions are a new level, merged with older ones that are not at least four
    times as large, so that an id is copied a few times and a look-up visits few levels.
    """

    def __init__(self) -> None:
        self._levels: list[_Level] = []

    def add(self, keys: Hashes, ids: Ints) -> None:
        if not len(keys):
            return
        packed = keys.astype(np.uint64) << np.uint64(32) | ids.astype(np.uint64)  # sorts by key, then by id
        while self._levels and len(self._levels[-1].packed) < 4 * len(packed):
            packed = np.concatenate([self._levels.pop().packed, packed])
        packed.sort()
        self._levels.append(_Level(packed))

    def near(self, keys: Hashes) -> tuple[Ints, Ints]:
        """(positions in keys, ids) of all entries under the keys."""
        hits = [level.near(keys) for level in self._levels]
        empty = np.empty(0, np.int64)
        return np.concatenate([empty, *(p for p, _ in hits)]), np.concatenate([empty, *(i for _, i in hits)])

    def count(self, keys: Hashes) -> Ints:
        """How many entries are under each key."""
        return np.bincount(self.near(keys)[0], minlength=len(keys))


class _Level:
    """One sorted array of key << 32 | id, with a table from the first bits of a key to where they start.

    The table has 2^bits entries, the largest such number not above that of the postings: one or two postings per entry.
    """

    def __init__(self, packed: npt.NDArray[np.uint64]) -> None:
        self.packed = packed
        bits = max(1, len(packed).bit_length() - 1)
        self._shift = np.uint32(32 - bits)
        borders = np.arange(1 << bits, dtype=np.uint64) << np.uint64(64 - bits)  # the smallest value of each prefix
        self._starts = np.append(np.searchsorted(packed, borders).astype(np.uint32), np.uint32(len(packed)))

    def near(self, keys: Hashes) -> tuple[Ints, Ints]:
        slots = (keys >> self._shift).astype(np.int64)
        low, high = self._starts[slots].astype(np.int64), self._starts[slots + 1].astype(np.int64)
        at = spread(low, high)  # all entries with a key's prefix; those of other keys are sorted out below
        asked = np.repeat(np.arange(len(keys)), high - low)
        postings = self.packed[at]
        hit: Flags = (postings >> np.uint64(32)).astype(np.uint32) == keys[asked]
        return asked[hit], (postings[hit] & np.uint64(0xFFFFFFFF)).astype(np.int64)


class _GrowingSketches:
    """Sketches of the leaders, which grow in place; without their band keys, which the buckets hold."""

    def __init__(self) -> None:
        self._shingles, self._numerals = _Column(np.uint32), _Column(np.uint64)
        self._parity, self._starts = _Column(np.uint64), _Column(np.int64)
        self._starts.extend(np.zeros(1, np.int64))

    def extend(self, texts: Sketches) -> None:
        self._starts.extend(texts.starts[1:] + self._starts.view[-1])  # counted on from the end of what is there
        self._shingles.extend(texts.shingles)
        self._numerals.extend(texts.numerals)
        self._parity.extend(texts.parity)

    @property
    def view(self) -> Sketches:
        """All leaders as they are now."""
        keys = np.empty((len(self._numerals.view), 0), np.uint32)
        return Sketches(self._shingles.view, self._starts.view, self._numerals.view, self._parity.view, keys)


class _Column:
    """An array that grows at its end: when it is full, to one and a half times what is needed."""

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
