"""overlap: the same items and the same steps in the same order, beside the work; errors come out."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from pipeline.dedup.overlap import WAITING, read_ahead, writing_behind


def test_items_come_in_order_and_one_is_made_ahead() -> None:
    made, one_more = list[int](), threading.Event()

    def items() -> Iterator[int]:
        for number in range(4):
            made.append(number)
            if number == 1:
                one_more.set()
            yield number

    ahead = read_ahead(items())
    assert next(ahead) == 0
    assert one_more.wait(60), "the second item is made while the first is worked on"
    assert [*ahead] == [1, 2, 3]
    assert made == [0, 1, 2, 3]
    assert [*read_ahead(iter([0, None, ""]))] == [0, None, ""], "an item may be false"
    assert [*read_ahead(iter(()))] == []


def test_what_an_iterator_raises_comes_in_its_place() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise ValueError("broken")

    ahead = read_ahead(items())
    assert next(ahead) == 1
    with pytest.raises(ValueError, match="broken"):
        next(ahead)


def test_steps_are_done_in_order_and_all_of_them_when_the_block_ends() -> None:
    done, go = list[int](), threading.Event()

    def step(number: int) -> None:
        assert go.wait(60)
        done.append(number)

    with writing_behind() as later:
        for number in range(WAITING):
            later(lambda number=number: step(number))  # type: ignore[misc]
        assert done == [], "nobody waits for them yet"
        go.set()
        for number in range(WAITING, 50):
            later(lambda number=number: step(number))  # type: ignore[misc]
            assert len(done) >= number - WAITING, "more than a few never wait"
    assert done == [*range(50)]


def fails() -> None:
    raise OSError("disk full")


def test_a_step_that_fails_ends_the_block() -> None:
    with pytest.raises(OSError, match="disk full"), writing_behind() as later:
        later(fails)
    asked = 0
    with pytest.raises(OSError, match="disk full"), writing_behind() as later:  # noqa: PT012
        for asked in range(1, 10):  # noqa: B007
            later(fails)
    assert asked == WAITING + 1, "the first failure is told as soon as somebody waits for it"
