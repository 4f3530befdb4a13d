"""Input of the pass in order (`pipeline.dedup.greedy`), from the files of `signatures`, `copies` and `edges`.

Limits: in memory are 60 bytes for each pair of a build, 16 for each of their texts, and 100 more for each pair that may
match something.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from data_specs.shard import SPLITS
from pipeline.dedup.array_files import COPIES, EDGES, KEPT_IMAGES, KEPT_TEXTS, read_crowds, read_found
from pipeline.dedup.earlier import (
    IMAGES,
    PLACEHOLDER,
    TEXTS,
    Piece,
    opened,
    pairs_of_leaders,
    pieces_of,
)
from pipeline.dedup.greedy import NONE, EarlierResults, Flags, Ints, Nodes, Pairs, first_by
from pipeline.dedup.runs import Runs, order_of, rule_of
from pipeline.files.digests import Digests
from pipeline.matching.contexts import TWO, WIDTH, bonds
from pipeline.matching.image_comparison import CachedSignatures, pairs_alike
from pipeline.matching.sketches import are_same, distinct, spread
from pipeline.store.build import Build

AT_ONCE = 4_096
"""Images of a crowd that are compared at once with one that is kept."""


@dataclass(frozen=True)
class EarlierImages:
    """Images of earlier builds that images of a build match [E], by ascending number."""

    numbers: Ints
    candidate: Digests
    flags: npt.NDArray[np.uint8]
    splits: npt.NDArray[np.int8]
    held: Flags
    """Flags of those of the build's own dataset."""

    def positions(self, numbers: Ints) -> Ints:
        """Positions of images in these arrays, by their numbers."""
        return np.searchsorted(self.numbers, numbers)


@dataclass(frozen=True)
class EarlierTexts:
    """Text leaders of earlier builds that texts of a build match [L], each id once; splits of clusters, "" for none."""

    ids: Digests
    splits: list[str]


class LeaderInput:
    """All pairs of a build with their matches. Images and texts have numbers over all runs (`Runs`)."""

    def __init__(self, build: Build, files: ExitStack) -> None:
        self._build, self._rules = build, build.spec.dedup
        self.runs = Runs(build, files)
        self.rows: list[pa.Table] = self.runs.rows()
        self.signatures = self.runs.signatures()
        self.order: Ints = order_of(self.rows)
        """Numbers of all pairs, by rank."""
        self.text_starts, self.all_texts = self._own_texts()
        self._image_pieces = pieces_of(build, IMAGES)
        self._join_images()
        self._join_texts()

    def _own_texts(self) -> tuple[Ints, Ints]:
        """(where the texts of each pair begin, and the end [N + 1]; numbers of all pairs' texts)."""
        starts, texts, total = [np.zeros(1, np.int64)], [np.zeros(0, np.int64)], 0
        for arrays, first in zip(self.runs.arrays, self.runs.text_starts.tolist(), strict=False):
            starts.append(arrays["own.starts"][1:] + total)
            texts.append(arrays["own.rows"] + first)
            total += len(texts[-1])
        return np.concatenate(starts), np.concatenate(texts)

    def _join_images(self) -> None:
        copies, edges = read_found(self._build, "dedup.copies", f"{COPIES}.{IMAGES}", 2), self._edges(IMAGES)
        equal, near = (read_found(self._build, stage, KEPT_IMAGES, 3) for stage in ("dedup.copies", "dedup.edges"))
        near, bond = self._near_copies(_of_copies(near, copies))
        kept, before = ([of[of[:, 2] == at, :2] for of in (equal, near)] for at in (0, 1))
        bonds_kept, bonds_before = (bond[near[:, 2] == at] for at in (0, 1))
        more = np.concatenate([of[:, 0] for of in kept])
        self.images = Nodes(copies, edges, read_crowds(self._build, IMAGES), more, self._alike)
        self._same_kept = first_by(self.images.of(kept[0][:, 0]), kept[0][:, 1], len(self.images))
        size = len(self.order)
        self._near_kept, self._bond_kept = _strongest(kept[1], bonds_kept, size)
        same_before = first_by(before[0][:, 0], before[0][:, 1], size)
        near_before, _ = _strongest(before[1], bonds_before, size)
        self._made_from: Ints = np.where(same_before != NONE, same_before, near_before)
        matched = distinct(np.concatenate([*(of[:, 1] for of in (*kept, *before))]))
        self.earlier_images = self._read_images(matched)

    def _near_copies(self, matches: Ints) -> tuple[Ints, npt.NDArray[np.int8]]:
        """(those of matches [K, 3] (pair, earlier image, ...) whose contexts do not contradict that, their bonds)."""
        numbers = distinct(matches[:, 1])
        contexts = [np.zeros((0, WIDTH), np.uint64)]
        for piece, own in _by_piece(self._image_pieces, numbers):
            with opened(self._build, piece, self.runs.keys) as arrays:
                contexts.append(arrays["contexts"][own])
        theirs = np.concatenate(contexts)[np.searchsorted(numbers, matches[:, 1])]
        bond = bonds(self.runs.contexts(matches[:, 0]), theirs)
        return matches[bond != TWO], bond[bond != TWO]

    def _read_images(self, numbers: Ints) -> EarlierImages:
        parts = [(np.zeros((0, 32), np.uint8), np.zeros(0, np.uint8), np.zeros(0, np.int8), np.zeros(0, np.bool_))]
        for piece, own in _by_piece(self._image_pieces, numbers):
            with opened(self._build, piece, self.runs.keys) as arrays:
                candidate, flags, split = (arrays[name][own] for name in ("candidate", "flags", "split"))
                parts.append((candidate, flags, split, np.full(len(own), piece.held)))
        return EarlierImages(numbers, *(np.concatenate(column) for column in zip(*parts, strict=True)))

    def _join_texts(self) -> None:
        copies, edges = read_found(self._build, "dedup.copies", f"{COPIES}.{TEXTS}", 2), self._edges(TEXTS)
        stages = "dedup.copies", "dedup.edges"
        equal, near = (read_found(self._build, stage, KEPT_TEXTS, 3)[:, :2] for stage in stages)
        repeated = np.flatnonzero(np.bincount(self.all_texts, minlength=int(self.runs.text_starts[-1])) > 1)
        more = np.concatenate([equal[:, 0], near[:, 0], repeated])
        self.texts = Nodes(copies, edges, read_crowds(self._build, TEXTS), more, self._same_text)
        numbers = distinct(np.concatenate([equal[:, 1], near[:, 1]]))
        self.earlier_texts, place = self._read_texts(numbers)
        by_node = [
            first_by(self.texts.of(of[:, 0]), place[np.searchsorted(numbers, of[:, 1])], len(self.texts))
            for of in (equal, near)
        ]
        first = np.where(by_node[0] != NONE, by_node[0], by_node[1])
        self._text_leaders: Ints = np.where(first != NONE, first + len(self.texts), NONE)
        self.text_nodes: Ints = self.texts.of(self.all_texts)

    def _read_texts(self, numbers: Ints) -> tuple[EarlierTexts, Ints]:
        """The leaders with these numbers, ascending, each id once, and the place there of each number."""
        ids, splits = [np.zeros((0, 32), np.uint8)], [np.zeros(0, np.int8)]
        for piece, own in _by_piece(pieces_of(self._build, TEXTS), numbers) if len(numbers) else ():
            with opened(self._build, piece, self.runs.keys) as arrays:
                ids.append(arrays["text.ids"][own])
                splits.append(arrays["text.split"][own] if piece.held else np.full(len(own), -1, np.int8))
        digests, number = np.concatenate(ids), np.concatenate(splits)
        _, first, group = np.unique(digests.view("V32").ravel(), return_index=True, return_inverse=True)
        by_first = np.argsort(first)  # two datasets may have one leader: places go by the first of both
        place = np.argsort(by_first)[group]
        known = np.flatnonzero(number >= 0)
        of_leader = first_by(place[known], known, len(first))
        named = [SPLITS[number[at]] if at != NONE else "" for at in of_leader.tolist()]
        return EarlierTexts(digests[first[by_first]], named), place

    def _edges(self, kind: str) -> Ints:
        return read_found(self._build, "dedup.edges", f"{EDGES}.{kind}", 2)

    @cached_property
    def image_nodes(self) -> Ints:
        """[N] the node of each pair's image."""
        return self.images.of(np.arange(len(self.order)))

    @cached_property
    def counted(self) -> Ints:
        """[N] how many texts of each pair count."""
        return np.minimum(np.diff(self.text_starts), self._rules.max_texts)

    @cached_property
    def bound(self) -> Ints:
        """Numbers of the pairs that may match something, by rank: all others are kept."""
        matching = np.concatenate([[0], np.cumsum(self.text_nodes != NONE)])
        low = self.text_starts[:-1]
        bound = matching[low + self.counted] > matching[low]
        bound |= self.image_nodes != NONE
        found: Ints = self.order[bound[self.order]]
        return found

    def pairs(self) -> Pairs:
        """The pairs that are bound."""
        low, counts = self.text_starts[self.bound], self.counted[self.bound]
        starts = np.concatenate([[0], np.cumsum(counts)])
        texts = self.text_nodes[spread(low, low + counts)]
        contexts = self.runs.contexts(self.bound)
        return Pairs(self.image_nodes[self.bound], starts, texts, contexts)

    @property
    def kept_earlier(self) -> int:
        """Number of images that earlier builds kept."""
        return sum(len(piece) for piece in self._image_pieces if not piece.before)

    def earlier_results(self) -> EarlierResults:
        """Returns results of earlier builds for images and texts that the build may match."""
        ids = self.earlier_texts.ids
        pairs = np.zeros(len(ids), np.int64)
        for piece in self._image_pieces if len(ids) else ():
            if not piece.before:
                with opened(self._build, piece, self.runs.keys) as arrays:
                    pairs += pairs_of_leaders(arrays, ids)
        flagged = self.earlier_images.numbers[self.earlier_images.flags & PLACEHOLDER > 0]
        near, bond = self._near_kept[self.bound], self._bond_kept[self.bound]
        return EarlierResults(self._same_kept, near, bond, frozenset(flagged.tolist()), self._text_leaders, pairs)

    def inherited_splits(self, pairs: Ints) -> list[str]:
        """[P] the split of the first image, of the generation that is made again, that each pair shows; "" for none."""
        splits, earlier = np.full(len(pairs), NONE), self._made_from[pairs]
        found = np.flatnonzero(earlier != NONE)
        splits[found] = self.earlier_images.splits[self.earlier_images.positions(earlier[found])]
        return [SPLITS[number] if number >= 0 else "" for number in splits.tolist()]

    def _alike(self, image: int, others: Ints) -> Flags:
        rule, found = rule_of(self._build.spec), [np.zeros(0, np.bool_)]
        for at in range(0, len(others), AT_ONCE):
            images = np.sort(np.append(others[at : at + AT_ONCE], image))
            rows = np.searchsorted(images, others[at : at + AT_ONCE])
            own = np.full(len(rows), np.searchsorted(images, image))
            held = CachedSignatures(self.signatures, images)
            found.append(pairs_alike(rule, held, *self.runs.hashed(images), own, rows))
        return np.concatenate(found)

    def _same_text(self, text: int, others: Ints) -> Flags:
        own, theirs = self.runs.sketches(np.array([text])), self.runs.sketches(others)
        every = np.arange(len(others))
        alike = are_same(own, np.zeros_like(every), theirs, every, self._rules.text_similarity)
        bands: Flags = (self.runs.bands(others) == self.runs.bands(np.array([text]))).any(axis=1)
        return alike & bands


def _strongest(matches: Ints, bond: npt.NDArray[np.int8], size: int) -> tuple[Ints, npt.NDArray[np.int8]]:
    """(of each pair's matches [K, 2] the first with the strongest bond, NONE for none; that bond, TWO for none)."""
    order = np.lexsort((matches[:, 1], -bond))
    rank = first_by(matches[order, 0], np.arange(len(order)), size)
    found, strongest, some = np.full(size, NONE), np.full(size, TWO, np.int8), rank != NONE
    found[some], strongest[some] = matches[order[rank[some]], 1], bond[order[rank[some]]]
    return found, strongest


def _of_copies(matches: Ints, copies: Ints) -> Ints:
    """Matches [K, 3] of images, and of all copies [C, 2] of each."""
    by_first = copies[np.argsort(copies[:, 1], kind="stable")]
    low, high = (np.searchsorted(by_first[:, 1], matches[:, 0], side) for side in ("left", "right"))
    more = np.repeat(matches, high - low, axis=0)
    more[:, 0] = by_first[spread(low, high), 0]
    return np.concatenate([matches, more])


def _by_piece(pieces: list[Piece], numbers: Ints) -> list[tuple[Piece, Ints]]:
    """Pieces with the rows in each of some numbers, ascending; pieces without one are left out."""
    cut = [(piece, *np.searchsorted(numbers, [piece.start, piece.start + len(piece)]).tolist()) for piece in pieces]
    return [(piece, numbers[low:high] - piece.start) for piece, low, high in cut if low < high]
