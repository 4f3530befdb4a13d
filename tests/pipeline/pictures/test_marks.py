"""marks: what is the same in many pictures is found; noise, frames and templates are no watermark."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.pictures.marks import (
    LEAST,
    correlation,
    drawn,
    estimate,
    gradients,
    plane,
    reduced,
    sides_of,
)
from tests.marked import SIZE, logo, stamped, textures

SIDES = sides_of(*SIZE)


def planes(pictures: list[np.ndarray]) -> np.ndarray:
    return np.stack([plane(picture, SIDES) for picture in pictures])


@pytest.mark.slow
@pytest.mark.parametrize(("opacity", "share"), [(0.3, 0.6), (0.6, 1.0)])
def test_a_logo_that_most_pictures_have_is_found_and_told_from_pictures_without_it(opacity, share) -> None:
    plain = textures(80)
    few = int(share * 40)
    marked = [stamped(picture, logo(), opacity) for picture in plain]
    mark = estimate(planes([*marked[:few], *plain[few:40]]))
    assert mark.verdict == "mark"
    inside = np.zeros(mark.sides[::-1], bool)
    inside.ravel()[mark.at] = True
    box = logo().resize(SIDES).getbbox()
    rows, columns = np.nonzero(inside)
    outside = (columns < box[0] - 2) | (columns > box[2] + 2) | (rows < box[1] - 2) | (rows > box[3] + 2)
    assert not outside.any(), "where the logo is, and nowhere else"
    with_it = [correlation(one, mark) for one in planes(marked[40:])]
    without = [correlation(one, mark) for one in planes(plain[40:])]
    assert min(with_it) > 0.3 > 0.2 > max(without)
    assert (drawn(mark) > 0).sum() == len(mark.at)


@pytest.mark.slow
@pytest.mark.parametrize("count", [10, 20, 60])
def test_pictures_without_one_have_none(count) -> None:
    mark = estimate(planes(textures(count, seed=500)))
    assert (mark.verdict, len(mark.at)) == ("none", 0)
    assert mark.share < LEAST
    assert correlation(planes(textures(1))[0], mark) == 0


@pytest.mark.slow
def test_a_frame_and_bars_are_no_mark_and_a_logo_inside_of_a_frame_is() -> None:
    framed = textures(30)
    for picture in framed:
        picture[:24] = picture[-24:] = 0
        picture[:, :6] = picture[:, -6:] = 255
    assert estimate(planes(framed)).verdict == "none"
    mark = estimate(planes([stamped(picture, logo(), 0.5) for picture in framed]))
    assert mark.verdict == "mark"
    assert mark.at.min() // mark.sides[0] > 24 * SIDES[1] / SIZE[1] + 2


@pytest.mark.slow
def test_what_is_the_same_in_much_of_the_picture_is_a_template() -> None:
    screen = textures(1, seed=9, cell=8)[0]
    shots = []
    for picture in textures(30):
        shot = screen.copy()
        shot[60:180, 80:240] = picture[60:180, 80:240]
        shots.append(shot)
    mark = estimate(planes(shots))
    assert (mark.verdict, len(mark.at)) == ("template", 0)
    assert mark.share > 0.2


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 9), st.integers(3, 40), st.integers(3, 40), st.integers(0, 2**32 - 1))
def test_the_median_is_numpys_in_strips_of_any_height(count, height, width, seed) -> None:
    own = np.random.default_rng(seed).integers(0, 256, (count, height, width)).astype(np.uint8)
    own[:, :2, :2] = [[0, 255], [0, 255]]
    import pipeline.pictures.marks as module

    whole = estimate(own)
    before, module.STRIP = module.STRIP, count * width * 3
    try:
        strips = estimate(own)
    finally:
        module.STRIP = before
    assert (whole.verdict, whole.share) == (strips.verdict, strips.share)
    for name, of_all in zip(("across", "down"), gradients(own), strict=True):
        assert np.array_equal(getattr(whole, name), getattr(strips, name))
        assert np.array_equal(getattr(whole, name), (2 * np.median(of_all, axis=0)).ravel()[whole.at])


@given(st.integers(1, 5_000), st.integers(1, 5_000))
def test_a_plane_has_the_shape_of_its_picture_and_is_never_larger(width, height) -> None:
    own = sides_of(width, height)
    assert 1 <= own[0] <= min(width, 320)
    assert 1 <= own[1] <= min(height, 320)
    assert max(own) == min(320, max(width, height))
    assert reduced(width, height) == min(own)
