"""semantic: nearest leaders as exact arithmetic has them, however rows are cut, added up and spread."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.matching import semantic
from pipeline.matching.semantic import (
    FAR,
    MILLION,
    UNIT,
    WIDEST,
    Codes,
    Nearest,
    SemanticLeaders,
    codes_of,
    merge_nearest,
    millionths,
    resolved,
)


def clustered(seed: int, rows: int, width: int, spread: float, flat: bool = False) -> Codes:
    """Rows around a few centres. flat: all in few directions, so that a short comparison is as good as a long one."""
    rng = np.random.default_rng(seed)
    inner = 6 if flat else width
    centres = rng.normal(size=(max(1, rows // 8), inner))
    vectors = centres[rng.integers(len(centres), size=rows)] + spread * rng.normal(size=(rows, inner))
    vectors = vectors @ rng.normal(size=(inner, width)) if flat else vectors
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return codes_of(unit.astype(np.float16))


def by_definition(codes: Codes, within: int, reach: int) -> list[tuple[int, int, bool]]:
    """(millionths, number of the nearest leader, kept) of every row, in Python's integers, one after another."""
    rows = codes.astype(int).tolist()
    leaders: list[list[int]] = []
    found = []
    for row in rows:
        best = (FAR, -1)
        for number, leader in enumerate(leaders):
            product = sum(a * b for a, b in zip(row, leader, strict=True))
            lengths = float(np.sqrt(np.float64(sum(a * a for a in row)))) * float(
                np.sqrt(np.float64(sum(b * b for b in leader)))
            )
            apart = max(0, round((1 - product / lengths) * MILLION)) if lengths else FAR
            if apart <= reach and apart < best[0]:
                best = (apart, number)
        kept = best[0] > within
        found.append((*best, kept))
        if kept:
            leaders.append(row)
    return found


def passed(codes: Codes, cuts: list[int], holders: int, within: int, reach: int) -> list[tuple[int, int, bool]]:
    """The same by the leader pass, in blocks that end at `cuts`, its leaders spread over holders."""
    shares = [SemanticLeaders(reach) for _ in range(holders)]
    found, count = [], 0
    for low, high in zip([0, *cuts], [*cuts, len(codes)], strict=True):
        block = codes[low:high]
        kept, nearest = resolved(block, merge_nearest([s.nearest(block) for s in shares]), within, reach, count)
        numbers = np.arange(count, count + len(kept))
        for at, share in enumerate(shares):
            mine = numbers % holders == at
            share.add(block[kept][mine], numbers[mine])
        count += len(kept)
        rows = zip(nearest.millionths.tolist(), nearest.number.tolist(), strict=True)
        found += [(*row, at in set(kept)) for at, row in enumerate(rows)]
    return found


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    rows=st.integers(1, 70),
    width=st.sampled_from([3, 40, 130]),
    spread=st.sampled_from([0.0, 0.1, 0.4, 1.0]),
    flat=st.booleans(),
    holders=st.integers(1, 3),
    distance=st.sampled_from([0.0, 0.01, 0.1, 0.5]),
    data=st.data(),
)
def test_blocks_and_holders_of_any_size_decide_as_the_definition_does(
    seed: int, rows: int, width: int, spread: float, flat: bool, holders: int, distance: float, data: st.DataObject
) -> None:
    codes = clustered(seed, rows, width, spread, flat)
    within = millionths(distance)
    reach = millionths(min(1.0, distance * 1.5))
    cuts = sorted(data.draw(st.lists(st.integers(0, rows), max_size=4)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(semantic, "SEALED", 8)
        patch.setattr(semantic, "SHORT", 16)
        patch.setattr(semantic, "DENSE", data.draw(st.sampled_from([0.0, 0.02, 1.0])))
        assert passed(codes, cuts, holders, within, reach) == by_definition(codes, within, reach)


@pytest.mark.slow
def test_products_of_codes_are_integers_in_whatever_order_they_are_added() -> None:
    rng = np.random.default_rng(3)
    vectors = rng.normal(size=(300, 2_560)).astype(np.float64)
    vectors[:40] = np.abs(vectors[:40])  # all terms of one sign: the largest sums there are
    codes = codes_of((vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16))
    exact = codes.astype(np.int64) @ codes.astype(np.int64).T
    turned = rng.permutation(codes.shape[1])
    for order in (np.arange(codes.shape[1]), turned, turned[::-1]):
        left = np.ascontiguousarray(codes[:, order]).astype(np.float32)
        assert (left @ left.T == exact).all()
        assert (np.stack([left[:1] @ row for row in left]).ravel() == exact[0]).all()
    assert exact.max() < 1 << 24
    assert (UNIT + np.sqrt(WIDEST) / 2) ** 2 < 1 << 24


def test_a_distance_is_that_of_the_features_to_four_decimals() -> None:
    rng = np.random.default_rng(4)
    one = rng.normal(size=(400, 512))
    two = one + 0.3 * rng.normal(size=one.shape)
    left, right = ((v / np.linalg.norm(v, axis=1, keepdims=True)).astype(np.float16) for v in (one, two))
    leaders = SemanticLeaders(MILLION)
    leaders.add(codes_of(right), np.arange(400))
    nearest = leaders.nearest(codes_of(left))
    assert (nearest.number == np.arange(400)).all()
    wanted = 1 - np.einsum("nd,nd->n", left.astype(np.float64), right.astype(np.float64))
    assert np.abs(nearest.millionths / MILLION - wanted).max() < 4e-4


def test_there_are_no_chains_and_the_nearest_of_several_leads() -> None:
    angles = np.deg2rad([0.0, 10.0, 20.0, 13.0])
    codes = codes_of(np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32))
    within = millionths(1 - np.cos(np.deg2rad(11)))
    kept, nearest = resolved(codes, Nearest.none(4), within, within, 0)
    assert kept == [0, 2], "20 degrees is near 10, which was not kept"
    assert nearest.number.tolist() == [-1, 0, -1, 1]
    assert nearest.millionths[3] == pytest.approx((1 - np.cos(np.deg2rad(7))) * MILLION, abs=200)


def test_of_equally_near_leaders_the_first_leads() -> None:
    row = codes_of(np.array([[0.6, 0.8]], np.float32))
    leaders = SemanticLeaders(10)
    leaders.add(np.concatenate([row, row]), np.array([4, 7]))
    assert leaders.nearest(row).number.tolist() == [4]
    far = Nearest(np.array([0]), np.array([9]))
    assert far.or_nearer(leaders.nearest(row)).number.tolist() == [4]
    assert leaders.nearest(np.zeros_like(row)).millionths.tolist() == [FAR], "without features it is like nothing"


def test_rows_that_are_too_wide_are_refused() -> None:
    with pytest.raises(ValueError, match="20000 features"):
        codes_of(np.zeros((1, 20_000), np.float16))


def test_the_root_and_the_quotient_round_as_ieee_says() -> None:
    """What makes a distance the same everywhere: each step is the number nearest to the exact one."""
    codes = clustered(5, 40, 64, 0.5)
    squares = [sum(int(a) ** 2 for a in row) for row in codes]
    for square, length in zip(squares, semantic._lengths(codes).tolist(), strict=True):
        below, above = np.nextafter(length, 0), np.nextafter(length, np.inf)
        errors = [abs(Fraction(x) ** 2 - square) for x in (below, length, above)]
        assert errors[1] == min(errors)
