"""Near texts: which earlier text says the same as this one?

The leader of a text is the first earlier *leader* it is the same as: by leaders, not by chains. What "the same" means
is in `pipeline.sketches`, what does not count at all in `pipeline.normal`; candidates come from `pipeline.text_index`.
A text that was met before, to the letter, is known by its id and costs nothing.

Texts are looked up in blocks: against the index of leaders at once, and with each other. So leaders are
found by a few array operations a block, though what leads depends on all that was decided before.

Limits: bands miss at most one in a thousand of the pairs at the threshold, fewer above it; nothing else is missed.
About 1 KB a leader. The index may be another object with `first` and `add`, for example one that asks shards.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from pipeline.normal import folding, normal, normals, numerals, text_id
from pipeline.sketches import (
    SHINGLES,
    Hashes,
    Ints,
    Sketches,
    possible_among,
    same,
    signatures,
    similarity,
    sketch,
    sketch_again,
)
from pipeline.text_index import TextIndex

__all__ = [
    "BLOCK",
    "SHINGLES",
    "Hashes",
    "Index",
    "Sketches",
    "TextIndex",
    "TextLeaders",
    "folding",
    "normal",
    "normals",
    "numerals",
    "signatures",
    "similarity",
    "sketch",
    "sketch_again",
    "text_id",
]

BLOCK = 2_048
"""Most texts looked up at once."""

CALM = 16
"""Where more pairs of a block than this times its texts look the same, a hot cluster begins: the block is cut short, so
that the rest of the cluster meets its leader in the index instead of being compared among itself."""

SHORTEST = 128
"""Texts of a block that is short enough in any case."""


class Index(Protocol):
    """What holds the leaders: `TextIndex`, or what asks several of them and gives the smallest answer."""

    def first(self, texts: Sketches) -> Ints:
        """For each text the smallest number of a leader that it is the same as, -1 if there is none."""

    def add(self, texts: Sketches, numbers: Ints) -> None:
        """Add leaders with their numbers."""


class TextLeaders:
    """The texts kept so far. `place` gives a text its leader, itself if it is the same as none before it."""

    def __init__(self, threshold: float, index: Index | None = None) -> None:
        self._threshold = threshold
        self._index: Index = index or TextIndex(threshold)
        self._ids: list[str] = []  # of leaders, by number
        self._number_of: dict[str, int] = {}  # text id -> its leader's number, for those that have one
        self._row: dict[str, int] = {}  # text id -> row, of those prepared
        self._sketches = sketch([], threshold)
        self._entered: list[int] = []  # rows that lead but are not in the index yet
        self._size = BLOCK  # of the next block at most
        self._open_rows = range(0)  # the block that is open
        self._first: list[int] = []  # of each of them: the leader's number when it was opened
        self._alike: dict[int, list[int]] = {}  # row -> other rows of the block that are the same
        self._leading: dict[int, int] = {}  # rows of the block that lead since -> their numbers

    def prepare(self, normal_texts: Sequence[str]) -> list[str]:
        """Their ids. `leader` and `place` then know these texts, and no others but those that have a leader.

        Ask for them about in this order: a text of an earlier block than the last one asked for is looked up alone.
        """
        self._enter()
        self._close()
        ids = [text_id(text) for text in normal_texts]
        new = {i: text for i, text in zip(ids, normal_texts, strict=True) if i not in self._number_of}
        self._row = {i: row for row, i in enumerate(new)}
        self._sketches = sketch(list(new.values()), self._threshold)
        return ids

    def add_earlier(self, ids: Sequence[str], numerals_of: Sequence[str], signatures_: Sequence[Hashes]) -> None:
        """Leaders of earlier builds, in the order of their ranks; before anything is placed."""
        new = [at for at, i in enumerate(ids) if i not in self._number_of]
        numbers = np.arange(len(new)) + len(self._ids)
        self._number_of.update(zip((ids[at] for at in new), numbers.tolist(), strict=True))
        self._ids += [ids[at] for at in new]
        self._index.add(
            sketch_again([numerals_of[at] for at in new], [signatures_[at] for at in new], self._threshold), numbers
        )

    def leader(self, prepared_id: str) -> str | None:
        """The leader that a text belongs to, None if it would be one itself."""
        number = self._number_of.get(prepared_id)
        if number is None:
            number = self._look_up(self._row[prepared_id])
            if number < 0:
                return None
            self._number_of[prepared_id] = number
        return self._ids[number]

    def place(self, prepared_id: str) -> str:
        """The leader of a text that is kept; the text leads from now on if there is none."""
        found = self.leader(prepared_id)
        if found is None:
            found = prepared_id
            row = self._row[prepared_id]
            self._number_of[prepared_id] = self._leading[row] = len(self._ids)
            self._ids.append(prepared_id)
            self._entered.append(row)
            if row not in self._open_rows:  # the open block has not been compared with it
                self._enter()
                self._close()
        return found

    def _look_up(self, row: int) -> int:
        """The number of a text's leader, -1 if there is none."""
        if row not in self._open_rows:
            self._enter()
            if row < self._open_rows.start:
                return int(self._index.first(self._sketches.take(np.array([row])))[0])
            self._open(row)
        found: int = self._first[row - self._open_rows.start]
        if found >= 0:
            return found
        return min((self._leading[r] for r in self._alike.get(row, ()) if r in self._leading), default=-1)

    def _open(self, start: int) -> None:
        """Look up a block: with the leaders so far, and what has none among themselves."""
        rows = np.arange(start, min(len(self._sketches), start + self._size))
        first = self._index.first(self._sketches.take(rows))
        rest = rows[first < 0]
        one, other = possible_among(self._sketches.take(rest), self._threshold)
        while len(one) > CALM * len(rows) and len(rows) > SHORTEST:
            rows = rows[: max(SHORTEST, len(rows) // 4)]
            within = rest[other] <= rows[-1]
            one, other = one[within], other[within]
        self._size = min(BLOCK, 2 * len(rows))
        one, other = rest[one], rest[other]
        match = same(self._sketches, one, self._sketches, other, self._threshold)
        self._close()
        self._open_rows = range(start, start + len(rows))
        self._first = first[: len(rows)].tolist()
        for a, b in zip(one[match].tolist(), other[match].tolist(), strict=True):
            self._alike.setdefault(a, []).append(b)
            self._alike.setdefault(b, []).append(a)

    def _close(self) -> None:
        self._open_rows, self._first, self._alike, self._leading = range(0), [], {}, {}

    def _enter(self) -> None:
        if self._entered:
            numbers = np.array([self._leading[row] for row in self._entered])
            self._index.add(self._sketches.take(np.array(self._entered)), numbers)
            self._entered = []
