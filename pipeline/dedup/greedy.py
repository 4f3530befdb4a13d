"""The sequential pass of dedup: decides which pairs are kept, from edges alone.

Pairs come in the order of their ranks. A pair is dropped if its image has the same bytes as a kept one, or is a near
copy of one (it looks like it, their contexts allow it, `pipeline.matching.contexts`; the first of those with the
strongest bond is its leader), or if enough pairs of its primary text's cluster are kept already. Else it is kept and
leads from then on, and so does each of its texts that is the same as no earlier one. Dropped pairs never lead, so
chains do not occur: with chains, over near-text edges, 35,000 unrelated captions were seen in one cluster. A text
cluster never drops a pair by itself, it only feeds the cap.

What earlier builds kept comes before all. Increments over earlier builds have the result of one pass over everything,
as long as the ranks put the earlier builds first.

Images and texts that match nothing else are not nodes (`Nodes`), and pairs of nothing else are not given to the pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from data_specs.build import Dedup
from pipeline.matching.contexts import ALT, CAPTION, LOOKS_BOND, Context, bonds
from pipeline.matching.crowds import Crowds, Partners
from pipeline.matching.sketches import distinct, group_starts, spread
from pipeline.rows.decisions import DropReason

Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

REASONS = (
    DropReason.PLACEHOLDER,
    DropReason.SAME_IMAGE,
    DropReason.NEAR_IMAGE,
    DropReason.CAP_PER_TEXT,
    DropReason.OTHER_SPLIT,  # not the pass's own: `splits` says so of pairs that it keeps
)
"""Bit i of the reasons of a pair stands for the i-th; a pair counts under the first reason whose bit is set."""

BIT = {reason: 1 << i for i, reason in enumerate(REASONS)}

NONE = -1
"""Stands for no node, no pair, no earlier one."""

AT_ONCE = 1 << 16
"""Pairs whose numbers are Python objects at the same time."""

Alike = Callable[[int, Ints], Flags]
"""Returns which items, by numbers, are alike, or the same as, the item with a number."""


class Nodes:
    """Images, or texts, of a build that match another one: nodes 0 to N - 1, in the order of their numbers."""

    def __init__(self, copies: Ints, edges: Ints, crowds: Crowds, more: Ints, alike: Alike) -> None:
        """copies [K, 2]: copy and first of its kind, which is compared for it. edges [K, 2]. more: further numbers."""
        by_copy = np.argsort(copies[:, 0])
        self._copies, self._first = copies[by_copy, 0], copies[by_copy, 1]
        matching = self._first, edges.ravel(), crowds.numbers(), self.first_of(more)
        flags = np.zeros(max(int(of.max(initial=NONE)) for of in matching) + 1, np.bool_)
        for of in matching:
            flags[of] = True
        self.numbers: Ints = np.flatnonzero(flags)
        self._node: Ints = np.where(flags, np.cumsum(flags) - 1, NONE)
        one, other = (self._node[edges[:, at]] for at in (0, 1))
        ends = distinct(np.concatenate([one << 32 | other, other << 32 | one]))
        self._starts: Ints = np.searchsorted(ends, np.arange(len(self.numbers) + 1) << 32)
        self._others: Ints = ends & 0xFFFFFFFF
        self._partners, self._members = Partners(crowds), self._node[crowds.members]
        flags[:] = False
        flags[crowds.numbers()] = True
        self._crowded = flags[self.numbers]
        self._alike = alike

    def __len__(self) -> int:
        return len(self.numbers)

    def first_of(self, numbers: Ints) -> Ints:
        """[N] the number of the first of each one's kind."""
        found: Ints = numbers.copy()
        if len(self._copies):
            at = np.minimum(np.searchsorted(self._copies, numbers), len(self._copies) - 1)
            copies = self._copies[at] == numbers
            found[copies] = self._first[at[copies]]
        return found

    def of(self, numbers: Ints) -> Ints:
        """[N] the node of each, NONE for one that matches nothing."""
        firsts = self.first_of(numbers)
        inside = firsts < len(self._node)
        nodes = np.full(len(numbers), NONE)
        nodes[inside] = self._node[firsts[inside]]
        return nodes

    def crowds_of(self, node: int) -> Ints:
        """Numbers of the crowds that a node is in."""
        return self._partners.crowds_of(int(self.numbers[node])) if self._crowded[node] else self.numbers[:0]

    def in_crowds(self, some: Flags) -> Ints:
        """[C] how many of some nodes [N] are in each crowd."""
        crowd = self._partners.crowd
        return np.bincount(crowd[some[self._members]], minlength=int(crowd.max(initial=NONE)) + 1)

    def matching(self, node: int, needed: Callable[[Ints], Flags], crowded: bool = True) -> Ints:
        """The nodes that a node matches. needed: which of some nodes are asked for; no other is compared. crowded:
        whether those in its crowds are asked for.
        """
        found = self._others[self._starts[node] : self._starts[node + 1]]
        found = found[needed(found)] if len(found) else found
        if self._crowded[node]:
            number = int(self.numbers[node])
            partners = self._node[self._partners.of(number, crowded)]
            partners = distinct(partners[needed(partners)])
            if len(partners):
                found = np.concatenate([found, partners[self._alike(number, self.numbers[partners])]])
        return found


@dataclass(frozen=True)
class Pairs:
    """Pairs in the order of their ranks [M], of which each may match something."""

    image: Ints
    """[M] the node of the image, NONE for one that matches nothing."""
    starts: Ints
    """[M + 1] where the texts of each pair begin, primary first, and the end."""
    texts: Ints
    """The node of each text, NONE likewise."""
    contexts: Context
    """Contexts of the images [M, ...]."""

    def __len__(self) -> int:
        return len(self.image)


@dataclass(frozen=True)
class EarlierResults:
    """Results of earlier builds: first leaders, and counts.

    same [image nodes], near [M]: the first image with the same bytes, and the one that a pair's is a near copy of, with
    its bond [M]; NONE for none. placeholders: numbers of images that are one. text_leaders [text nodes]: a node from
    the number of nodes on. pairs [earlier text leaders]: how many pairs each has.
    """

    same: Ints
    near: Ints
    bond: npt.NDArray[np.int8]
    placeholders: frozenset[int]
    text_leaders: Ints
    pairs: Ints


@dataclass(frozen=True)
class Verdicts:
    """Decisions about pairs [M]."""

    reasons: npt.NDArray[np.uint8]
    """[M] bits of REASONS; 0 for a kept pair."""
    leader: Ints
    """[M] the pair that a duplicate is one of, by its place among the pairs; NONE for none."""
    earlier: Ints
    """[M] the image of an earlier build, likewise."""
    text_leaders: Ints
    """The node that leads each text of a kept pair; NONE for one that matches nothing, or whose pair is dropped."""
    began: Flags
    """Flags of texts that lead from then on."""


class LeaderPass:
    """Decides about pairs in order; afterwards places texts that leaders take over."""

    def __init__(self, rules: Dedup, images: Nodes, texts: Nodes, kept: EarlierResults) -> None:
        self._rules, self._images, self._texts, self._kept = rules, images, texts, kept
        self._leader_of: Ints = kept.text_leaders.copy()
        """[text nodes] the node that leads each so far, NONE for none; from their number on nodes of earlier builds."""
        self.leads: Flags = np.zeros(len(texts), np.bool_)

    def decide(self, pairs: Pairs) -> Verdicts:
        size, rules = len(pairs), self._rules
        found = Verdicts(
            np.zeros(size, np.uint8),
            np.full(size, NONE),
            np.full(size, NONE),
            np.full(len(pairs.texts), NONE),
            np.zeros(len(pairs.texts), np.bool_),
        )
        owner = np.full(len(self._images), NONE)  # the pair that was kept of each image
        waiting = _Waiting(pairs, self._images, self._kept.bond)
        owners, same, before = (_view(of) for of in (owner, self._kept.same, self._kept.near))
        near = _view(waiting.near)
        counted = np.concatenate([np.zeros(len(self._texts), np.int64), self._kept.pairs])
        pairs_of = _view(counted)
        of_texts, began = _view(found.text_leaders), _view(found.began.view(np.uint8))
        reasons, leader, earlier = _view(found.reasons), _view(found.leader), _view(found.earlier)
        for row, image, first, texts in _rows(pairs):
            why = 0
            if image != NONE:
                waiting.close_pair(row)
                if same[image] != NONE:
                    why, earlier[row] = BIT[DropReason.SAME_IMAGE], same[image]
                elif owners[image] != NONE:
                    why, leader[row] = BIT[DropReason.SAME_IMAGE], owners[image]
                elif near[row] != NONE:
                    why, leader[row] = BIT[DropReason.NEAR_IMAGE], near[row]
                elif before[row] != NONE:
                    why, earlier[row] = BIT[DropReason.NEAR_IMAGE], before[row]
                if earlier[row] in self._kept.placeholders:
                    why |= BIT[DropReason.PLACEHOLDER]
            primary = self._leader(texts[0])
            if primary != NONE and pairs_of[primary] >= rules.max_pairs_per_text:
                why |= BIT[DropReason.CAP_PER_TEXT]
            if why:
                reasons[row] = why
                continue
            if image != NONE:
                owners[image] = row
                needed, crowded = partial(waiting.has_copies, row), waiting.has_copies_in_crowds(row)
                waiting.give(row, self._images.matching(image, needed, crowded))
            for at, text in enumerate(texts, first):
                if text != NONE:
                    of_texts[at], began[at] = self.leader_of_text(text)
            if texts[0] != NONE:
                pairs_of[of_texts[first]] += 1
        return found

    def leader_of_text(self, text: int) -> tuple[int, bool]:
        """Returns the node that leads a text of a kept pair, and whether the text itself leads from now on."""
        leader = self._leader(text)
        if leader != NONE:
            return leader, False
        self.leads[text] = True
        needed = self._texts.matching(text, lambda nodes: (self._leader_of[nodes] == NONE) & ~self.leads[nodes])
        self._leader_of[needed] = text
        return text, True

    def _leader(self, text: int) -> int:
        """The node that leads a text so far, itself included; NONE for none."""
        if text == NONE or self.leads[text]:
            return text
        return int(self._leader_of[text])


class _Waiting:
    """Pairs by the nodes of their images, and of each the kept one that it is a near copy of (`near`), NONE for none.

    It is the first of those with which it has the strongest bond; NONE too if an earlier build has one as good.

    A pair with words of its own is a near copy of another one that shares words, file or pixels with it, or is without
    words. So what is undecided is counted by each of these hashes, and pairs without words or leader are counted as
    open, by node and by crowd: a crowd under many different captions is then not asked again for each of them.
    """

    def __init__(self, pairs: Pairs, images: Nodes, before: npt.NDArray[np.int8]) -> None:
        """before [M]: the bond of each with the image that an earlier build kept, TWO for none."""
        self._image, self._contexts, self._images, nodes = pairs.image, pairs.contexts, images, len(images)
        self._worded: Flags = (pairs.contexts[:, ALT] | pairs.contexts[:, CAPTION]) != 0
        shown = pairs.image != NONE
        self._last = np.full(nodes, NONE)
        self._last[pairs.image[shown]] = np.flatnonzero(shown)  # ascending: the last assignment stays
        hashes, numbers = np.unique(pairs.contexts[:, ALT:], return_inverse=True)
        self._each = pairs.contexts.shape[1] - ALT
        undecided = np.bincount(numbers.reshape(-1, self._each)[shown].ravel(), minlength=len(hashes))
        undecided[hashes == 0] = 0
        self._hashes, self._undecided = _view(numbers.ravel()), _view(undecided)
        self._rows: Ints = np.argsort(pairs.image, kind="stable")
        self._starts: Ints = np.searchsorted(pairs.image[self._rows], np.arange(nodes + 1))
        self.near: Ints = np.full(len(pairs), NONE)
        self._bond = before.copy()
        self._is_open: Flags = shown & ~self._worded & (before < LOOKS_BOND)
        self._open: Ints = np.bincount(pairs.image[self._is_open], minlength=nodes)
        self._open_in_crowds = images.in_crowds(self._open > 0)

    def close_pair(self, row: int) -> None:
        """Closes a pair whose turn has come: it is not a copy of a later pair."""
        for at in range(row * self._each, (row + 1) * self._each):
            self._undecided[self._hashes[at]] -= 1
        if self._is_open[row]:
            self._close(np.array([row]))

    def give(self, row: int, nodes: Ints) -> None:
        """A pair is kept, whose image looks like those of some nodes."""
        if len(nodes):
            copies, bond = self._copies(row, nodes)
            self.near[copies], self._bond[copies] = row, bond
            self._close(copies)

    def _close(self, rows: Ints) -> None:
        """Pairs are decided, or have a leader."""
        closed = rows[self._is_open[rows]]
        self._is_open[closed] = False
        for node, times in zip(*np.unique(self._image[closed], return_counts=True), strict=True) if len(closed) else ():
            self._open[node] -= times
            if not self._open[node]:
                np.subtract.at(self._open_in_crowds, self._images.crowds_of(int(node)), 1)

    def has_copies_in_crowds(self, row: int) -> bool:
        """Whether a pair after this one may be a near copy of it among those that its crowds did not compare."""
        if not self._worded[row] or self._shares(row):
            return True
        return bool(self._open_in_crowds[self._images.crowds_of(int(self._image[row]))].any())

    def has_copies(self, row: int, nodes: Ints) -> Flags:
        """[N] whether a pair after this one may be a near copy of it, if their images look alike."""
        found = self._last[nodes] > row
        if self._worded[row] and not self._shares(row):
            found &= self._open[nodes] > 0
        some = np.flatnonzero(found)
        if len(some):
            copies, _ = self._copies(row, distinct(nodes[some]))
            found[some] = np.isin(nodes[some], self._image[copies])
        return found

    def _shares(self, row: int) -> bool:
        """Whether an undecided pair shares words, file or pixels with this one."""
        own = range(row * self._each, (row + 1) * self._each)
        return any(self._undecided[self._hashes[at]] > 0 for at in own)

    def _copies(self, row: int, nodes: Ints) -> tuple[Ints, npt.NDArray[np.int8]]:
        """(pairs of some nodes after a pair, whose bond with it is stronger than with others before; the bonds)."""
        rows = self._rows[spread(self._starts[nodes], self._starts[nodes + 1])]
        rows = rows[rows > row]
        bond = bonds(self._contexts[row], self._contexts[rows])
        stronger = bond > self._bond[rows]
        return rows[stronger], bond[stronger]


def _view(values: Any) -> memoryview:
    """An array whose elements are read and set one by one: in a fraction of NumPy's time."""
    return memoryview(values)


def _rows(pairs: Pairs) -> Iterator[tuple[int, int, int, list[int]]]:
    """(row, image, place of its first text, its texts) of each pair."""
    for start in range(0, len(pairs), AT_ONCE):
        end = min(len(pairs), start + AT_ONCE)
        starts = pairs.starts[start : end + 1].tolist()
        texts, base = pairs.texts[starts[0] : starts[-1]].tolist(), starts[0]
        for at, image in enumerate(pairs.image[start:end].tolist()):
            low, high = starts[at], starts[at + 1]
            yield start + at, image, low, texts[low - base : high - base]


def first_by(keys: Ints, values: Ints, size: int) -> Ints:
    """[size] the smallest of the values [K] under each key [K], NONE where there is none."""
    found = np.full(size, NONE)
    order = np.lexsort((values, keys))
    new = order[group_starts(keys[order])]
    found[keys[new]] = values[new]
    return found
