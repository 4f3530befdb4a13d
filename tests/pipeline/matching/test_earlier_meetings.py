"""earlier_meetings: no match of a build with what was kept is missed on either side, and kept ones are not compared."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_specs.folding import normals
from pipeline.matching import earlier_meetings, text_rows
from pipeline.matching.earlier_meetings import (
    EarlierFinder,
    EarlierTextFinder,
    KeptImages,
    KeptTexts,
    SortedEntries,
    equal_words,
    looked_up,
    sorted_words,
)
from pipeline.matching.meetings import BUCKETS, Table, plan
from pipeline.matching.near_images import ImageLeaders
from pipeline.matching.near_texts import TextIndex
from pipeline.matching.text_meetings import Compared, TextTable, words_of
from pipeline.pictures.hashing import HASHES
from pipeline.pictures.signatures import GRIDS, SIZE, tones

THRESHOLD = 0.07

PARTS_OF_WHOLE = len(plan(10, 4)[0].family.parts)
"""Hashes that are compared with those of wholes."""


def drawn(rng: np.random.Generator, kind: Any, kinds: int, flips: int, levels: int, parted: float) -> tuple[Any, Any]:
    """Hashes and signatures of images of these kinds, each changed a little; a share shows it in one part only."""
    phash = np.random.default_rng(7).integers(1, 2**63, (kinds, HASHES), dtype=np.uint64)[kind]
    base = np.random.default_rng(8).integers(0, 200, (kinds, 1, 1))[kind] + rng.integers(
        0, levels + 1, (len(kind), 1, 1)
    )
    grids = np.broadcast_to(base, (len(kind), GRIDS, SIZE)).astype(np.uint8)
    for row in np.flatnonzero(rng.random(len(kind)) < parted):
        whole, part = phash[row, 0], int(rng.integers(1, PARTS_OF_WHOLE))
        phash[row] = rng.integers(1, 2**63, HASHES, dtype=np.uint64)
        phash[row, part] = whole
        grids[row, np.arange(GRIDS) != part] += 100
    phash[rng.random(phash.shape) < 0.05] = 0
    for _ in range(flips):
        phash ^= np.uint64(1) << rng.integers(0, 64, phash.shape, dtype=np.uint64)
    return phash, grids.reshape(len(kind), GRIDS * SIZE)


def met(new: Any, kept: Any, keys: Any, parts: int, pieces: int) -> tuple[Any, Any, int]:
    """(found of the new ones, found of the kept ones, comparisons) over all keys, parts and pieces."""
    own, theirs = (of[1].reshape(len(of[1]), GRIDS, SIZE) for of in (new, kept))
    found, of_kept, compared = np.zeros(len(own), bool), np.zeros(len(theirs), bool), 0
    for key in keys:
        table, starts = Table.of(key, new[0], tones(own))
        for part in range(parts):
            at = slice(starts[BUCKETS * part // parts], starts[BUCKETS * (part + 1) // parts])
            tables = [(0, Table(table.codes[at], table.tones[at], table.owner[at]))]
            finder = EarlierFinder(key, THRESHOLD, len(own), lambda image, grid: own[image, grid])
            finder.ask(tables)
            for piece in range(pieces):
                low, high = len(theirs) * piece // pieces, len(theirs) * (piece + 1) // pieces
                grids = theirs[low:high]
                images = KeptImages(
                    SortedEntries.of(key, kept[0][low:high], tones(grids)),
                    kept[0][low:high],
                    tones(grids),
                    lambda image, grid, grids=grids: grids[image, grid],
                )
                of_kept[low + finder.meet(images)] = True
            assert len(finder.found) == len(own)
            found |= finder.found
            compared += finder.compared
    return found, of_kept, compared


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(0, 20),
    st.integers(0, 20),
    st.integers(1, 12),
    st.integers(0, 3),
    st.integers(0, 16),
    st.sampled_from([0, 1, 3, 4, 6]),
    st.sampled_from([10, 10**6, 10**8, 10**9]),
    st.integers(1, 3),
    st.integers(1, 3),
)
def test_every_kept_image_that_a_new_one_looks_like_is_found_with_it(
    seed: int,
    size: int,
    before: int,
    kinds: int,
    flips: int,
    levels: int,
    radius: int,
    planned: int,
    parts: int,
    pieces: int,
) -> None:
    rng = np.random.default_rng(seed)
    new = drawn(rng, rng.integers(0, kinds, size), kinds, flips, levels, 0.4)
    kept = drawn(rng, rng.integers(0, kinds, before), kinds, flips, levels, 0.4)
    found, of_kept, _ = met(new, kept, plan(planned, radius), parts, pieces)
    for at in range(before):
        one = ImageLeaders(radius, THRESHOLD)
        one.add(kept[0][[at]], kept[1][[at]])
        alike = one.first(*new) == 0
        assert not (alike & ~found).any()
        assert of_kept[at] or not alike.any()


def test_a_new_image_costs_what_it_can_meet_and_kept_ones_are_never_compared_with_each_other() -> None:
    rng = np.random.default_rng(3)
    kind = np.concatenate([np.zeros(40, int), np.arange(1, 200)])
    kept = drawn(rng, kind, 300, 0, 0, 0.0)  # forty of one look: more than a pass would have kept
    found, of_kept, compared = met(drawn(rng, np.arange(200, 260), 300, 0, 0, 0.0), kept, plan(300, 4), 2, 2)
    assert (found.any(), of_kept.any(), compared) == (False, False, 0)
    found, of_kept, compared = met(drawn(rng, np.array([0, 200]), 300, 0, 0, 0.0), kept, plan(300, 4), 2, 2)
    assert found.tolist() == [True, False]
    assert of_kept.tolist() == [True] * 40 + [False] * 199
    assert compared <= 2 * 40 * len(plan(300, 4))


WORDS = ["今天天气很好我们一家人去公园散步吧", "红烧肉", "红烧鱼", "3张照片", "", "故宫雪景下的红墙和金色屋顶真美啊"]


def rows(texts: list[str]) -> text_rows.TextRows:
    return text_rows.made(normals(texts), 0.7)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(WORDS), st.integers(0, 5)), max_size=20),
    st.lists(st.tuples(st.sampled_from(WORDS), st.integers(0, 5)), max_size=20),
    st.sampled_from([0, 1, 1_024]),
    st.integers(1, 2),
)
def test_every_kept_text_that_a_new_one_is_the_same_as_is_found_with_it(
    new: list[tuple[str, int]], kept: list[tuple[str, int]], long: int, runs: int
) -> None:
    own, theirs = (rows(list(dict.fromkeys(text[:at] + text[at + 1 :] for text, at in of))) for of in (new, kept))
    borders, tables = [len(own) * run // runs for run in range(runs + 1)], []
    for low, high in itertools.pairwise(borders):
        tables.append((low, TextTable.of(own.sketches.keys[low:high])[0]))
    entries = TextTable.of(theirs.sketches.keys)[0]
    order = np.argsort(entries.keys)
    texts = KeptTexts(entries.keys[order], entries.owner[order], words_of(theirs.ids), theirs.sketches)
    finder = EarlierTextFinder(0.7, lambda at: Compared(words_of(own.ids[at]), own.sketches.take(at)))
    found = np.zeros(len(own), bool)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(earlier_meetings, "LONG", long)
        of_kept = np.isin(np.arange(len(theirs)), finder.meet(tables, texts, found))
    for at in range(len(theirs)):
        index = TextIndex(0.7)
        index.add(theirs.sketches.take(np.array([at])), np.array([0]))
        equal = (index.first(own.sketches) == 0) | (own.ids == theirs.ids[at]).all(axis=1)
        assert not (equal & ~found).any()
        assert of_kept[at] or not equal.any()
    if long > 1_000 and len(theirs) and len(own):
        sharing = np.isin(theirs.sketches.keys, own.sketches.keys).any(axis=1)
        assert not (of_kept & ~sharing).any()


def test_bytes_and_counts_are_looked_up_by_the_whole_digest() -> None:
    digests = np.random.default_rng(1).integers(0, 256, (50, 32), dtype=np.uint8)
    digests[1, :8] = digests[0, :8]  # two that begin alike
    words, owner = sorted_words(digests[:30])
    own, kept = equal_words(np.sort(words_of(digests[20:40])), words)
    assert len(own) == len(kept) == 10
    assert sorted(owner[kept].tolist()) == list(range(20, 30))
    by_word = np.argsort(words_of(digests[:30]), kind="stable")
    ids, values = digests[:30][by_word], np.arange(1, 31)[by_word]
    assert looked_up(digests, words, ids, values).tolist() == [*range(1, 31), *[0] * 20]
    none = np.zeros((0, 32), np.uint8)
    assert looked_up(digests, words_of(none), none, np.zeros(0, np.int64)).tolist() == [0] * 50
