"""signatures: a grid holds the means of what a crop leaves."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from pipeline.pictures.parts import BOXES
from pipeline.pictures.signatures import (
    ALL,
    COLOUR_SIDE,
    LOWER,
    SIDE,
    SIZE,
    UPPER,
    distance,
    of_one_tone,
    signatures_of,
    tones,
    within,
)
from tests.drawn import blobs, views


@pytest.mark.parametrize("number", range(len(BOXES)))
def test_a_grid_holds_the_means_of_what_a_crop_leaves(number: int) -> None:
    pixels = blobs(4)
    left, top, right, bottom = BOXES[number]
    seen = views(pixels)
    [grids] = signatures_of(seen.thumbs, seen.colour_thumbs)
    assert grids.shape == (len(BOXES), SIZE)
    box = (500 * left, 400 * top, 500 * right, 400 * bottom)
    y, cb, cr = Image.fromarray(pixels).convert("YCbCr").split()
    bright = np.asarray(y.resize((SIDE, SIDE), Image.Resampling.BOX, box=box))
    assert np.abs(grids[number, : SIDE * SIDE].reshape(SIDE, SIDE).astype(int) - bright).max() <= 4
    for at, plane in enumerate((cr, cb)):
        mean = np.asarray(plane.resize((COLOUR_SIDE, COLOUR_SIDE), Image.Resampling.BOX, box=box))
        own = grids[number, SIDE * SIDE :].reshape(2, COLOUR_SIDE, COLOUR_SIDE)[at]
        assert np.abs(own.astype(int) - mean).max() <= 4


def stamped(grid: np.ndarray, row: int, rows: int = 2) -> np.ndarray:
    """A grid with a text across some rows: some cells much brighter, others much darker."""
    copy = grid.copy()
    bright = copy[: SIDE * SIDE].reshape(SIDE, SIDE)
    bright[row : row + rows, 2:10:2] = 250
    bright[row : row + rows, 3:10:2] = 5
    return copy


@pytest.mark.parametrize("row", range(SIDE - 1))
def test_a_text_anywhere_is_forgiven_to_a_picture_with_texture_and_to_no_drawing(row: int) -> None:
    rng = np.random.default_rng(row)
    textured = rng.integers(110, 146, SIZE, dtype=np.uint8)
    drawing = textured.copy()
    drawing[: SIDE * SIDE] = np.repeat(rng.integers(100, 156, SIDE, dtype=np.uint8), SIDE)
    for grid, forgiven in ((textured, True), (drawing, row in (0, SIDE - 2))):  # along an edge it is, to a drawing too
        one, other = grid[None], stamped(grid, row)[None]
        blocks = UPPER if row > 5 else LOWER  # the half without the text has found it
        assert (distance(one, other, blocks)[0] <= 0.01) == forgiven
        assert (within(one, other, 0.01, blocks=blocks)[0]) == forgiven


@pytest.mark.slow
def test_a_seal_anywhere_is_forgiven_to_a_picture_with_texture_and_to_no_drawing() -> None:
    rng = np.random.default_rng(7)
    textured = rng.integers(110, 146, SIZE, dtype=np.uint8)
    drawing = textured.copy()
    drawing[: SIDE * SIDE] = np.repeat(rng.integers(100, 156, SIDE, dtype=np.uint8), SIDE)
    for grid, forgiven in ((textured, True), (drawing, False)):
        for row, column in np.ndindex(SIDE - 3, SIDE - 3):
            sealed = grid.copy()
            sealed[: SIDE * SIDE].reshape(SIDE, SIDE)[row : row + 4, column : column + 4] = 250
            one, other = grid[None], sealed[None]
            assert (distance(one, other, ())[0] <= 0.01) == forgiven
            assert within(one, other, 0.01, blocks=())[0] == forgiven


def test_the_tone_of_a_half_is_the_same_however_bright_the_picture_and_whatever_the_other_half_holds() -> None:
    rng = np.random.default_rng(8)
    grids = rng.integers(60, 180, (20, SIZE), dtype=np.uint8)
    brighter = grids + np.uint8(70)
    assert np.array_equal(tones(grids), tones(brighter))
    grids[:, SIDE * SIDE // 2 : SIDE * SIDE] = 0
    assert of_one_tone(tones(grids), tones(brighter), UPPER).all()
    assert not of_one_tone(tones(grids), tones(brighter), ALL).all()


def test_what_covers_more_than_a_text_is_forgiven_nowhere() -> None:
    grid = np.random.default_rng(1).integers(110, 146, SIZE, dtype=np.uint8)
    for row in range(SIDE - 5):
        assert distance(grid[None], stamped(grid, row, 5)[None], ())[0] > 0.1


def test_drawings_of_which_a_half_is_equal_must_agree_twice_as_well() -> None:
    rows = np.repeat(np.random.default_rng(4).integers(100, 156, SIDE, dtype=np.uint8), SIDE)
    drawing = np.concatenate([rows, np.full(SIZE - SIDE * SIDE, 128, np.uint8)])
    other = drawing.copy()
    other[4 * SIDE + 2 : 4 * SIDE + 11] ^= 8
    whole, half = (float(distance(drawing[None], other[None], blocks)[0]) for blocks in (ALL, LOWER))
    assert half == pytest.approx(2 * whole)
    assert whole > 0
