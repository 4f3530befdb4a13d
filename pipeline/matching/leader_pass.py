"""Dedup by leaders: the one pass that decides which pairs are kept.

Pairs come in the order of their ranks, a block at a time. A pair is dropped if its image has the same bytes as a kept
one, or looks like one (the first kept image that it looks like is its leader), or if enough pairs of its primary text's
cluster or of its domain are kept already. Else it is kept and leads from then on, and so does each of its texts that is
the same as no earlier one. Dropped pairs never lead, so there are no chains: with chains, over near-text edges, 35,000
unrelated captions were seen in one cluster. A text cluster never drops a pair by itself, it only feeds the cap.

The result depends on the ranks alone: not on how the pairs were divided into partitions, on the size of a block or on
how many holders share the memory. Increments over earlier builds have the result of one pass over everything, as long
as the ranks put the earlier builds first.

Where it is known that an image or a text matches no other one of the build (`pipeline.matching.meetings`,
`text_meetings`), that changes what is looked up, and no decision.

Limits: pairs of a block are compared with each other, so blocks are small, and smaller if hundreds of copies of one new
image follow each other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from data_specs.build import Dedup
from pipeline.files.digests import Digests
from pipeline.matching.holders import ELSEWHERE, NONE, PLACEHOLDER, Holders, ImageRows, Known, Matches
from pipeline.matching.looks import Details
from pipeline.matching.near_images import Codes, ImageLeaders, Ints, Signatures
from pipeline.matching.sketches import possible_among, same
from pipeline.matching.text_rows import TextRows
from pipeline.records import DropReason

BLOCK = 1_024
"""Pairs looked up at once."""

CROWDED, SMALLEST = 16, 64
"""A block is halved, down to SMALLEST pairs, while its new images have more than CROWDED likely copies each in it."""

REASONS = (
    DropReason.PLACEHOLDER,
    DropReason.SAME_IMAGE,
    DropReason.NEAR_IMAGE,
    DropReason.CAP_PER_TEXT,
    DropReason.CAP_PER_DOMAIN,
    DropReason.OTHER_SPLIT,  # not the pass's own: stage `lead` says so of pairs that it keeps
)
"""Bit i of `Verdicts.reasons` stands for the i-th reason; a pair counts under the first reason whose bit is set."""

_BIT = {reason: 1 << i for i, reason in enumerate(REASONS)}


@dataclass(frozen=True)
class Block:
    """Pairs by rank [N]. `texts` [T] are distinct; `own` lists the numbers of each pair's texts, primary first."""

    candidate_id: Digests
    place: Ints  # run << 32 | position
    images: ImageRows
    domain: Sequence[int]
    texts: TextRows
    own: Sequence[Sequence[int]]
    alone: npt.NDArray[np.bool_] | None = None
    """[N] pairs whose image matches no other image that the pass is given; None where nobody has looked."""
    alone_texts: npt.NDArray[np.bool_] | None = None
    """[T] texts that match no other text that the pass is given; None where nobody has looked."""

    def __len__(self) -> int:
        return len(self.place)

    def part(self, start: int, end: int) -> Block:
        """Rows start to end - 1 as a block; texts keep their numbers."""
        rows = slice(start, end)
        images = self.images.take(rows)
        alone = None if self.alone is None else self.alone[rows]
        own, texts = self.own[rows], self.alone_texts
        return Block(
            self.candidate_id[rows], self.place[rows], images, self.domain[rows], self.texts, own, alone, texts
        )


@dataclass
class Verdicts:
    """Decisions about the pairs of a block [N]."""

    reasons: list[int]
    """[N] bits of REASONS; 0 for a kept pair."""
    leader: Digests
    """[N, 32] candidate_id of a duplicate's leader; zeros without one."""
    place: Ints
    """[N] run << 32 | position of that leader; ELSEWHERE or HELD for one of an earlier build, ELSEWHERE without one."""
    text_leaders: dict[int, list[bytes]] = field(default_factory=dict)
    """Kept row -> the leaders of its own texts, in their order."""
    new_texts: list[int] = field(default_factory=list)
    """Numbers of the block's texts that lead from now on."""
    new_rows: list[int] = field(default_factory=list)
    """The row with which each of them began to, ascending."""

    @property
    def kept(self) -> list[int]:
        """Rows that are kept, ascending."""
        return list(self.text_leaders)

    def then(self, other: Verdicts) -> Verdicts:
        """The verdicts of a block whose first part has these, and whose second part has those of `other`."""
        moved = {row + len(self.reasons): leaders for row, leaders in other.text_leaders.items()}
        return Verdicts(
            self.reasons + other.reasons,
            np.concatenate([self.leader, other.leader]),
            np.concatenate([self.place, other.place]),
            {**self.text_leaders, **moved},
            self.new_texts + other.new_texts,
            self.new_rows + [row + len(self.reasons) for row in other.new_rows],
        )


class LeaderPass:
    """Decides which pairs are kept, block after block; the holders are its memory."""

    def __init__(self, rules: Dedup, holders: Holders, earlier: bool = True) -> None:
        """earlier: whether the holders may know what is not given to the pass, but was kept by earlier builds."""
        self._rules, self._holders, self._earlier = rules, holders, earlier
        self._among = ImageLeaders(rules.image_distance, rules.image_signature).among

    def decide(self, block: Block) -> Verdicts:
        """Decide about the pairs of a block, and enter those that are kept into the holders."""
        images = _ImagesOfBlock(block, self._holders, self._earlier)
        if len(block) > SMALLEST and images.crowded():
            half = len(block) // 2
            return self.decide(block.part(0, half)).then(self.decide(block.part(half, len(block))))
        images.compare(self._among)
        # Of a pair that is dropped for sure only the primary text matters, for the reason of the cap.
        asked = sorted({text for row, own in enumerate(block.own) for text in (own[:1] if row in images.done else own)})
        texts = _TextsOfBlock(
            block.texts, asked, self._holders, self._rules.text_similarity, block.alone_texts, self._earlier
        )
        domains = _Domains(block.domain, self._holders, self._rules.max_pairs_per_domain)
        size = len(block)
        verdicts = Verdicts([0] * size, np.zeros((size, 32), np.uint8), np.full(size, ELSEWHERE, np.int64))
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
                verdicts.new_rows += [row] * (len(texts.new) - len(verdicts.new_rows))
        verdicts.new_texts = texts.new
        self._remember(block, verdicts, texts, domains)
        return verdicts

    def place(self, texts: TextRows) -> list[bytes]:
        """The leaders of distinct texts, in order; texts without one lead from now on. Feeds no cap."""
        placed = _TextsOfBlock(texts, range(len(texts)), self._holders, self._rules.text_similarity)
        leaders = [placed.place(text) for text in range(len(texts))]
        self._holders.learn_texts(texts.take(placed.new))
        return leaders

    def _remember(self, block: Block, verdicts: Verdicts, texts: _TextsOfBlock, domains: _Domains) -> None:
        """Enter the kept pairs of a block, and its new texts, into the holders."""
        if not verdicts.kept:
            return
        rows = np.array(verdicts.kept, np.int64)
        if block.alone is not None:
            rows = rows[~block.alone[rows]]
        if len(rows):
            known = Known(block.candidate_id[rows], block.place[rows], np.zeros(len(rows), np.uint8))
            images = block.images.take(rows)
            self._holders.learn_images(images.sha256, known, (images.phash, [images.signature], [images.details]))
        new = [text for text in texts.new if not texts.alone[text]]
        self._holders.learn_texts(block.texts.take(new))
        self._holders.count(texts.counted, domains.counted)


class _ImagesOfBlock:
    """The leader of each image of a block: an image kept before the block, or one kept within it.

    Rows with the same bytes are one image, named by the first of these rows. An image is known if it matches one that
    was kept before the block, and new otherwise; only new images are compared with each other. One that is alone is new
    and compared with nothing, but for what earlier builds kept.
    """

    def __init__(self, block: Block, holders: Holders, earlier: bool) -> None:
        self._block = block
        sha256 = block.images.sha256
        first: dict[bytes, int] = {}
        self._first = [first.setdefault(digest, row) for row, digest in enumerate(sha256)]  # [N] row -> its image
        distinct = np.array(list(first.values()), np.int64)
        if block.alone is not None and not earlier:
            distinct = distinct[~block.alone[distinct]]
        same = holders.same([sha256[row] for row in distinct])
        rest = distinct[same.number == NONE]
        alike = holders.alike(block.images.take(rest))
        self._known: dict[
            int, tuple[DropReason, Matches, int]
        ] = {}  # image -> (why, matches, which of them is its own)
        for reason, rows, matches in ((DropReason.SAME_IMAGE, distinct, same), (DropReason.NEAR_IMAGE, rest, alike)):
            for at in np.flatnonzero(matches.number != NONE).tolist():
                self._known[int(rows[at])] = (reason, matches, at)
        self.done = {row for row, image in enumerate(self._first) if image in self._known}
        """Rows that are copies of images kept before the block."""
        self._new = rest[alike.number == NONE]
        if block.alone is not None:
            self._new = self._new[~block.alone[self._new]]
        self._near: dict[int, list[int]] = {
            int(row): [] for row in self._new
        }  # new image -> new ones like it, both ways
        self._kept: dict[int, int] = {}  # new image -> the row of it that was kept

    def crowded(self) -> bool:
        """Whether many of the new images are likely to be copies of one another.

        Estimated by quarters of the hash of the whole picture: c images with the same 16 bits are c * (c - 1) pairs.
        """
        whole = self._block.images.phash[self._new, 0]
        counts = [np.unique(whole >> np.uint64(s) & np.uint64(0xFFFF), return_counts=True)[1] for s in (0, 16, 32, 48)]
        return max(int((c * (c - 1)).sum()) for c in counts) > CROWDED * len(whole)

    def compare(self, among: Callable[[Codes, Signatures, Details], list[list[int]]]) -> None:
        """Compare the new images with each other."""
        rows = self._new.tolist()
        for row, before in zip(rows, among(*self._block.images.take(self._new).looks), strict=True):
            for at in before:
                self._near[row].append(rows[at])
                self._near[rows[at]].append(row)

    def judge(self, row: int, verdicts: Verdicts) -> int:
        """Bits of the reasons to drop a row for its image; enters its leader into the verdicts."""
        image = self._first[row]
        if image in self._known:
            reason, matches, at = self._known[image]
            verdicts.leader[row], verdicts.place[row] = matches.candidate_id[at], matches.place[at]
            placeholder = _BIT[DropReason.PLACEHOLDER] if matches.flags[at] & PLACEHOLDER else 0
            return _BIT[reason] | placeholder
        reason, leader = DropReason.SAME_IMAGE, self._kept.get(image)
        if leader is None:
            reason = DropReason.NEAR_IMAGE
            leader = min((self._kept[near] for near in self._near.get(image, ()) if near in self._kept), default=None)
        if leader is None:
            return 0
        verdicts.leader[row], verdicts.place[row] = self._block.candidate_id[leader], self._block.place[leader]
        return _BIT[reason]

    def keep(self, row: int) -> None:
        """The row is kept: its image leads from now on."""
        self._kept[self._first[row]] = row


class _TextsOfBlock:
    """The leaders of a block's texts, and how many kept pairs their clusters have.

    asked: numbers of the texts that can matter; the others are not looked up. alone: those of all texts that match no
    other one of the build; they are looked up for `earlier` builds alone, and compared with nothing else.
    """

    def __init__(
        self,
        texts: TextRows,
        asked: Sequence[int],
        holders: Holders,
        threshold: float,
        alone: npt.NDArray[np.bool_] | None = None,
        earlier: bool = True,
    ) -> None:
        self._texts = texts
        self.alone = np.zeros(len(texts), np.bool_) if alone is None else alone
        self._leader: dict[int, bytes] = {}
        self._pairs: Counter[bytes] = Counter()
        self.new: list[int] = []
        """Texts that lead from now on, in the order in which they began to."""
        self.counted: Counter[bytes] = Counter()
        """Pairs kept in this block, by the leader of their primary text."""
        sought = asked if earlier else [text for text in asked if not self.alone[text]]
        number, ids, pairs = holders.texts(texts.take(sought))
        for at in np.flatnonzero(number != NONE).tolist():
            self._leader[sought[at]] = leader = ids[at].tobytes()
            self._pairs[leader] = int(pairs[at])
        self._near: dict[int, list[int]] = {text: [] for text in asked if text not in self._leader}
        unled = [text for text in self._near if not self.alone[text]]
        for one, other in _same(texts.take(unled), threshold) if unled else ():
            self._near[unled[one]].append(unled[other])
        self._leads: dict[int, int] = {}  # text -> its place in `new`

    def leader(self, text: int) -> bytes | None:
        """The leader of a text as of now; None if the text would lead itself."""
        leader = self._leader.get(text)
        if leader is None:
            near = [(self._leads[other], other) for other in self._near[text] if other in self._leads]
            if near:  # the one that began to lead first
                leader = self._leader[text] = self._texts.ids[min(near)[1]].tobytes()
        return leader

    def pairs(self, text: int) -> int:
        """How many pairs with a primary text of the same cluster are kept."""
        leader = self.leader(text)
        return 0 if leader is None else self._pairs[leader] + self.counted[leader]

    def place(self, text: int) -> bytes:
        """The leader of a text that is kept; if it has none, it leads itself from now on."""
        leader = self.leader(text)
        if leader is None:
            leader = self._leader[text] = self._texts.ids[text].tobytes()
            self._leads[text] = len(self.new)
            self.new.append(text)
        return leader

    def keep(self, own: Sequence[int]) -> list[bytes]:
        """A pair is kept: returns the leaders of its texts, primary first, and counts it for the cap."""
        leaders = [self.place(text) for text in own]
        self.counted[leaders[0]] += 1
        return leaders


def _same(texts: TextRows, threshold: float) -> Iterator[tuple[int, int]]:
    """Every two texts that are the same, in both orders, by the index's own rule: blocks must not change the result."""
    own = texts.sketches
    one, other = possible_among(own, threshold)
    equal = same(own, one, own, other, threshold)
    for a, b in zip(one[equal].tolist(), other[equal].tolist(), strict=True):
        yield a, b
        yield b, a


class _Domains:
    """How many kept pairs each domain of a block has; does nothing if the spec has no cap."""

    def __init__(self, domains: Sequence[int], holders: Holders, cap: int) -> None:
        self._domains, self._cap = domains, cap
        self.counted: Counter[int] = Counter()
        distinct = sorted(set(domains)) if cap else []
        self._pairs = dict(zip(distinct, holders.domains(distinct).tolist(), strict=True)) if distinct else {}

    def full(self, row: int) -> bool:
        """Whether the domain of a row has as many kept pairs as the cap allows. Rows without a domain (0) never do."""
        domain = self._domains[row]
        return bool(self._cap and domain) and self._pairs[domain] + self.counted[domain] >= self._cap

    def keep(self, row: int) -> None:
        """A row is kept: count it for its domain."""
        if self._cap:
            self.counted[self._domains[row]] += 1
