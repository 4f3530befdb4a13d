"""Dedup by leaders: the one pass that decides which pairs are kept.

Pairs come in the order of their ranks, a block at a time. One is dropped if it has the same bytes as a kept image, or
looks like one (the first kept it looks like is its leader), or if its primary text's cluster or its domain has its
fill of kept pairs; else it is kept and leads from then on, and so do those of its texts that are the same as none
before. Nothing dropped ever leads, so there are no chains: with chains, over near-text edges, 35,000 unrelated captions
were seen in one cluster. A text cluster never drops a pair by itself, it only feeds the cap.

The result depends on the ranks alone: not on how the pairs were cut into partitions, on the size of a block or on how
many holders share what is remembered. Increments over earlier builds give what one pass over all would have given, as
long as the ranks put the earlier builds first.

Limits: pairs of a block are compared with each other, so blocks are small; and smaller where copies of one image that
is not held yet come by the hundred.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from data_specs.build import Dedup
from pipeline.files.digests import Digests
from pipeline.matching.holders import NONE, PLACEHOLDER, Holders, ImageRows, Known, Matches
from pipeline.matching.near_images import Codes, ImageLeaders, Ints, Signatures
from pipeline.matching.sketches import possible_among, same
from pipeline.matching.text_rows import TextRows
from pipeline.records import DropReason

BLOCK = 1_024
"""Pairs looked up at once."""

CROWDED, SMALLEST = 16, 64
"""A block in which a pair has more likely copies than CROWDED that nobody holds is cut in halves, down to SMALLEST."""

REASONS = (
    DropReason.PLACEHOLDER,
    DropReason.SAME_IMAGE,
    DropReason.NEAR_IMAGE,
    DropReason.CAP_PER_TEXT,
    DropReason.CAP_PER_DOMAIN,
)
"""Bit i of `Verdicts.reasons` stands for the i-th; the first that is set is the one a pair is counted under."""

_BIT = {reason: 1 << i for i, reason in enumerate(REASONS)}


@dataclass(frozen=True)
class Block:
    """Pairs by rank [N]. `texts` are distinct; `own` holds for each pair which of them are its, primary first."""

    candidate_id: Digests
    place: Ints  # run << 32 | position
    images: ImageRows
    domain: Sequence[int]
    texts: TextRows
    own: Sequence[Sequence[int]]

    def __len__(self) -> int:
        return len(self.place)

    def part(self, start: int, end: int) -> Block:
        """Rows [start, end); texts keep their positions."""
        cut = slice(start, end)
        images = self.images.take(cut)
        return Block(self.candidate_id[cut], self.place[cut], images, self.domain[cut], self.texts, self.own[cut])


@dataclass
class Verdicts:
    """What became of a block [N]. Of a duplicate `leader` and `place` are its leader's, place -1 in an earlier build.

    `new_texts` are those that lead from now on, as positions in the block's texts.
    """

    reasons: list[int]
    leader: Digests
    place: Ints
    text_leaders: dict[int, list[bytes]] = field(default_factory=dict)  # of kept rows, one for each own text
    new_texts: list[int] = field(default_factory=list)

    @property
    def kept(self) -> list[int]:
        return list(self.text_leaders)

    def then(self, other: Verdicts) -> Verdicts:
        """Both, of two parts of a block."""
        moved = {row + len(self.reasons): leaders for row, leaders in other.text_leaders.items()}
        return Verdicts(
            self.reasons + other.reasons,
            np.concatenate([self.leader, other.leader]),
            np.concatenate([self.place, other.place]),
            {**self.text_leaders, **moved},
            self.new_texts + other.new_texts,
        )


class LeaderPass:
    """Decides block after block."""

    def __init__(self, rules: Dedup, holders: Holders) -> None:
        self._rules, self._holders = rules, holders
        self._among = ImageLeaders(rules.image_distance, rules.image_signature).among

    def decide(self, block: Block) -> Verdicts:
        """Judge a block, and remember what it kept."""
        images = _ImagesOfBlock(block, self._holders)
        if len(block) > SMALLEST and images.crowded():
            half = len(block) // 2
            return self.decide(block.part(0, half)).then(self.decide(block.part(half, len(block))))
        images.compare(self._among)
        asked = sorted({text for row, own in enumerate(block.own) for text in (own[:1] if row in images.done else own)})
        texts = _TextsOfBlock(block.texts, asked, self._holders, self._rules.text_similarity)
        domains = _Domains(block.domain, self._holders, self._rules.max_pairs_per_domain)
        size = len(block)
        verdicts = Verdicts([0] * size, np.zeros((size, 32), np.uint8), np.full(size, -1, np.int64))
        for row in range(size):
            reasons = images.judge(row, verdicts)
            if texts.pairs(block.own[row][0]) >= self._rules.max_pairs_per_text:
                reasons |= _BIT[DropReason.CAP_PER_TEXT]
            if domains.full(row):
                reasons |= _BIT[DropReason.CAP_PER_DOMAIN]
            verdicts.reasons[row] = reasons
            if not reasons:
                images.keep(row)
                domains.keep(row)
                verdicts.text_leaders[row] = texts.keep(block.own[row])
        verdicts.new_texts = texts.new
        self._remember(block, verdicts, texts, domains)
        return verdicts

    def place(self, texts: TextRows) -> list[bytes]:
        """The leaders of distinct texts, in order; those without one lead from now on. Feeds no cap."""
        found = _TextsOfBlock(texts, range(len(texts)), self._holders, self._rules.text_similarity)
        leaders = [found.place(text) for text in range(len(texts))]
        self._holders.learn_texts(texts.take(found.new))
        return leaders

    def _remember(self, block: Block, verdicts: Verdicts, texts: _TextsOfBlock, domains: _Domains) -> None:
        rows = np.array(verdicts.kept, np.int64)
        if not len(rows):
            return
        known = Known(block.candidate_id[rows], block.place[rows], np.zeros(len(rows), np.uint8))
        images = block.images.take(rows)
        self._holders.learn_images(images.sha256, known, (images.phash, [images.signature]))
        self._holders.learn_texts(block.texts.take(texts.new))
        self._holders.count(texts.counted, domains.counted)


class _ImagesOfBlock:
    """Which earlier leader, or which kept pair of the same block, each pair is a copy of."""

    def __init__(self, block: Block, holders: Holders) -> None:
        self._block = block
        sha256 = block.images.sha256
        first: dict[bytes, int] = {}
        self._first = [first.setdefault(digest, row) for row, digest in enumerate(sha256)]
        distinct = np.array(list(first.values()), np.int64)
        same = holders.same([sha256[row] for row in distinct])
        rest = distinct[same.number == NONE]
        alike = holders.alike(block.images.take(rest))
        self._held: dict[int, tuple[DropReason, Matches, int]] = {}
        for reason, rows, found in ((DropReason.SAME_IMAGE, distinct, same), (DropReason.NEAR_IMAGE, rest, alike)):
            for at in np.flatnonzero(found.number != NONE).tolist():
                self._held[int(rows[at])] = (reason, found, at)
        self.done = {row for row, at in enumerate(self._first) if at in self._held}
        """Rows that are copies of what was kept before the block."""
        self._free = rest[alike.number == NONE]
        self._near: dict[int, list[int]] = {int(row): [] for row in self._free}  # both ways, by first rows
        self._kept: dict[int, int] = {}  # first row with the same bytes -> row that was kept

    def crowded(self) -> bool:
        """Whether many of the block's images that nobody holds are likely to be copies of one another."""
        whole = self._block.images.phash[self._free, 0]
        counts = [np.unique(whole >> np.uint64(s) & np.uint64(0xFFFF), return_counts=True)[1] for s in (0, 16, 32, 48)]
        return max(int((c * (c - 1)).sum()) for c in counts) > CROWDED * len(whole)

    def compare(self, among: Callable[[Codes, Signatures], list[list[int]]]) -> None:
        """Compare the images that nobody holds with each other."""
        rows = self._free.tolist()
        for row, before in zip(rows, among(*self._block.images.take(self._free).looks), strict=True):
            for at in before:
                self._near[row].append(rows[at])
                self._near[rows[at]].append(row)

    def judge(self, row: int, verdicts: Verdicts) -> int:
        """Reasons against a row for its image; notes its leader."""
        first = self._first[row]
        if first in self._held:
            reason, found, at = self._held[first]
            verdicts.leader[row], verdicts.place[row] = found.candidate_id[at], found.place[at]
            placeholder = _BIT[DropReason.PLACEHOLDER] if found.flags[at] & PLACEHOLDER else 0
            return _BIT[reason] | placeholder
        reason, leader = DropReason.SAME_IMAGE, self._kept.get(first)
        if leader is None:
            reason = DropReason.NEAR_IMAGE
            leader = min((self._kept[near] for near in self._near[first] if near in self._kept), default=None)
        if leader is None:
            return 0
        verdicts.leader[row], verdicts.place[row] = self._block.candidate_id[leader], self._block.place[leader]
        return _BIT[reason]

    def keep(self, row: int) -> None:
        self._kept[self._first[row]] = row


class _TextsOfBlock:
    """Leaders of a block's texts, and how many kept pairs their clusters have."""

    def __init__(self, texts: TextRows, asked: Sequence[int], holders: Holders, threshold: float) -> None:
        self._texts = texts
        self._leader: dict[int, bytes] = {}
        self._pairs: Counter[bytes] = Counter()
        self.new: list[int] = []
        """Texts that lead from now on, in order."""
        self.counted: Counter[bytes] = Counter()
        """Pairs kept in this block, by leader of their primary text."""
        number, ids, pairs = holders.texts(texts.take(asked))
        for at in np.flatnonzero(number != NONE).tolist():
            self._leader[asked[at]] = leader = ids[at].tobytes()
            self._pairs[leader] = int(pairs[at])
        free = [text for text in asked if text not in self._leader]
        self._near: dict[int, list[int]] = {text: [] for text in free}
        for one, other in _same(texts.take(free), threshold) if free else ():
            self._near[free[one]].append(free[other])
        self._leads: dict[int, int] = {}  # text -> its place among the new ones

    def leader(self, text: int) -> bytes | None:
        """The leader a text belongs to by now, None if it would be one itself."""
        known = self._leader.get(text)
        if known is None:
            near = [(self._leads[other], other) for other in self._near[text] if other in self._leads]
            if near:
                known = self._leader[text] = self._texts.ids[min(near)[1]].tobytes()
        return known

    def pairs(self, text: int) -> int:
        """How many pairs are kept whose primary texts are of the same cluster."""
        leader = self.leader(text)
        return 0 if leader is None else self._pairs[leader] + self.counted[leader]

    def place(self, text: int) -> bytes:
        """The leader of a text that is kept; the text leads from now on if there is none."""
        leader = self.leader(text)
        if leader is None:
            leader = self._leader[text] = self._texts.ids[text].tobytes()
            self._leads[text] = len(self.new)
            self.new.append(text)
        return leader

    def keep(self, own: Sequence[int]) -> list[bytes]:
        """Leaders of the texts of a kept pair, primary first."""
        leaders = [self.place(text) for text in own]
        self.counted[leaders[0]] += 1
        return leaders


def _same(texts: TextRows, threshold: float) -> Iterator[tuple[int, int]]:
    """Every two texts that an index would find the same, both ways round: in a block no other rule may hold."""
    own = texts.sketches
    one, other = possible_among(own, threshold)
    found = same(own, one, own, other, threshold)
    for a, b in zip(one[found].tolist(), other[found].tolist(), strict=True):
        yield a, b
        yield b, a


class _Domains:
    """How many kept pairs each domain has; does nothing where the spec has no cap."""

    def __init__(self, domains: Sequence[int], holders: Holders, cap: int) -> None:
        self._domains, self._cap = domains, cap
        self.counted: Counter[int] = Counter()
        distinct = sorted(set(domains)) if cap else []
        self._pairs = dict(zip(distinct, holders.domains(distinct).tolist(), strict=True)) if distinct else {}

    def full(self, row: int) -> bool:
        domain = self._domains[row]
        return bool(self._cap and domain) and self._pairs[domain] + self.counted[domain] >= self._cap

    def keep(self, row: int) -> None:
        if self._cap:
            self.counted[self._domains[row]] += 1
