"""earlier_meetings: no match of a build with what was kept is missed on either side, and kept ones are not compared."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_specs.text.folding import normals
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
from pipeline.matching.looks import NO_DETAILS, Details, OfArrays, coarse_of, fine_of
from pipeline.matching.meetings import BUCKETS, Table, plan
from pipeline.matching.near_images import ImageLeaders
from pipeline.matching.near_texts import TextIndex
from pipeline.matching.text_meetings import Compared, TextTable, words_of
from pipeline.pictures.hashing import HASHES
from pipeline.pictures.signatures import GRIDS, SIZE
from tests.detailed import drawn_details

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
    """(found of the new ones, found of the kept ones, comparisons) over all keys, parts and pieces.

    new, kept: hashes, signatures and, where there are some, details.
    """
    own, theirs, details = new[1], kept[1], [of[2] if len(of) > 2 else NO_DETAILS for of in (new, kept)]
    found, of_kept, compared = np.zeros(len(own), bool), np.zeros(len(theirs), bool), 0
    for key in keys:
        fine = key.family.fine
        table, starts = Table.of(key, fine_of(details[0]) if fine else coarse_of(new[0], own))
        for part in range(parts):
            at = slice(starts[BUCKETS * part // parts], starts[BUCKETS * (part + 1) // parts])
            tables = [(0, Table(table.codes[at], table.tones[at], table.owner[at]))]
            finder = EarlierFinder(key, THRESHOLD, len(own), OfArrays(own, details[0]))
            finder.ask(tables)
            for piece in range(pieces):
                low, high = len(theirs) * piece // pieces, len(theirs) * (piece + 1) // pieces
                of_piece = details[1].take(np.arange(low, high))
                hashed = fine_of(of_piece) if fine else coarse_of(kept[0][low:high], theirs[low:high])
                signed = OfArrays(theirs[low:high], of_piece)
                images = KeptImages(high - low, SortedEntries.of(key, hashed), hashed, signed)
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


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 20),
    st.integers(1, 20),
    st.integers(1, 4),
    st.integers(0, 3),
    st.sampled_from([0.0, 0.5, 1.0]),
    st.sampled_from([10, 10**6, 10**9]),
    st.integers(1, 3),
    st.integers(1, 3),
)
def test_every_kept_image_that_a_new_one_looks_like_by_details_is_found_with_it(
    seed: int, size: int, before: int, kinds: int, flips: int, share: float, planned: int, parts: int, pieces: int
) -> None:
    """A share of the kept ones has details, as builds of an older wenlan have none."""
    rng = np.random.default_rng(seed)
    new = (*drawn(rng, rng.integers(0, 12, size), 12, flips, 3, 0.4), drawn_details(rng, size, kinds, flips))
    kept = (
        *drawn(rng, rng.integers(0, 12, before), 12, flips, 3, 0.4),
        drawn_details(rng, before, kinds, flips, share),
    )
    found, of_kept, _ = met(new, kept, plan(planned, 4, planned), parts, pieces)
    for at in range(before):
        one = ImageLeaders(4, THRESHOLD)
        one.add(kept[0][[at]], kept[1][[at]], details=[kept[2].take(np.array([at]))])
        alike = one.first(*new) == 0
        assert not (alike & ~found).any()
        assert of_kept[at] or not alike.any()


def test_kept_images_that_only_fine_hashes_are_near_of_are_found_and_none_without_details() -> None:
    rng = np.random.default_rng(5)
    of_all = drawn_details(rng, 20, 1, 0, 1.0)
    hashes = rng.integers(1, 2**63, (30, HASHES), dtype=np.uint64)
    signature = np.full((30, GRIDS * SIZE), 128, np.uint8)
    same = Details(np.arange(20), np.repeat(of_all.stored[:1], 20, axis=0))
    kept = (hashes[:20], signature[:20], same.take(np.arange(20)))
    some = Details(np.arange(0, 20, 2), same.stored[::2])
    new = (hashes[20:], signature[20:], Details(np.array([3]), of_all.stored[:1]))
    keys = plan(100, 4, 100)
    found, of_kept, _ = met(new, (*kept[:2], some), keys, 2, 3)
    assert np.flatnonzero(found).tolist() == [3]
    assert np.flatnonzero(of_kept).tolist() == list(range(0, 20, 2))
    found, of_kept, _ = met(new, (*kept[:2], NO_DETAILS), keys, 2, 3)
    assert not found.any()
    assert not of_kept.any()


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
    texts = KeptTexts(entries.keys[order], entries.owner[order], Compared(words_of(theirs.ids), theirs.sketches))
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


def test_texts_have_numbers_beyond_two_billion(tmp_path: Path) -> None:
    """As those of a build of 650 million pairs with four texts each have."""
    own, first = rows(WORDS[:3]), 2**31 + 5
    entries = TextTable.of(own.sketches.keys)[0]
    order = np.argsort(entries.keys)
    kept = KeptTexts(entries.keys[order], entries.owner[order], Compared(words_of(own.ids), own.sketches))
    finder = EarlierTextFinder(0.7, lambda at: Compared(words_of(own.ids[at - first]), own.sketches.take(at - first)))
    found = np.memmap(tmp_path / "found", bool, "w+", shape=(first + 3,))  # a file with a hole, not 2 GB
    assert finder.meet([(first, entries)], kept, found).tolist() == [0, 1, 2]
    assert found[first:].tolist() == [True] * 3
