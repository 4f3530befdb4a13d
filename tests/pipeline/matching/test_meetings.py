"""meetings: no image that looks like another one is missed, however keys are cut and dealt out; the others are left."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.matching import meetings
from pipeline.matching.looks import NO_DETAILS, Details, OfArrays, coarse_of, families, fine_of
from pipeline.matching.meetings import BUCKETS, Finder, Key, Table, equal, plan
from pipeline.matching.near_images import COMBINATIONS, ImageLeaders
from pipeline.pictures.hashing import HASHES
from pipeline.pictures.signatures import GRIDS, SIZE, tones
from tests.detailed import drawn_details

THRESHOLD = 0.07


def drawn(rng: np.random.Generator, size: int, kinds: int, flips: int, levels: int) -> tuple[Any, Any]:
    """Hashes [N, HASHES] and signatures [N, GRIDS * SIZE] of images of some kinds, each changed a little."""
    kind = rng.integers(0, kinds, size)
    phash = rng.integers(1, 2**63, (kinds, HASHES), dtype=np.uint64)[kind]
    phash[rng.random(phash.shape) < 0.05] = 0
    for _ in range(flips):
        phash ^= np.uint64(1) << rng.integers(0, 64, phash.shape, dtype=np.uint64)
    # whole levels per picture, so that tones of copies lie across the borders of cells
    base = rng.integers(0, 200, (kinds, GRIDS, 1))[kind] + rng.integers(0, levels + 1, (size, 1, 1))
    return phash, np.broadcast_to(base, (size, GRIDS, SIZE)).astype(np.uint8).reshape(size, -1)


def cut(table: Table, start: int, stop: int) -> Table:
    return Table(table.codes[start:stop], table.tones[start:stop], table.owner[start:stop])


def looked(
    phash: Any, signature: Any, keys: tuple[Key, ...], runs: int, parts: int, details: Details = NO_DETAILS
) -> Any:
    """What all parts of all keys find together, of images that lie in some runs."""
    size, signed = len(phash), OfArrays(signature, details)
    borders = [size * run // runs for run in range(runs + 1)]
    found = np.zeros(size, bool)
    for key in keys:
        dealt = []
        for low, high in itertools.pairwise(borders):
            fine, own = key.family.fine, details.take(np.arange(low, high))
            hashed = fine_of(own) if fine else coarse_of(phash[low:high], signature[low:high])
            dealt.append((low, *Table.of(key, hashed)))
        for part in range(parts):
            first, last = BUCKETS * part // parts, BUCKETS * (part + 1) // parts
            finder = Finder(key, THRESHOLD, size, signed)
            finder.look([(low, cut(own, starts[first], starts[last])) for low, own, starts in dealt])
            found |= finder.found
    return found


def alike(phash: Any, signature: Any, radius: int, details: Details = NO_DETAILS) -> Any:
    """Which images look like another one, by the index of leaders, asked one by one."""
    looks = np.zeros((len(phash),) * 2, bool)
    for at in range(len(phash)):
        one = ImageLeaders(radius, THRESHOLD)
        one.add(phash[[at]], signature[[at]], details=[details.take(np.array([at]))])
        looks[:, at] = one.first(phash, signature, details) == 0
    np.fill_diagonal(looks, False)
    return looks.any(axis=0)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 30),
    st.integers(1, 12),
    st.integers(0, 3),
    st.integers(0, 16),
    st.sampled_from([0, 1, 3, 4, 6]),
    st.sampled_from([10, 10**6, 10**8, 10**9]),
    st.integers(1, 4),
    st.integers(1, 5),
    st.sampled_from([(256, 1 << 14, 128, 8), (0, 1 << 14, 128, 8), (0, 1 << 14, 1, 2), (1, 1, 2, 100), (3, 7, 0, 0)]),
)
def test_what_looks_alike_is_found_by_the_keys_of_any_size_in_any_runs_and_parts(
    seed: int,
    size: int,
    kinds: int,
    flips: int,
    levels: int,
    radius: int,
    planned: int,
    runs: int,
    parts: int,
    dense: tuple[int, ...],
) -> None:
    phash, signature = drawn(np.random.default_rng(seed), size, kinds, flips, levels)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in zip(("DENSE", "LONG", "MANY", "CROWD"), dense, strict=True):
            patch.setattr(meetings, name, value)
        found = looked(phash, signature, plan(planned, radius), runs, parts)
    assert not (alike(phash, signature, radius) & ~found).any()


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 25),
    st.integers(1, 4),
    st.integers(0, 3),
    st.sampled_from([10, 10**6, 10**9]),
    st.integers(1, 4),
    st.integers(1, 5),
)
def test_images_with_details_are_found_by_the_fine_keys_of_any_size(
    seed: int, size: int, kinds: int, flips: int, planned: int, runs: int, parts: int
) -> None:
    rng = np.random.default_rng(seed)
    phash, signature = drawn(rng, size, 12, flips, 3)
    details = drawn_details(rng, size, kinds, flips)
    found = looked(phash, signature, plan(planned, 4, planned), runs, parts, details)
    assert not (alike(phash, signature, 4, details) & ~found).any()


def test_fine_keys_are_there_where_two_images_have_details() -> None:
    coarse = plan(1_000, 4)
    assert not any(key.family.fine for key in coarse)
    assert plan(1_000, 4, 1) == coarse
    assert plan(1_000, 4, 2)[: len(coarse)] == coarse
    assert {key.family for key in plan(1_000, 4, 2)[len(coarse) :]} == {own for own in families(4) if own.fine}
    few, many = ([key.bits for key in plan(10**8, 4, count) if key.family.fine] for count in (10**3, 10**8))
    assert len(few) < len(many), "fine keys are as long as the images with details need"


def test_images_of_their_own_are_not_found() -> None:
    rng = np.random.default_rng(1)
    phash = rng.integers(1, 2**63, (2_000, HASHES), dtype=np.uint64)
    signature = rng.integers(0, 256, (2_000, GRIDS * SIZE), dtype=np.uint8)
    assert not looked(phash, signature, plan(2_000, 4), 2, 2).any()
    phash[:, 0] = phash[0, 0]  # a hash that all share, under signatures that differ
    assert not looked(phash, signature, plan(2_000, 4), 2, 2).any()


def differing(rng: np.random.Generator, size: int) -> Any:
    """Signatures [N, GRIDS * SIZE] that differ, of one tone each, in every block the same."""
    cells = rng.permuted(np.tile(np.repeat(np.uint8([40, 200]), SIZE // 2), (size, 1)), axis=1)
    signature = np.repeat(cells, GRIDS, axis=0).reshape(size, GRIDS, SIZE)
    own = signature[:, :, : 12 * 12].reshape(size, GRIDS, 12, 12)
    own[:, :, 2:10] = 40
    for block_row, block_column in itertools.product(
        (2, 6), (0, 3, 6, 9)
    ):  # of the twelve cells of a block six are set
        chosen = rng.permuted(np.tile(np.repeat(np.uint8([40, 200]), 6), (size, 1)), axis=1).reshape(size, 1, 4, 3)
        own[:, :, block_row : block_row + 4, block_column : block_column + 3] = chosen
    return signature.reshape(size, -1)


def test_of_images_that_share_a_hash_and_tones_but_do_not_look_alike_none_is_found() -> None:
    rng = np.random.default_rng(2)
    phash, signature = drawn(rng, 900, 1, 0, 0)[0], differing(rng, 900)
    phash[:] = phash[0] | 1
    words = tones(signature.reshape(900, GRIDS, SIZE))
    assert (words == words[0]).all()
    for key in plan(900, 4)[:2]:
        assert 900 * len(key.family.parts) > meetings.DENSE
        assert not looked(phash, signature, (key,), 2, 2).any()


def test_in_a_dense_range_one_copy_is_found_and_no_other_image() -> None:
    rng = np.random.default_rng(4)
    phash, signature = drawn(rng, 600, 1, 0, 0)[0], differing(rng, 600)
    phash[:] = phash[0] | 1
    signature[417] = signature[23]
    assert np.flatnonzero(looked(phash, signature, plan(600, 4), 2, 1)).tolist() == [23, 417]


def test_dense_ranges_are_parted_by_every_block_of_the_tones(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(5)
    grids = differing(rng, 800).reshape(800, GRIDS, SIZE)
    levels = rng.integers(0, 16, 800) * 16
    key = plan(800, 4)[0]
    last = key.family.blocks[-1]
    cells = (2 + last // 4 * 4 + np.arange(4))[:, None] * 12 + last % 4 * 3 + np.arange(3)
    grids[:, :, cells.ravel()] = levels[:, None, None]
    phash = np.full((800, HASHES), 12345, np.uint64)
    monkeypatch.setattr(meetings, "DENSE", 20)
    signature = grids.reshape(800, -1)
    finder = Finder(key, THRESHOLD, 800, OfArrays(signature, NO_DETAILS))
    finder.look([(0, Table.of(key, coarse_of(phash, signature))[0])])
    assert not finder.found.any()
    assert finder.scanned < 800 * 800 * len(key.family.parts) / 4  # a block of 16 levels of which three agree


def test_of_a_range_that_is_too_long_all_is_found_after_a_few_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(2)
    phash, signature = drawn(rng, 300, 1, 0, 0)[0], differing(rng, 300)
    phash[:] = phash[0] | 1
    for name in ("DENSE", "LONG"):
        monkeypatch.setattr(meetings, name, 40)
    key = plan(300, 4)[0]
    finder = Finder(key, THRESHOLD, 300, OfArrays(signature, NO_DETAILS))
    finder.look([(0, Table.of(key, coarse_of(phash, signature))[0])])
    assert finder.found.all()
    assert finder.taken == 300
    assert finder.compared <= meetings.LOOKS * 300


def test_a_cluster_costs_a_few_comparisons_for_each_of_its_images() -> None:
    phash, signature = drawn(np.random.default_rng(3), 900, 1, 0, 0)
    phash[:] = phash[0] | 1
    for key in (key for key in plan(900, 4) if not key.before):
        finder = Finder(key, THRESHOLD, 900, OfArrays(signature, NO_DETAILS))
        finder.look([(0, Table.of(key, coarse_of(phash, signature))[0])])
        assert finder.found.all()
        assert finder.compared <= 3 * 900
        assert finder.apart == 0


def test_copies_of_which_not_every_two_look_alike_cost_no_comparison_of_every_two() -> None:
    rng, kinds, size = np.random.default_rng(6), 6, 1_800
    phash = np.full((size, HASHES), 12345, np.uint64)
    signature = differing(rng, kinds)[np.arange(size) % kinds]  # groups of 300 that share hashes and tones
    lone = np.arange(size) % 5 == 0
    signature[lone] = differing(rng, int(lone.sum()))  # and others that do, and look like nothing
    key = plan(size, 4)[0]
    finder = Finder(key, THRESHOLD, size, OfArrays(signature, NO_DETAILS))
    finder.look([(0, Table.of(key, coarse_of(phash, signature))[0])])
    assert finder.found.all()
    assert finder.compared < (meetings.LOOKS + meetings.MANY) * size / 4


def test_keys_are_longer_the_more_images_there_are() -> None:
    bits = [min(key.bits for key in plan(size, 4) if len(key.family.parts) > 1) for size in (10**4, 10**7, 10**9)]
    assert bits == sorted(bits)
    assert bits[0] < bits[1] < bits[2]
    for size in (10**4, 10**7, 10**9):
        for key in plan(size, 4):
            assert size * len(key.family.parts) / 2 ** (0.8 * key.bits) <= meetings.SHARED
    assert plan(10**6, meetings.WIDEST + 1) == ()


def test_every_comparison_of_the_index_is_one_of_a_family() -> None:
    pairs = {(part, family.asks) for family in families(4) if not family.fine for part in family.parts}
    assert {tuple(sorted(pair)) for pair in pairs} == {tuple(sorted(pair)) for pair in COMBINATIONS}


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 20), max_size=60))
def test_equal_bytes_are_found(words: list[int]) -> None:
    found = equal(np.array(words, np.uint64), np.arange(len(words)))
    assert sorted(found.tolist()) == [at for at, word in enumerate(words) if words.count(word) > 1]
