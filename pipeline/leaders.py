"""Dedup by leaders: the one pass that decides which pairs are kept.

Pairs come in the order of their ranks. One is dropped if it has the same bytes as a kept image, or looks like one (the
first kept it looks like is its leader), or if its primary text's cluster has its fill of kept pairs; else it is kept
and leads from then on. Nothing dropped ever leads, so there are no chains: with chains, over near-text edges, 35,000
unrelated captions were seen in one cluster. A text cluster never drops a pair by itself, it only feeds the cap.

The result depends on the ranks alone, not on how the pairs were cut into partitions; increments over earlier builds
give what one build over all would have given, as long as the ranks put the earlier builds first.

Limits: one machine and one thread; what is kept must fit into memory (about 2 KB a pair).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from data_specs.build import Dedup
from pipeline.near_images import Codes, ImageLeaders
from pipeline.near_texts import Hashes, TextLeaders
from pipeline.records import DropReason

BLOCK = 512
"""Pairs looked up at once: they are compared with each other by brute force, at a fixed cost a pair."""

MAX_TEXTS = 32
"""Most texts of a sample: a placeholder that 100,000 pages show would else gather all their captions."""


@dataclass(frozen=True)
class Images:
    """Images by rank: sha256, perceptual hashes [N, views], signatures [N, views, 192]."""

    sha256: Sequence[str]
    phash: Codes
    signature: npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Items:
    """Pairs by rank. `texts` holds each pair's texts, normalised, primary first."""

    candidate_id: Sequence[str]
    images: Images
    texts: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Earlier:
    """What earlier builds kept, by rank. `near` images may be matched by looks, `sha256` of all by bytes."""

    candidate_of: dict[str, str]  # sha256 -> candidate_id
    near: Images
    text_leaders: Sequence[str]  # ids
    numerals: Sequence[str]
    text_signatures: Sequence[Hashes]
    primary: Counter[str]  # text leader -> pairs kept with a primary text of its cluster


@dataclass(frozen=True, slots=True)
class Dropped:
    """Why a pair was dropped. `leader` is the row of the kept pair; -1 if an earlier build holds it, or for the cap."""

    reason: DropReason
    leader: int
    duplicate_of: str  # candidate_id, "" for the cap


@dataclass
class Outcome:
    """`kept` rows by rank; `dropped` by row; for each kept row its texts as (row, position) and their leaders."""

    kept: list[int] = field(default_factory=list)
    dropped: dict[int, Dropped] = field(default_factory=dict)
    texts: dict[int, list[tuple[int, int]]] = field(default_factory=dict)
    text_leaders: dict[int, list[str]] = field(default_factory=dict)


def choose(items: Items, rules: Dedup, earlier: Earlier | None = None) -> Outcome:
    """Which pairs are kept."""
    return _Pass(items, rules, earlier).run()


class _Pass:
    def __init__(self, items: Items, rules: Dedup, earlier: Earlier | None) -> None:
        self._items, self._rules, self._outcome = items, rules, Outcome()
        self._looks = ImageLeaders(rules.image_distance, rules.image_signature)
        self._texts = TextLeaders(rules.text_similarity)
        self._holder: dict[str, tuple[int, str]] = {}  # sha256 of a kept image -> (row or -1, candidate_id)
        self._leading: list[tuple[int, str]] = []  # the same by number in self._looks
        self._primary: Counter[str] = Counter()
        self._text_ids_of: dict[int, set[str]] = {}  # of each kept row: for merging
        if earlier is not None:
            self._holder = {sha256: (-1, name) for sha256, name in earlier.candidate_of.items()}
            self._looks.add(earlier.near.phash, earlier.near.signature)
            self._leading = [(-1, earlier.candidate_of[sha256]) for sha256 in earlier.near.sha256]
            self._texts.add_earlier(earlier.text_leaders, earlier.numerals, earlier.text_signatures)
            self._primary.update(earlier.primary)
        self._ids = self._prepared()

    def _prepared(self) -> list[list[str]]:
        """Text ids of each item."""
        flat = self._texts.prepare([text for texts in self._items.texts for text in texts])
        ids, at = [], 0
        for texts in self._items.texts:
            ids.append(flat[at : at + len(texts)])
            at += len(texts)
        return ids

    def run(self) -> Outcome:
        size = len(self._items.candidate_id)
        for start in range(0, size, BLOCK):
            self._block(range(start, min(size, start + BLOCK)))
        return self._outcome

    def _block(self, rows: range) -> None:
        images = self._items.images
        asked = [row for row in rows if images.sha256[row] not in self._holder]
        first = self._looks.first(images.phash[asked], images.signature[asked]).tolist()
        alike = {row: self._leading[number] for row, number in zip(asked, first, strict=True) if number >= 0}
        rest = [row for row in asked if row not in alike]
        among = self._looks.among(images.phash[rest], images.signature[rest])
        before = {row: [rest[at] for at in earlier] for row, earlier in zip(rest, among, strict=True)}
        new: list[int] = []
        for row in rows:
            if self._decide(row, alike, before):
                new.append(row)
        self._looks.add(images.phash[new], images.signature[new])
        self._leading += [(row, self._items.candidate_id[row]) for row in new]

    def _decide(self, row: int, alike: dict[int, tuple[int, str]], before: dict[int, list[int]]) -> bool:
        """Keep or drop one pair; whether it is kept."""
        sha256 = self._items.images.sha256[row]
        if sha256 in self._holder:
            self._duplicate(row, DropReason.SAME_IMAGE, *self._holder[sha256])
            return False
        leader = alike.get(row) or next(
            ((b, self._items.candidate_id[b]) for b in before.get(row, ()) if b in self._outcome.texts), None
        )
        if leader:
            self._duplicate(row, DropReason.NEAR_IMAGE, *leader)
            return False
        cluster = self._texts.leader(self._ids[row][0])
        if cluster is not None and self._primary[cluster] >= self._rules.max_pairs_per_text:
            self._outcome.dropped[row] = Dropped(DropReason.CAP_PER_TEXT, -1, "")
            return False
        self._keep(row, sha256)
        return True

    def _keep(self, row: int, sha256: str) -> None:
        leaders = [self._texts.place(text) for text in self._ids[row]]
        self._holder[sha256] = (row, self._items.candidate_id[row])
        self._primary[leaders[0]] += 1
        self._outcome.kept.append(row)
        self._outcome.texts[row] = [(row, at) for at in range(len(leaders))]
        self._outcome.text_leaders[row] = leaders
        self._text_ids_of[row] = set(self._ids[row])

    def _duplicate(self, row: int, reason: DropReason, leader: int, name: str) -> None:
        self._outcome.dropped[row] = Dropped(reason, leader, name)
        if leader < 0 or not self._rules.merge_texts:
            return  # what an earlier build has published stays as it is
        known, texts = self._text_ids_of[leader], self._outcome.texts[leader]
        for at, text in enumerate(self._ids[row]):
            if text not in known and len(texts) < MAX_TEXTS:
                known.add(text)
                texts.append((row, at))
                self._outcome.text_leaders[leader].append(self._texts.place(text))
