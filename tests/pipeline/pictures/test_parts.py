"""parts: cells keep their weight, and a part is the product of a plane with its box."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.pictures.parts import AT_ONCE, BOXES, HALVES, Box, Parts, cells
from pipeline.pictures.thumbs import THUMB


@given(st.floats(0, 0.4), st.floats(0.6, 1), st.integers(1, 300), st.integers(1, 64), st.sampled_from([1, 256, 4096]))
def test_every_cell_has_its_weight(start: float, stop: float, length: int, number: int, weight: int) -> None:
    weights = cells(start, stop, length, number, weight)
    assert weights.shape == (number, length)
    assert (weights.sum(axis=1) == weight).all()
    assert (weights >= 0).all()
    assert (weights == np.rint(weights)).all()


@pytest.mark.parametrize("count", [1, AT_ONCE - 1, AT_ONCE, 2 * AT_ONCE + 3])
def test_parts_are_products_of_each_plane_with_each_box(count: int) -> None:
    def matrix(start: float, stop: float) -> np.ndarray[Any, Any]:
        return cells(start, stop, THUMB, 5, 64)

    planes = np.random.default_rng(count).integers(0, 256, (count, THUMB, THUMB), dtype=np.uint8)
    values = Parts(BOXES + HALVES, matrix).of(planes)
    for plane, own in zip(planes, values, strict=True):
        for box, part in zip(BOXES + HALVES, own, strict=True):
            assert np.array_equal(part, matrix(box.top, box.bottom) @ plane @ matrix(box.left, box.right).T)


def test_parts_are_within_the_picture() -> None:
    assert BOXES[0] == Box(0, 0, 1, 1)
    for left, top, right, bottom in BOXES + HALVES:
        assert 0 <= left < right <= 1
        assert 0 <= top < bottom <= 1
