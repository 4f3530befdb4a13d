"""features: means over cells are those of OpenCV, parts are what a crop would give, every machine the same bits."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from pipeline.features import AT_ONCE, BOXES, HALVES, THUMB, Box, Parts, Views, cells, features, squares_of
from pipeline.features.phash import HASHES, PHash, hashes_of
from pipeline.features.signature import COLOUR_SIDE, GRIDS, SIDE, SIZE, Signature
from pipeline.pictures.decode import Header, Picture


def views(*pictures: np.ndarray[Any, Any]) -> Views:
    headers = [Header("png", pixels.shape[1], pixels.shape[0], 1, 1, False) for pixels in pictures]
    return Views(
        squares_of([Picture(of, np.ascontiguousarray(pixels)) for of, pixels in zip(headers, pictures, strict=True)])
    )


def blobs(seed: int, size: tuple[int, int] = (500, 400)) -> np.ndarray[Any, Any]:
    """A smooth colour picture [H, W, 3]."""
    small = np.random.default_rng(seed).integers(0, 256, (9, 11, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize(size, Image.Resampling.BICUBIC))


@given(st.floats(0, 0.4), st.floats(0.6, 1), st.integers(1, 300), st.integers(1, 64), st.sampled_from([1, 256, 4096]))
def test_every_cell_has_its_weight(start: float, stop: float, length: int, number: int, weight: int) -> None:
    weights = cells(start, stop, length, number, weight)
    assert weights.shape == (number, length)
    assert (weights.sum(axis=1) == weight).all()
    assert (weights >= 0).all()
    assert (weights == np.rint(weights)).all()


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


@pytest.mark.parametrize("count", [1, AT_ONCE - 1, AT_ONCE, 2 * AT_ONCE + 3])
def test_parts_are_products_of_each_plane_with_each_box(count: int) -> None:
    def matrix(start: float, stop: float) -> np.ndarray[Any, Any]:
        return cells(start, stop, THUMB, 5, 64)

    planes = np.random.default_rng(count).integers(0, 256, (count, THUMB, THUMB), dtype=np.uint8)
    found = Parts(BOXES + HALVES, matrix).of(planes)
    for plane, own in zip(planes, found, strict=True):
        for box, part in zip(BOXES + HALVES, own, strict=True):
            assert np.array_equal(part, matrix(box.top, box.bottom) @ plane @ matrix(box.left, box.right).T)


def test_a_picture_of_a_pixel_has_a_thumb_too() -> None:
    assert (views(np.full((1, 1, 3), 255, np.uint8)).thumbs == 255).all()


@pytest.mark.parametrize("number", range(len(BOXES + HALVES)))
def test_a_part_has_the_hash_of_the_picture_that_a_crop_leaves(number: int) -> None:
    pixels = blobs(3, (500, 500))
    box = (BOXES + HALVES)[number]
    left, top, right, bottom = (round(500 * share) for share in box)
    whole, cropped = PHash().of(views(pixels, pixels[top:bottom, left:right]))
    assert len(whole) == HASHES
    assert (whole[number] ^ cropped[0]).bit_count() <= 3
    assert number == 0 or (whole[0] ^ cropped[0]).bit_count() > (whole[number] ^ cropped[0]).bit_count()


@pytest.mark.parametrize("number", range(GRIDS))
def test_a_grid_holds_the_means_of_what_a_crop_leaves(number: int) -> None:
    pixels = blobs(4)
    left, top, right, bottom = BOXES[number]
    grids = np.frombuffer(Signature().of(views(pixels))[0], np.uint8).reshape(GRIDS, SIZE)
    box = (500 * left, 400 * top, 500 * right, 400 * bottom)
    y, cb, cr = Image.fromarray(pixels).convert("YCbCr").split()
    bright = np.asarray(y.resize((SIDE, SIDE), Image.Resampling.BOX, box=box))
    assert np.abs(grids[number, : SIDE * SIDE].reshape(SIDE, SIDE).astype(int) - bright).max() <= 4
    for at, plane in enumerate((cr, cb)):
        mean = np.asarray(plane.resize((COLOUR_SIDE, COLOUR_SIDE), Image.Resampling.BOX, box=box))
        own = grids[number, SIDE * SIDE :].reshape(2, COLOUR_SIDE, COLOUR_SIDE)[at]
        assert np.abs(own.astype(int) - mean).max() <= 4


def test_a_symmetric_shape_on_white_keeps_its_hash_when_it_is_saved_smaller() -> None:
    """What a picture does not hold, here all that is odd from left to right, must not turn bits."""
    image = Image.new("RGB", (300, 300), "white")
    ImageDraw.Draw(image).ellipse((60, 30, 240, 270), fill="#c03020")
    smaller = image.resize((150, 150), Image.Resampling.LANCZOS)
    one, other = (int(codes[0]) for codes in hashes_of(views(np.asarray(image), np.asarray(smaller)).thumbs))
    assert one != 0
    assert (one ^ other).bit_count() <= 1


def test_bits_and_bytes_are_these() -> None:
    """Written down once: another machine, numpy or BLAS must give the same, or caches of STORE could not be shared."""
    ramp = np.arange(THUMB, dtype=np.int64)
    thumb = ((ramp[:, None] * 5 + ramp[None, :] * ramp[None, :]) % 251).astype(np.uint8)
    assert [f"{code:016x}" for code in hashes_of(thumb[None])[0, :3]] == [
        "0004420a55c0960d",
        "0001430255c1961b",
        "2420c30247c2961b",
    ]


def test_what_is_looked_at_together_gives_what_each_gives_alone() -> None:
    """Pictures of all shapes, those that are narrowed and those of a pixel too."""
    sizes = [(128, 96), (96, 128), (65, 77), (1, 1), (40, 30), (64, 2_500), (128, 96)]
    pictures = [blobs(seed, size) for seed, size in enumerate(sizes)]
    for feature in features().values():
        together = feature.of(views(*pictures))
        assert together == [feature.of(views(pixels))[0] for pixels in pictures]


def test_parts_are_within_the_picture() -> None:
    assert BOXES[0] == Box(0, 0, 1, 1)
    for left, top, right, bottom in BOXES + HALVES:
        assert 0 <= left < right <= 1
        assert 0 <= top < bottom <= 1
