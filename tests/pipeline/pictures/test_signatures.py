"""signatures: a grid holds the means of what a crop leaves."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from pipeline.pictures.parts import BOXES
from pipeline.pictures.signatures import COLOUR_SIDE, GRIDS, SIDE, SIZE, signatures_of
from tests.drawn import blobs, views


@pytest.mark.parametrize("number", range(GRIDS))
def test_a_grid_holds_the_means_of_what_a_crop_leaves(number: int) -> None:
    pixels = blobs(4)
    left, top, right, bottom = BOXES[number]
    seen = views(pixels)
    [grids] = signatures_of(seen.thumbs, seen.colour_thumbs)
    assert grids.shape == (GRIDS, SIZE)
    box = (500 * left, 400 * top, 500 * right, 400 * bottom)
    y, cb, cr = Image.fromarray(pixels).convert("YCbCr").split()
    bright = np.asarray(y.resize((SIDE, SIDE), Image.Resampling.BOX, box=box))
    assert np.abs(grids[number, : SIDE * SIDE].reshape(SIDE, SIDE).astype(int) - bright).max() <= 4
    for at, plane in enumerate((cr, cb)):
        mean = np.asarray(plane.resize((COLOUR_SIDE, COLOUR_SIDE), Image.Resampling.BOX, box=box))
        own = grids[number, SIDE * SIDE :].reshape(2, COLOUR_SIDE, COLOUR_SIDE)[at]
        assert np.abs(own.astype(int) - mean).max() <= 4
