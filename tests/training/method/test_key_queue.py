"""The ring against a list, for any size, any batches, and sizes that change."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from training.method.key_queue import KeyQueue, SampleIds

Batches = list[list[bool]]
BATCHES = st.lists(st.lists(st.booleans(), min_size=1, max_size=12), max_size=8)
"""Batches of samples: whether each could be read."""

Row = tuple[float, int, int, int, int]


def filled(queue: KeyQueue, batches: Batches) -> list[Row | None]:
    """Enqueue batches of numbered samples, and give the rows in the order in which they entered."""
    written: list[Row | None] = []
    for step, valid in enumerate(batches):
        numbers = torch.arange(len(written), len(written) + len(valid))
        ids = SampleIds(numbers, numbers + 1, numbers + 2, torch.tensor(valid))
        queue.enqueue(torch.stack([numbers, -numbers], dim=1).float(), ids, step)
        written += [
            (float(n), n, n + 1, n + 2, step) if v else None for n, v in zip(numbers.tolist(), valid, strict=True)
        ]
    return written


def rows(queue: KeyQueue) -> list[Row | None]:
    """All slots from the oldest to the newest, None for an empty one."""
    order = (int(queue.cursor) + torch.arange(queue.size)) % queue.size
    columns = (queue.keys_KD[:, 0], queue.sample_ids_K, queue.image_ids_K, queue.text_ids_K, queue.entered_K)
    table = list(zip(*(c[order].tolist() for c in columns), strict=True))
    return [row if full else None for row, full in zip(table, queue.filled_K[order].tolist(), strict=True)]


def last(size: int, written: list[Row | None]) -> list[Row | None]:
    return ([None] * size + written)[-size:]


@pytest.mark.slow
@given(before=st.integers(1, 9), after=st.integers(1, 9), batches=BATCHES, more=BATCHES)
def test_laid_out_anew_it_keeps_the_newest_and_goes_on(
    before: int, after: int, batches: Batches, more: Batches
) -> None:
    old, new = KeyQueue(before, 2), KeyQueue(after, 2)
    filled(new, [[True] * 3])  # what it held before must be gone
    kept = last(after, last(before, filled(old, batches)))
    new.load_saved(old.state_dict())
    assert rows(new) == kept
    entered = filled(new, more)
    assert rows(new) == last(after, kept + entered)


@pytest.mark.slow
@given(batches=BATCHES, after=st.integers(1, 9))
def test_a_shrunk_queue_is_one_that_was_small_from_the_beginning(batches: Batches, after: int) -> None:
    large, small, small_from_the_beginning = KeyQueue(9, 2), KeyQueue(after, 2), KeyQueue(after, 2)
    filled(large, batches)
    filled(small_from_the_beginning, batches)
    small.load_saved(large.state_dict())
    assert rows(small) == rows(small_from_the_beginning)


def test_ids_join_and_part() -> None:
    ids = SampleIds(*(torch.arange(4) + i for i in range(3)), torch.tensor([True, False, True, True]))
    again = SampleIds.concatenate([ids.rows(0, 1), ids.rows(1, 4)])
    for name in ("sample_B", "image_B", "text_B", "valid_B"):
        assert torch.equal(getattr(again, name), getattr(ids, name))
        assert torch.equal(getattr(ids.gather(), name), getattr(ids, name))
    assert ids.gather().valid_B.dtype == torch.bool


def test_keys_of_a_step_are_found_until_the_ring_has_gone_round() -> None:
    queue, keys = KeyQueue(10, 2), torch.randn(4, 3, 2)
    for step in range(4):
        numbers = torch.arange(3) + 10 * step
        queue.enqueue(keys[step], SampleIds(numbers, numbers, numbers, numbers != 11), step)
    for step in (1, 2, 3):  # rows 1 and 2 of a step's three, of which row 1 of step 1 could not be read
        found = queue.keys_of(torch.tensor([1, 2]) + 10 * step, step, back=3 * (4 - step) - 1)
        assert found is not None
        assert torch.equal(found, keys[step, 1:])
    assert queue.keys_of(torch.tensor([0]), 0, back=12) is None  # the newest ten of twelve are there
    assert queue.keys_of(torch.tensor([30]), 3, back=2) is None
