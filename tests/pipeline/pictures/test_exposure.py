"""exposure: the line between a picture and its copy is found, within what a repost does, whatever was stamped on it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.pictures import exposure
from pipeline.pictures.exposure import ADDED, GAIN, between

CELLS = (12, 12)


def drawn(seed: int, low: int = 60, high: int = 190) -> np.ndarray:
    """A plane [1, 12, 12] of whole levels."""
    return np.random.default_rng(seed).integers(low, high, (1, *CELLS)).astype(np.float64)


def line(a: np.ndarray, b: np.ndarray, inside: np.ndarray | None = None, unit: float = 1) -> tuple[float, float]:
    every = np.ones(a.shape, np.bool_) if inside is None else inside
    gain, added = between(a, b, unit, every)
    return float(gain[0]), float(added[0])


seeds = st.integers(0, 2**32 - 1)


@given(seeds, st.floats(0.85, 1.2), st.integers(-15, 15), st.sampled_from([1, 64, 1024]))
def test_the_line_between_a_picture_and_a_copy_is_found_in_any_unit(
    seed: int, gain: float, added: int, unit: int
) -> None:
    plane = drawn(seed)
    copy = np.rint(plane * gain + added)
    found = line(plane * unit, copy * unit, unit=unit)
    assert found[0] == pytest.approx(gain, abs=0.03)
    assert np.abs(plane * found[0] + found[1] / unit - copy).max() < 3


@given(seeds, seeds, st.floats(0.5, 2), st.integers(-120, 120))
def test_the_line_stays_within_what_a_repost_does(seed: int, other: int, gain: float, added: int) -> None:
    for copy in (np.clip(np.rint(drawn(seed) * gain + added), 0, 255), drawn(other, 0, 256)):
        found = line(drawn(seed), copy)
        assert GAIN[0] <= found[0] <= GAIN[1]
        assert abs(found[1]) <= ADDED


@given(seeds, st.integers(0, 8), st.integers(0, 8), st.sampled_from([0, 255]))
def test_a_stamp_does_not_pull_the_line(seed: int, row: int, column: int, level: int) -> None:
    plane = drawn(seed)
    copy = plane * 0.9
    copy[0, row : row + 4, column : column + 4] = level
    assert line(plane, copy) == pytest.approx((0.9, 0), abs=1e-6)


def test_a_page_of_thin_lines_that_became_a_fifth_darker_is_its_original() -> None:
    page = np.full((1, *CELLS), 252.0)
    page[0, 3:9:2] = np.arange(226, 250, 2)
    assert line(page, page * 0.8) == pytest.approx((0.8, 0), abs=1e-6)


@given(seeds)
def test_what_is_cut_off_to_white_does_not_pull_the_line(seed: int) -> None:
    plane = drawn(seed, 100, 256)
    copy = np.minimum(plane * 1.2, 255)
    gain, added = line(plane, copy)
    assert np.abs(np.minimum(plane * gain + added, 255) - copy).max() < 4


def test_white_that_became_darker_takes_part_once_it_lies_on_the_line() -> None:
    """A page with a few grey letters: white is 51 levels off at first."""
    plane = np.full((1, *CELLS), 252.0)
    plane[0, 5, :] = np.linspace(20, 230, 12)
    gain, added = line(plane * 0.8, plane)
    assert np.abs(plane * 0.8 * gain + added - plane).max() < 4


@pytest.mark.parametrize("cells", [0, exposure.LEAST - 1])
def test_planes_of_which_few_cells_tell_stay_as_they_are(cells: int) -> None:
    plane, inside = drawn(1), np.zeros((1, *CELLS), np.bool_)
    inside.reshape(-1)[:cells] = True
    assert line(plane, plane * 0.9, inside) == (1, 0)
    assert [len(of) for of in between(plane[:0], plane[:0], 1, inside[:0])] == [0, 0]


def test_a_plane_of_one_level_is_moved_and_not_stretched() -> None:
    assert line(np.full((1, *CELLS), 100.0), np.full((1, *CELLS), 120.0)) == (1, 20)
