"""frames: the width of a frame is known to a quarter of a pixel; shadows, margins and pictures alone are no frames."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image, ImageDraw

from pipeline.pictures.decode import decode
from pipeline.pictures.frames import QUARTERS, frame_of
from tests.drawn import blobs, encoded

SIZE = (120, 90)


def framed(widths: tuple[int, int, int, int], colour: Any = (255, 255, 255), times: int = 1) -> np.ndarray[Any, Any]:
    """A picture in a frame, reduced `times` by means: widths are those before."""
    left, top, right, bottom = widths
    inner = (SIZE[0] * times - left - right, SIZE[1] * times - top - bottom)
    whole = cv2.copyMakeBorder(blobs(3, inner), top, bottom, left, right, cv2.BORDER_CONSTANT, value=colour)
    return cv2.resize(whole, SIZE, interpolation=cv2.INTER_AREA)


@pytest.mark.parametrize("colour", [(255, 255, 255), (0, 0, 0), (250, 250, 120)])
@pytest.mark.parametrize("widths", [(2, 2, 2, 2), (3, 1, 4, 2), (9, 6, 9, 6)])
def test_a_frame_is_found_in_whole_pixels(widths: tuple[int, int, int, int], colour: tuple[int, int, int]) -> None:
    frame = frame_of(framed(widths, colour))
    assert frame is not None
    assert list(frame) == [QUARTERS * width for width in widths]


@pytest.mark.parametrize("widths", [(9, 10, 11, 12), (5, 6, 7, 9), (14, 18, 22, 15)])
def test_a_frame_that_ends_within_a_pixel_is_found_to_a_quarter(widths: tuple[int, int, int, int]) -> None:
    frame = frame_of(framed(widths, (0, 0, 0), times=4))
    assert frame is not None
    assert max(abs(own - width) for own, width in zip(frame, widths, strict=True)) <= 1


def test_a_frame_is_found_in_a_jpeg() -> None:
    data = encoded(Image.fromarray(framed((12, 12, 12, 12), times=4)).resize((480, 360)), quality=40)
    frame = frame_of(decode(data, 10**7, 64).pixels)
    assert frame is not None
    assert all(8 <= width <= 16 for width in frame)


@pytest.mark.parametrize("widths", [(0, 2, 2, 2), (2, 2, 2, 0), (30, 2, 2, 2), (0, 0, 0, 0)])
def test_three_sides_are_no_frame_nor_is_a_wide_one(widths: tuple[int, int, int, int]) -> None:
    assert frame_of(framed(widths)) is None


def test_a_frame_of_two_colours_is_none() -> None:
    pixels = framed((4, 4, 4, 4))
    pixels[:, -4:] = 200
    assert frame_of(pixels) is None


def test_a_drawing_on_white_has_no_frame() -> None:
    image = Image.new("RGB", SIZE, "white")
    draw = ImageDraw.Draw(image)
    draw.ellipse((5, 5, 115, 85), fill="green")
    draw.text((20, 20), "text", fill="black")
    assert frame_of(np.asarray(image)) is None


def test_a_shadow_that_fades_is_no_frame() -> None:
    pixels = framed((8, 8, 8, 8)).astype(int)
    for at in range(8):  # darker the nearer it is to the picture
        pixels[at : 90 - at, at : 120 - at] -= 1
    assert frame_of(np.clip(pixels, 0, 255).astype(np.uint8)) is None


@pytest.mark.parametrize("size", [(1, 1), (2, 200), (200, 1), (3, 3)])
@pytest.mark.parametrize("level", [0, 255])
def test_any_size_may_have_none(size: tuple[int, int], level: int) -> None:
    assert frame_of(np.full((size[1], size[0], 3), level, np.uint8)) is None
