from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.order import Order, fraction

SIZES = st.lists(st.integers(0, 9), min_size=1, max_size=9).filter(lambda sizes: sum(sizes) > 0)


@given(sizes=SIZES, seed=st.integers(0, 99), window=st.integers(1, 12), epoch=st.integers(-3, 3))
def test_every_epoch_holds_every_row_once(sizes: list[int], seed: int, window: int, epoch: int) -> None:
    order = Order(sizes, seed, window)
    total = sum(sizes)
    entries = [order.entry(epoch * total + i) for i in range(total)]
    assert {e for e, _ in entries} == {epoch}
    assert sorted(row for _, row in entries) == list(range(total))


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


def test_without_shuffling_rows_come_in_order() -> None:
    order = Order([3, 4], 0, 1, shuffle=False)
    assert [order.entry(i) for i in range(8)] == [*((0, i) for i in range(7)), (1, 0)]


def test_an_empty_dataset_has_no_order() -> None:
    with pytest.raises(ValueError, match="at least one"):
        Order([0, 0], 0, 1)


def test_fractions_are_even() -> None:
    values = [fraction("text", 0, 0, i) for i in range(4000)]
    assert min(values) >= 0
    assert max(values) < 1
    assert abs(sum(values) / len(values) - 0.5) < 0.02
