"""thumbs: squares are OpenCV's, and close to the means of what they cover."""

from __future__ import annotations

import tracemalloc

import cv2
import numpy as np
import pytest
from PIL import Image

from pipeline.pictures.decode import Header, Picture
from pipeline.pictures.thumbs import THUMB, Views, unframed
from tests.drawn import blobs, squares_of, views


@pytest.mark.parametrize("size", [(64, 64), (128, 96), (96, 128), (101, 67)])
def test_a_thumb_is_close_to_the_means_of_what_it_covers(size: tuple[int, int]) -> None:
    pixels = blobs(1, size)
    theirs = Image.fromarray(pixels).convert("YCbCr").resize((THUMB, THUMB), Image.Resampling.BOX)
    y, cb, cr = (np.asarray(plane).astype(int) for plane in theirs.split())
    own = views(pixels)
    assert np.abs(own.thumbs[0] - y).mean() <= 4
    for plane, of in zip(own.colour_thumbs[0], (cr, cb), strict=True):
        assert np.abs(plane - of.reshape(32, 2, 32, 2).mean(axis=(1, 3))).mean() <= 4


@pytest.mark.parametrize("size", [(1, 1), (64, 64), (3, 200), (128, 96), (101, 67)])
def test_a_square_is_what_opencv_makes_of_the_colours_alone(size: tuple[int, int]) -> None:
    pixels = blobs(4, size)
    square = squares_of([Picture(Header("png", *size, 1, 1, False), pixels)])[0, ..., :3]
    theirs = cv2.resize(pixels, (THUMB, THUMB), interpolation=cv2.INTER_LINEAR_EXACT)
    assert np.array_equal(square, theirs)


def test_a_picture_of_a_pixel_has_a_thumb_too() -> None:
    assert (views(np.full((1, 1, 3), 255, np.uint8)).thumbs == 255).all()


def test_without_its_frame_a_picture_is_what_was_framed() -> None:
    pixels = blobs(2, (128, 96))
    framed = cv2.copyMakeBorder(pixels, 3, 4, 5, 2, cv2.BORDER_CONSTANT, value=(255, 255, 255))
    own, other = (Picture(Header("png", *of.shape[1::-1], 1, 1, False), of) for of in (pixels, framed))
    assert unframed(own) is None
    inside = unframed(other)
    assert inside is not None
    seen = Views(squares_of([own, other, own]), {1: inside})
    for whole, without in (
        (seen.thumbs, seen.unframed_thumbs),
        (seen.colour_thumbs, seen.unframed_colour_thumbs),
    ):
        assert np.array_equal(whole[[0, 2]], without[[0, 2]])
        assert np.abs(without[1].astype(int) - whole[0]).max() <= 8
        assert np.abs(whole[1].astype(int) - whole[0]).max() > 30


@pytest.mark.slow
def test_a_long_strip_in_a_frame_takes_no_gigabyte() -> None:
    """25 kB of a PNG took 1.2 GB and three seconds, since it was enlarged in all its colours, and copied twice."""
    strip = np.full((127, 65_500, 3), 200, np.uint8)
    strip[:, ::2] = 120
    strip[:3], strip[-3:], strip[:, :1_900], strip[:, -1_900:] = 0, 0, 0, 0
    picture = Picture(Header("png", 65_500, 127, 1, 1, False), strip)
    tracemalloc.start()
    try:
        inside = unframed(picture)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert inside is not None
    assert (inside[..., :3] > 100).all()
    assert peak < 200_000_000
