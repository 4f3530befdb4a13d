"""hash_index: exactly the codes within the radius are found, in levels and bands of any size."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.matching.hash_index import MOST_BITS, HashIndex, band_plan, near_among


def near_codes(seed: int, size: int, radius: int) -> tuple[np.ndarray, np.ndarray]:
    """Random codes, and queries that are some of them with up to radius + 2 bits turned."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(1, 2**63, size, dtype=np.uint64)
    queries = codes[:: max(1, size // 60)].copy()
    for i in range(len(queries)):
        for bit in rng.choice(64, rng.integers(0, radius + 3), replace=False):
            queries[i] ^= np.uint64(1 << int(bit))
    return codes, queries


@pytest.mark.parametrize("asked", [True, False])  # between additions, as a pass does: what was added is then a level
@pytest.mark.parametrize("radius", [0, 1, 4, 8, 10, 16])
@pytest.mark.parametrize("size", [1, 300, 2_500, 9_000])
def test_the_index_finds_exactly_what_comparing_all_finds(radius: int, size: int, asked: bool) -> None:
    codes, queries = near_codes(radius * 31 + size, size, radius)
    index = HashIndex(radius)
    for start in range(0, size, 700):
        index.add(codes[start : start + 700], np.arange(start, min(size, start + 700)) * 10)
        if asked:
            index.near(queries[:2])
    rows, ids = index.near(queries)
    apart = np.bitwise_count(queries[:, None] ^ codes[None, :])
    rows_b, at = np.nonzero((apart <= radius) & (queries != 0)[:, None])
    by_all = sorted(zip(rows_b.tolist(), (at * 10).tolist(), strict=True))
    assert sorted(zip(rows.tolist(), ids.tolist(), strict=True)) == by_all, "each pair once"


@pytest.mark.parametrize("radius", [4, 6, 10])
def test_levels_merged_into_one_with_other_bands_find_exactly_what_comparing_all_finds(radius: int) -> None:
    cuts = {tuple((band.low, band.bits) for band in band_plan(1 << size, radius)) for size in range(8, 20)}
    assert len(cuts) > 2, "sizes that need the same bands show nothing"
    codes, queries = near_codes(radius, 70_000, radius)
    index = HashIndex(radius)
    for start in range(0, len(codes), 4_500):
        index.add(codes[start : start + 4_500], np.arange(start, min(len(codes), start + 4_500)))
        index.near(queries[:2])  # makes a level of them
    rows, ids = index.near(queries)
    by_all = np.nonzero(np.bitwise_count(queries[:, None] ^ codes[None, :]) <= radius)
    assert {*zip(rows.tolist(), ids.tolist(), strict=True)} == {*zip(*(at.tolist() for at in by_all), strict=True)}


@pytest.mark.parametrize("scanned", [1, 100, 10_000])
def test_a_hot_bucket_is_looked_at_in_parts(monkeypatch: pytest.MonkeyPatch, scanned: int) -> None:
    monkeypatch.setattr("pipeline.matching.hash_index.SCANNED", scanned)
    monkeypatch.setattr("pipeline.matching.hash_index.BLOCK", 200)
    codes = np.append(np.full(6_000, 12345, np.uint64), np.arange(1, 400, dtype=np.uint64) << np.uint64(40))
    index = HashIndex(4)
    index.add(codes, np.arange(len(codes)))
    rows, ids = index.near(codes[5_997:6_003])
    by_all = np.nonzero(np.bitwise_count(codes[5_997:6_003, None] ^ codes[None]) <= 4)
    assert {*zip(rows.tolist(), ids.tolist(), strict=True)} == {*zip(*(at.tolist() for at in by_all), strict=True)}


@given(st.integers(0, 10**7), st.integers(0, 16))
def test_bands_are_apart_and_share_the_radius_by_the_pigeonhole_principle(size: int, radius: int) -> None:
    plan = band_plan(size, radius)
    bits = [bit for band in plan for bit in range(band.low, band.low + band.bits)]
    assert len(bits) == len(set(bits))
    assert all(0 <= bit < 64 for bit in bits)
    assert all(0 < band.width <= min(MOST_BITS, band.bits) and band.bits <= 32 for band in plan)
    assert not plan or sum(band.radius + 1 for band in plan) == radius + 1


def test_parts_without_structure_are_near_nothing() -> None:
    index = HashIndex(8)
    index.add(np.array([0, 1], np.uint64), np.array([7, 8]))
    rows, ids = index.near(np.array([0, 3], np.uint64))
    assert (rows.tolist(), ids.tolist()) == ([1], [8])


@given(st.integers(0, 2**32 - 1), st.integers(0, 30), st.integers(1, 4), st.integers(0, 6))
def test_codes_of_a_list_are_compared_like_those_of_an_index(seed: int, size: int, parts: int, radius: int) -> None:
    rng = np.random.default_rng(seed)
    codes = rng.choice(rng.integers(0, 2**63, 3, dtype=np.uint64), (size, parts))
    codes ^= np.uint64(1) << rng.integers(0, 64, codes.shape, dtype=np.uint64)
    codes[rng.random(codes.shape) < 0.1] = 0
    rows, at = near_among(codes[:, 0], codes, radius)
    apart = np.bitwise_count(codes[:, 0, None] ^ codes.ravel()[None])
    expected = np.nonzero((apart <= radius) & (codes[:, 0, None] != 0) & (codes.ravel()[None] != 0))
    assert list(zip(rows.tolist(), at.tolist(), strict=True)) == list(
        zip(*(of.tolist() for of in expected), strict=True)
    )
