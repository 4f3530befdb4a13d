"""image_qr: codes that OpenCV's encoder draws, large and small, and pictures without any."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest

from pipeline.filters import PixelFilter
from pipeline.plugins import configure
from tests.judged import scores_of

SIZE = 400, 600


def photo(seed: int = 1) -> Any:
    """A soft picture [H, W, 3]."""
    ground = np.random.default_rng(seed).integers(60, 230, (5, 7, 3), dtype=np.uint8)
    return cv2.resize(ground, SIZE[::-1], interpolation=cv2.INTER_CUBIC)


def with_code(side: int, at: tuple[int, int] = (40, 60)) -> Any:
    """The picture with a code of so many pixels, through JPEG."""
    code = cv2.QRCodeEncoder.create().encode("https://a.example/p/12")
    drawn = cv2.resize(code, (side, side), interpolation=cv2.INTER_NEAREST)
    drawn = cv2.copyMakeBorder(drawn, 10, 10, 10, 10, cv2.BORDER_CONSTANT, value=255)
    pixels = photo()
    y, x = at
    pixels[y : y + side + 20, x : x + side + 20] = drawn[..., None]
    return cv2.imdecode(cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 80])[1], cv2.IMREAD_COLOR)


def test_the_score_is_the_share_under_codes():
    none, one, large = scores_of("image_qr", photo(), with_code(120), with_code(240))
    assert none == 0
    assert one == pytest.approx(120**2 / 240_000, rel=0.35)  # the encoder draws its own white frame within the side
    assert large == pytest.approx(4 * one, rel=0.15)


def test_of_a_large_picture_the_share_is_the_same():
    small = with_code(240)
    large = cv2.resize(small, (2400, 1600), interpolation=cv2.INTER_LINEAR)
    of_small, of_large = scores_of("image_qr", small, large)
    assert of_large == pytest.approx(of_small, rel=0.1)


def test_it_drops_what_covers_more_than_allowed():
    judge = configure("filters", "image_qr", {}, PixelFilter).judge
    assert judge(0.05) is None
    drop = judge(0.2)
    assert drop is not None
    assert (drop.reason.value, drop.evidence) == ("qr_code", "QR codes cover 20.0%; at most 5.0%")


def test_scores_are_cached_under_any_threshold():
    plugins = [configure("filters", "image_qr", {"max_share": share}, PixelFilter) for share in (0.05, 0.2)]
    assert len({plugin.score_id for plugin in plugins}) == 1
