from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.data.order import Mixture, Order, fraction

SIZES = st.lists(st.integers(0, 9), min_size=1, max_size=9).filter(lambda sizes: sum(sizes) > 0)


@given(sizes=SIZES, seed=st.integers(0, 99), window=st.integers(1, 12), epoch=st.integers(-3, 3))
def test_every_epoch_holds_every_row_once(sizes: list[int], seed: int, window: int, epoch: int) -> None:
    order = Order(sizes, seed, window)
    total = sum(sizes)
    entries = [order.entry(epoch * total + i) for i in range(total)]
    assert {e for e, _ in entries} == {epoch}
    assert sorted(row for _, row in entries) == list(range(total))


@pytest.mark.slow
@given(sizes=SIZES, seed=st.integers(0, 99), window=st.integers(1, 12), positions=st.lists(st.integers(-50, 200)))
def test_an_entry_does_not_depend_on_those_asked_before(
    sizes: list[int], seed: int, window: int, positions: list[int]
) -> None:
    used = Order(sizes, seed, window)
    assert [used.entry(p) for p in positions] == [Order(sizes, seed, window).entry(p) for p in positions]


def test_a_window_mixes_only_its_own_shards() -> None:
    order = Order([10] * 6, seed=1, window_shards=2)
    rows = [order.entry(i)[1] for i in range(60)]
    for start in range(0, 60, 20):
        assert len({row // 10 for row in rows[start : start + 20]}) == 2
    assert rows[:20] != sorted(rows[:20])


def test_epochs_and_seeds_differ() -> None:
    def epoch(seed: int, number: int) -> list[int]:
        return [Order([50, 50], seed, 2).entry(number * 100 + i)[1] for i in range(100)]

    assert epoch(0, 0) != epoch(0, 1)
    assert epoch(0, 0) != epoch(1, 0)


def test_fractions_are_even() -> None:
    values = [fraction("text", 0, 0, i) for i in range(4000)]
    assert min(values) >= 0
    assert max(values) < 1
    assert abs(sum(values) / len(values) - 0.5) < 0.02


PARTS = st.lists(SIZES, min_size=1, max_size=3)
WEIGHTS = st.lists(st.floats(0.1, 9), min_size=3, max_size=3)


@pytest.mark.slow
@given(parts=PARTS, weights=WEIGHTS, seed=st.integers(0, 9), positions=st.lists(st.integers(-3000, 9000), max_size=9))
def test_an_entry_of_a_mixture_is_the_next_one_of_its_part_wherever_one_begins(
    parts: list[list[int]], weights: list[float], seed: int, positions: list[int]
) -> None:
    mixture = Mixture(parts, weights[: len(parts)], seed, 2)
    for position in positions:
        part, inside = mixture.locate(position)
        step = next(n for n in range(1, 9999) if mixture.locate(position + n)[0] == part)
        assert mixture.locate(position + step) == (part, inside + 1)
        assert Mixture(parts, weights[: len(parts)], seed, 2).entry(position) == mixture.entry(position)


def test_a_mixture_keeps_its_weights_and_goes_through_each_part_in_epochs_of_its_own() -> None:
    mixture = Mixture([[50, 50], [400]], [3, 1], 0, 2)
    entries = [mixture.entry(position) for position in range(1600)]
    rows = [row for _, row in entries]
    assert abs(sum(row < 100 for row in rows) / 1600 - 0.75) < 0.01
    small = [(epoch, row) for epoch, row in entries if row < 100]
    for start in range(0, len(small) - 100, 100):
        assert sorted(row for _, row in small[start : start + 100]) == list(range(100))
        assert {epoch for epoch, _ in small[start : start + 100]} == {start // 100}
    large = Counter([row for row in rows if row >= 100][:400])
    assert len(large) >= 397
    assert set(large.values()) == {1}
    assert mixture.epochs(1600) == pytest.approx([12, 1], abs=0.2)
    for start in range(0, 1600, 100):  # nothing comes in lumps
        assert 71 <= sum(row < 100 for row in rows[start : start + 100]) <= 79


def test_the_windows_of_an_entry_are_the_shards_that_it_and_those_after_it_come_from() -> None:
    order = Order([10] * 7, seed=1, window_shards=3)
    for position in range(0, 140, 5):
        here, later = order.windows(position)
        assert order.entry(position)[1] // 10 in here
        after = position + 10 * len(here)
        assert order.entry(after)[1] // 10 in {*here, *later}
    mixture = Mixture([[10] * 4, [20] * 2], [1, 1], 0, 1)
    owners = [0] * 10 + [1] * 10 + [2] * 10 + [3] * 10 + [4] * 20 + [5] * 20
    here, later = mixture.windows(0)
    assert owners[mixture.entry(0)[1]] in {*here, *later}
