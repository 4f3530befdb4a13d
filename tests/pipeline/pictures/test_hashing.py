"""hashing: a part has the hash of the picture that a crop leaves, and every machine computes the same bits."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw

from pipeline.pictures.hashing import hashes_of
from pipeline.pictures.parts import BOXES, HALVES
from pipeline.pictures.thumbs import THUMB
from tests.drawn import blobs, views


@pytest.mark.parametrize("number", range(len(BOXES + HALVES)))
def test_a_part_has_the_hash_of_the_picture_that_a_crop_leaves(number: int) -> None:
    pixels = blobs(3, (500, 500))
    box = (BOXES + HALVES)[number]
    left, top, right, bottom = (round(500 * share) for share in box)
    whole, cropped = hashes_of(views(pixels, pixels[top:bottom, left:right]).thumbs).tolist()
    assert len(whole) == len(BOXES + HALVES)
    assert (whole[number] ^ cropped[0]).bit_count() <= 3
    assert number == 0 or (whole[0] ^ cropped[0]).bit_count() > (whole[number] ^ cropped[0]).bit_count()


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
